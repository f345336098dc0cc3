"""The hypervisor's windows on the guest's clock: which clock is believed, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pytest

from telemetry.attribution import correlate
from telemetry.estimates import sharpened
from telemetry.finish import finish
from telemetry.hypervisor import align
from telemetry.ledger import close_ledger
from telemetry.profile import Profile
from telemetry.runfolder import RUN_SCHEMA, RunFolder, Span
from telemetry.samples import Metric, Sample, Series
from telemetry.segments import SampleSet, SegmentWriter, read_samples
from tests.telemetry.oracle import Raw, make_metric
from tests.telemetry.scripted import (
    HOST,
    NS,
    START_NS,
    USED,
    VM,
    Load,
    Sight,
    guest_counter,
    samples,
    scripted,
    windows,
)

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs/profile.schema.json").read_text())
STAGES = (34.0, 61.0, 130.0, 97.0, 45.0, 138.0)
HERE = f"vm:{VM}@{HOST}"
OFFSET = make_metric("clock_offset_seconds", "gauge")
BOUND = make_metric("clock_bound_seconds", "gauge")
READY = make_metric("vm_cpu_ready_percent", "window", "%")
POWER = make_metric("host_power_w", "window", "W", integral="J")
RUN: dict[str, Any] = {"recipe": {"vcenter": {"clock_limit_s": 2.0}}, "stages": []}
CONNECTED = {
    "at_ns": START_NS, "event": "connected", "server": "vc.example:443", "version": "8.0.3",
    "user": "reader@vsphere.local", "tls": "verified by ca_file",
}  # fmt: skip
PLACED = {"at_ns": START_NS, "event": "placement", "when": "start", "vm": VM, "esxi_host": HOST}


@pytest.fixture(scope="module")
def load() -> Load:
    return scripted(1, stages=STAGES)


def readings(
    *offsets_s: float, source: str = f"esxi:{HOST}", bound_s: float = 0.01
) -> dict[tuple[str, Metric], list[Raw]]:
    """A clock's offsets, an equal time apart over the run."""
    at = np.linspace(0, sum(STAGES), len(offsets_s))
    times = [START_NS + round(second * NS) for second in at]
    return {
        (source, OFFSET): [(ns, None, one) for ns, one in zip(times, offsets_s, strict=True)],
        (source, BOUND): [(ns, None, bound_s) for ns in times],
    }


def seen(
    load: Load,
    more: Mapping[tuple[str, Metric], Sequence[Raw]] | None = None,
    *,
    skew_s: float = 0.0,
    entity: str = HERE,
) -> SampleSet:
    """What guest and hypervisor recorded, the windows stamped late by the skew."""
    raw = windows(load, skew_s=skew_s)
    return samples(
        guest_counter(load, Sight(), 1),
        {
            (entity, USED): raw,
            (entity, READY): [(end, start, value / 2) for end, start, value in raw],
        },
        more,
    )


def stamps(told: SampleSet, entity: str, metric: str) -> list[tuple[int, int]]:
    rows = told.table.to_pylist()
    return sorted(
        (row["start_ns"], row["ts_ns"])
        for row in rows
        if (row["entity"], row["metric"]) == (entity, metric)
    )


def known(told: dict[str, Any] | None) -> dict[str, Any]:
    assert told is not None
    json.dumps(told, allow_nan=False)
    return told


def test_a_run_without_a_vcenter_is_left_alone(load: Load) -> None:
    plain = samples(guest_counter(load, Sight(), 1), {})
    aligned, told = align(plain, {"stages": []})
    assert aligned is plain
    assert told is None


@pytest.mark.parametrize("skew_s", [-45.0, 0.0, 3.25, 93.0])
def test_windows_go_to_the_guests_clock_by_the_hosts_own(load: Load, skew_s: float) -> None:
    aligned, told = align(seen(load, readings(skew_s, skew_s), skew_s=skew_s), RUN)
    told = known(told)
    expected = [
        (start - round(skew_s * NS), end - round(skew_s * NS))
        for end, start, _ in windows(load, skew_s=skew_s)
    ]
    assert stamps(aligned, HERE, "vm_cpu_used_cores") == expected
    assert told["refused"] is None
    assert told["clock"]["witness"] == f"esxi:{HOST}"
    assert (told["clock"]["offset_s"], told["clock"]["bound_s"]) == (skew_s, 0.01)
    assert told["clock"]["correlation"]["offset_s"] == pytest.approx(skew_s, abs=0.3)


def test_the_guests_own_samples_and_the_readings_stay(load: Load) -> None:
    before = seen(load, readings(5.0, 5.0), skew_s=5.0)
    aligned, _ = align(before, RUN)

    def others(told: SampleSet) -> list[tuple[Any, ...]]:
        return sorted(
            (row["entity"], row["metric"], row["ts_ns"], row["value"])
            for row in told.table.to_pylist()
            if row["start_ns"] is None
        )

    assert others(aligned) == others(before)
    assert aligned.table.num_rows == before.table.num_rows


def test_an_offset_that_drifts_is_followed_and_windows_still_touch(load: Load) -> None:
    aligned, told = align(seen(load, readings(0.0, 1.0)), RUN)
    moved = stamps(aligned, HERE, "vm_cpu_used_cores")
    assert [start for start, _ in moved[1:]] == [end for _, end in moved[:-1]]
    first, last = windows(load)[0], windows(load)[-1]
    assert moved[0][0] == pytest.approx(first[1], abs=NS // 20)
    assert moved[-1][1] == pytest.approx(last[0] - NS, abs=NS // 20)
    assert known(told)["clock"]["offset_end_s"] == 1.0


def test_without_the_hosts_clock_the_load_tells(load: Load) -> None:
    more = readings(0.0, 0.0, source="vcenter")
    aligned, told = align(seen(load, more, skew_s=93.0), RUN)
    told = known(told)
    assert told["clock"]["witness"] == "correlation"
    assert told["clock"]["offset_s"] == pytest.approx(93.0, abs=0.3)
    assert told["clock"]["bound_s"] <= 1.0
    first = windows(load, skew_s=93.0)[0][1] - 93 * NS
    assert stamps(aligned, HERE, "vm_cpu_used_cores")[0][0] == pytest.approx(first, abs=NS // 3)


def test_vcenters_clock_does_not_stand_for_a_hosts(load: Load) -> None:
    """It stamps no window: a host that is a minute off would be a minute off unseen."""
    even = Load(cores=np.full(len(load.cores), 2.0), lead_s=load.lead_s, spans=load.spans)
    aligned, told = align(seen(even, readings(0.0, 0.0, source="vcenter"), skew_s=60.0), RUN)
    told = known(told)
    assert (told["clock"]["witness"], told["clock"]["offset_s"]) == (None, None)
    assert "vCenter's does not stamp the windows" in told["refused"]
    assert "too even" in told["refused"]
    assert not stamps(aligned, HERE, "vm_cpu_used_cores")


def test_a_load_that_tells_less_well_than_the_limit_is_refused(load: Load) -> None:
    _, told = align(seen(load), {"vcenter": {"clock_limit_s": 0.01}, "stages": []})
    assert "the load tells it to" in known(told)["refused"]


def test_a_clock_without_a_bound_is_not_one_without_doubt(load: Load) -> None:
    bare = {name: raw for name, raw in readings(0.0, 0.0).items() if name[1] is OFFSET}
    _, told = align(seen(load, bare), RUN)
    assert "nothing says how well the clock of esx-1.example is known" in known(told)["refused"]


def test_windows_of_a_vm_on_an_unknown_host_are_absent_and_say_so(load: Load) -> None:
    aligned, _ = align(seen(load, readings(0.0, 0.0), entity=f"vm:{VM}"), RUN)
    row = correlate(aligned, load.spans).find("s2", f"vm:{VM}", USED.name)
    assert row is not None
    assert (row.mean, row.reason) == (
        None, "it is not known which host made its windows, so that they are on no clock",
    )  # fmt: skip


REFUSED = [
    ("disagree", readings(0.0, 0.0), 20.0, "by the load that guest and VM both saw"),
    ("too wide", readings(0.0, 0.0, bound_s=3.0), 0.0, "is known to 3 s only; the limit is 2 s"),
    ("set", readings(0.0, 9.0), 0.0, "was set during the run"),
    (
        "beyond what is searched",
        readings(400.0, 400.0),
        0.0,
        "is +400.00 s from the guest",
    ),
]


@pytest.mark.parametrize(
    ("more", "skew_s", "reason"), [one[1:] for one in REFUSED], ids=[one[0] for one in REFUSED]
)
def test_a_clock_that_is_not_to_be_believed_is_refused_with_a_sentence(
    load: Load, more: Any, skew_s: float, reason: str
) -> None:
    aligned, told = align(seen(load, more, skew_s=skew_s), RUN)
    told = known(told)
    assert reason in told["refused"]
    profile = correlate(sharpened(aligned, told["vm"]), load.spans)
    for metric in ("vm_cpu_used_cores", "vm_cpu_ready_percent"):
        row = profile.find("s2", HERE, metric)
        assert row is not None
        assert (row.mean, row.coverage, row.reason) == (None, 0.0, told["refused"])
    assert profile.find("s2", "machine", "cpu_busy_seconds") is not None


def with_bounds(offsets_s: Sequence[float], bounds_s: Sequence[float]) -> Any:
    found = readings(*offsets_s)
    key = next(key for key in found if key[1] is BOUND)
    found[key] = [(ns, None, one) for (ns, _, _), one in zip(found[key], bounds_s, strict=True)]
    return found


@pytest.mark.parametrize(
    ("offsets_s", "bounds_s", "refused"),
    [
        ([0.0, 5.0, 0.0, 0.0], [0.01, 9.0, 0.01, 0.01], None),  # vCenter was slow once
        ([0.0, 1.3, -1.2, 0.0], [0.01, 1.5, 1.5, 0.01], None),  # no clock need have moved
        ([0.0, 0.0, 4.0, 4.0], [0.01, 0.01, 0.5, 0.01], "its offset changed by 3.49 s"),
        ([0.0, 0.0], [9.0, 3.0], "is known to 9 s only"),
        ([0.0, 60.0], [0.01, 3.0], "its offset changed by 57 s"),  # wide, and yet it says so
        ([0.0, 2.0, 4.0], [0.01, 2.5, 0.01], "its offset changed by 3.98 s"),  # and hides none
    ],
)
def test_a_reading_counts_as_far_as_it_is_known(
    load: Load, offsets_s: list[float], bounds_s: list[float], refused: str | None
) -> None:
    _, told = align(seen(load, with_bounds(offsets_s, bounds_s)), RUN)
    why = known(told)["refused"]
    assert (refused is None) == (why is None)
    assert refused is None or refused in why


def test_without_any_clock_and_an_even_load_it_is_refused(load: Load) -> None:
    even = Load(cores=np.full(len(load.cores), 2.0), lead_s=load.lead_s, spans=load.spans)
    _, told = align(seen(even), RUN)
    assert "the clock of esx-1.example could not be read" in known(told)["refused"]


def test_the_limit_is_the_runs_own(load: Load) -> None:
    wide = readings(0.0, 0.0, bound_s=3.0)
    _, told = align(seen(load, wide), {"vcenter": {"clock_limit_s": 5.0}, "stages": []})
    assert known(told)["refused"] is None
    assert known(told)["clock"]["limit_s"] == 5.0


def test_each_host_has_its_own_clock_and_one_can_be_refused_alone(load: Load) -> None:
    raw, half = windows(load), sum(STAGES) / 2
    cut = START_NS + round(half * NS)
    other, there = "esx-2.example", f"vm:{VM}@esx-2.example"
    more = {
        **readings(0.0, 0.0),
        **readings(0.0, 0.0, source=f"esxi:{other}", bound_s=9.0),
        (there, USED): [one for one in raw if one[0] > cut],
    }
    told_samples = samples(
        guest_counter(load, Sight(), 1), {(HERE, USED): [one for one in raw if one[0] <= cut]}, more
    )
    aligned, told = align(told_samples, RUN)
    told = known(told)
    assert "esx-2.example" in told["refused"]
    assert [one["host"] for one in told["clocks"]] == [HOST, other]
    profile = correlate(aligned, load.spans)
    first, last = (profile.find(name, HERE, USED.name) for name in ("s0", "s5"))
    assert first is not None
    assert first.mean is not None
    assert last is not None
    moved = profile.find("s5", there, USED.name)
    assert moved is not None
    assert "is known to 9 s only" in (moved.reason or "")


def test_what_the_journal_says_is_told(load: Load) -> None:
    events = [
        CONNECTED, PLACED,
        {"at_ns": START_NS, "event": "unresolved", "counter": "gpu.power", "reason": "no such"},
        {"at_ns": START_NS, "event": "lost", "reason": "vc.example: connection refused"},
        {"at_ns": START_NS + 9, "event": "back"},
        {"at_ns": START_NS + 9, "event": "moved", "vm": VM, "from_host": HOST, "to_host": "esx-2"},
        {"at_ns": START_NS, "event": "gap", "entity": HERE, "from_ns": START_NS + 5 * NS,
         "to_ns": START_NS + 25 * NS},
        {**PLACED, "when": "end", "esxi_host": "esx-2"},
    ]  # fmt: skip
    _, told = align(seen(load, readings(5.0, 5.0), skew_s=5.0), RUN, events)
    told = known(told)
    assert (told["server"], told["version"], told["tls"], told["vm"]) == (
        "vc.example:443", "8.0.3", "verified by ca_file", VM,
    )  # fmt: skip
    assert "reader@vsphere.local" not in json.dumps(told)
    assert [place["esxi_host"] for place in told["vms"]] == ["esx-2"]
    assert [move["to_host"] for move in told["moves"]] == ["esx-2"]
    assert told["gaps"] == [
        {"at_ns": START_NS, "entity": HERE, "from_ns": START_NS, "to_ns": START_NS + 20 * NS}
    ]
    assert told["losses"] == [
        "vCenter did not answer for a time: vc.example: connection refused",
        "counter gpu.power: no such",
    ]


def test_a_vcenter_that_was_never_reached_is_told_by_its_absent_metrics(load: Load) -> None:
    why = "vc.example did not answer"
    gone = [Series(entity="vm", metric=USED, reason=why)]
    plain = samples(guest_counter(load, Sight(), 1), {})
    never = SampleSet(table=plain.table, metrics={**plain.metrics, USED.name: USED}, absent=gone,
                      periods=plain.periods)  # fmt: skip
    aligned, told = align(never, RUN)
    told = known(told)
    assert told["clock"]["offset_s"] is None
    row = correlate(sharpened(aligned, told["vm"]), load.spans).find("s1", "vm", USED.name)
    assert row is not None
    assert row.reason == why


def whole(load: Load, sight: Sight | None = None, skew_s: float = 37.0) -> SampleSet:
    """A skewed run with power and another VM, aligned and sharpened."""
    raw = windows(load, skew_s=skew_s)
    more = {
        **readings(skew_s, skew_s),
        (f"esxi:{HOST}", POWER): [(end, start, 300 + 25 * value) for end, start, value in raw],
        (f"vm:other@{HOST}", USED): raw,
    }
    told_samples = samples(guest_counter(load, sight or Sight(), 1), {(HERE, USED): raw}, more)
    aligned, told = align(told_samples, RUN, [CONNECTED, PLACED])
    return sharpened(aligned, known(told)["vm"])


def test_estimates_stand_beside_the_windows_and_are_near_the_truth(load: Load) -> None:
    profile = correlate(whole(load), load.spans)
    for span in load.spans:
        truth = load.total(span.start_ns, span.end_ns)
        plain = profile.find(span.stage, HERE, "vm_cpu_used_cores")
        estimate = profile.find(span.stage, HERE, "vm_cpu_used_cores_estimate")
        assert plain is not None
        assert estimate is not None
        assert (plain.unit, estimate.unit, estimate.kind) == ("cores", "cores", "window")
        assert estimate.total == pytest.approx(truth, rel=0.01)
        assert estimate.coverage == pytest.approx(1.0, abs=0.01)
        assert plain.coverage < 1.0
        joules = profile.find(span.stage, f"esxi:{HOST}", "host_power_w_estimate")
        assert joules is not None
        assert joules.total == pytest.approx(300 * span.seconds + 25 * truth, rel=0.01)
    made = whole(load).metrics["vm_cpu_used_cores_estimate"]
    assert made.meaning.startswith("estimate: ")
    assert made.integral_unit == "s"


def test_another_vm_has_no_estimate(load: Load) -> None:
    """This guest's signal says nothing of when another machine worked."""
    profile = correlate(whole(load), load.spans)
    other = f"vm:other@{HOST}"
    assert profile.find("s2", other, "vm_cpu_used_cores") is not None
    assert profile.find("s2", other, "vm_cpu_used_cores_estimate") is None


def test_the_ledger_closes_for_windows(load: Load) -> None:
    """Stages and the time between them are all windows, to a millionth."""
    run = {"stages": [{"name": span.stage} for span in load.spans]}
    entries = {one["name"]: one for one in close_ledger(whole(load), load.spans, run)}
    for name, unit in (
        (f"vm_cpu_used_cores of {HERE}, stages and between", "s"),
        (f"host_power_w of esxi:{HOST}, stages and between", "J"),
    ):
        assert entries[name]["closes"] is True
        assert entries[name]["unit"] == unit
        assert abs(entries[name]["remainder_percent"]) < 1e-4
    assert not [name for name in entries if "_estimate" in name]


def test_a_disk_is_sharpened_by_the_guests_disk_that_follows_it(load: Load) -> None:
    other = scripted(8, stages=STAGES)
    read = make_metric("disk_read_bytes", "counter", "B")
    virtual = make_metric("vm_disk_read_bytes_per_s", "window", "B/s", integral="B")
    entity = f"{HERE}/scsi0:1"
    counters = {
        ("disk:sda", read): guest_counter(other, Sight(), 8),
        ("disk:sdb", read): guest_counter(load, Sight(), 1),
    }
    more: dict[tuple[str, Metric], Sequence[Raw]] = {
        **readings(0.0, 0.0),
        (entity, virtual): windows(load),
        **{
            name: [(ts, start, value * 1e8) for ts, start, value in raw]
            for name, raw in counters.items()
        },
    }
    scaled = {
        **more,
        (entity, virtual): [(end, start, value * 1e8) for end, start, value in windows(load)],
    }
    aligned, told = align(seen(load, scaled), RUN, [CONNECTED, PLACED])
    profile = correlate(sharpened(aligned, known(told)["vm"]), load.spans)
    for span in load.spans:
        row = profile.find(span.stage, entity, "vm_disk_read_bytes_per_s_estimate")
        assert row is not None
        truth = 1e8 * load.total(span.start_ns, span.end_ns)
        assert row.total == pytest.approx(truth, rel=0.01)


# A run's folder from end to end.


def write(folder: RunFolder, told: SampleSet, spans: Sequence[Span], **run: Any) -> None:
    """A run's folder as a recorder leaves it: segments, journal and run.json."""
    folder.samples.mkdir(parents=True)
    by_kind: dict[bool, list[Sample]] = {True: [], False: []}
    known_series: dict[tuple[str, str], Series] = {}
    for row in told.table.to_pylist():
        key = row["entity"], row["metric"]
        series = known_series.setdefault(key, Series(entity=key[0], metric=told.metrics[key[1]]))
        sample = Sample(row["ts_ns"], series, row["value"], row["start_ns"])
        by_kind[row["start_ns"] is not None].append(sample)
    for windowed, rows in by_kind.items():
        named = {(one.series.entity, one.series.metric.name): one.series for one in rows}
        writer = SegmentWriter(
            folder.samples, "vcenter" if windowed else "guest", list(named.values()),
            host="here", period_s=300.0 if windowed else 0.1,
        )  # fmt: skip
        writer.write(rows)
        writer.close()
    end_ns = spans[-1].end_ns
    folder.write(
        {
            "schema": RUN_SCHEMA, "run_id": "20261124-020000-3fa9c1", "name": "scripted",
            "status": "finished", "started_ns": START_NS, "ended_ns": end_ns, "host": "ml-1",
            "seed": 7, "clock": {"offset_start_ns": 0, "offset_end_ns": 0}, "losses": [],
            "environment": {"cpu": {"count": 8}}, "recipe": RUN["recipe"],
            "stages": [
                {"name": span.stage, "status": "finished", "start_ns": span.start_ns,
                 "end_ns": span.end_ns, "reused_from": None, "reason": None, "rusage": None}
                for span in spans
            ],
            **run,
        }
    )  # fmt: skip


def test_a_runs_folder_gets_rows_estimates_flags_and_ledger(tmp_path: Path, load: Load) -> None:
    folder = RunFolder(tmp_path / "run")
    write(folder, seen(load, readings(11.0, 11.0), skew_s=11.0), load.spans)
    (folder.samples / "vcenter.jsonl").write_text(
        "\n".join(json.dumps(one) for one in (CONNECTED, PLACED)) + '\n{"at_ns": 17, "ev'
    )
    finish(folder)
    document = json.loads(folder.profile_json.read_text())
    jsonschema.validate(document, SCHEMA)
    told = document["hypervisor"]
    assert (told["server"], told["refused"]) == ("vc.example:443", None)
    # Ready is half of the cores used here, so that every stage is above 5 % or not by its load.
    flagged = {one["stage"] for one in told["contention"]}
    rows = {
        stage["name"]: next(r for r in stage["metrics"] if r["metric"] == "vm_cpu_ready_percent")
        for stage in document["stages"]
    }
    assert flagged == {name for name, row in rows.items() if row["mean"] > 5.0}
    assert all(0.0 < row["coverage"] < 1.0 for row in rows.values())
    assert Profile.from_json(document).hypervisor == told
    entries = {one["name"]: one["closes"] for one in document["ledger"]}
    assert entries[f"vm_cpu_used_cores of {HERE}, stages and between"] is True
    before = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    finish(folder)
    assert {p.name: p.read_bytes() for p in folder.path.iterdir() if p.is_file()} == before


def test_without_a_vcenter_the_key_is_not_there(tmp_path: Path, load: Load) -> None:
    folder = RunFolder(tmp_path / "run")
    plain = samples(guest_counter(load, Sight(), 1), {})
    write(folder, plain, load.spans)
    for empty in folder.samples.glob("vcenter-*"):
        empty.unlink()
    finish(folder)
    document = json.loads(folder.profile_json.read_text())
    assert "hypervisor" not in document
    # What is written is what plain correlation of what was recorded gives, bit for bit.
    rows = list(correlate(read_samples(folder.samples), load.spans).rows)
    kept = [row for row in Profile.from_json(document).rows if row.entity != "data"]
    assert kept == rows


def test_a_stage_shorter_than_a_window_shows_its_coverage_alone(load: Load) -> None:
    span = load.spans[2]
    short = Span(stage="short", start_ns=span.start_ns, end_ns=span.start_ns + 15 * NS)
    profile = correlate(whole(load), [short])
    plain = profile.find("short", HERE, "vm_cpu_used_cores")
    estimate = profile.find("short", HERE, "vm_cpu_used_cores_estimate")
    assert plain is not None
    assert estimate is not None
    assert (plain.mean, plain.total) == (None, None)
    assert 0.0 < plain.coverage < 1.0
    assert "shorter than one window of 20 s" in (plain.reason or "")
    truth = load.total(short.start_ns, short.end_ns)
    assert estimate.total == pytest.approx(truth, rel=0.05)  # and is marked as an estimate
    document = profile.to_json({"stages": [{"name": "short", "end_ns": short.end_ns}]})
    metric = next(m for m in document["stages"][0]["metrics"] if m["metric"] == plain.metric)
    validator = jsonschema.Draft202012Validator(
        {**SCHEMA, "$ref": "#/$defs/metric", "type": "object", "required": [], "properties": {},
         "additionalProperties": True}
    )  # fmt: skip
    validator.validate(metric)


def test_an_hour_of_samples_costs_little(load: Load) -> None:
    """10 Hz, an hour, ten series of windows: aligned and sharpened within 2 s."""
    import time

    long = scripted(1, stages=[500.0] * 7)
    raw = windows(long, skew_s=5.0)
    names = ["vm_cpu_used_cores", "vm_cpu_usage_percent"]
    series: dict[tuple[str, Metric], Sequence[Raw]] = {
        (HERE, make_metric(name, "window", "cores", integral="s")): raw for name in names
    }
    for disk in range(8):
        metric = make_metric("vm_disk_read_bytes_per_s", "window", "B/s", integral="B")
        series[f"{HERE}/scsi0:{disk}", metric] = raw
    read = make_metric("disk_read_bytes", "counter", "B")
    counter = guest_counter(long, Sight(), 1)
    more = {**readings(5.0, 5.0), ("disk:sda", read): counter}
    told_samples = samples(counter, series, more)
    started = time.process_time()
    aligned, told = align(told_samples, RUN)
    made = sharpened(aligned, known(told)["vm"])
    assert time.process_time() - started < 2.0
    count = pa.compute.sum(pa.compute.equal(made.table["metric"], "vm_cpu_used_cores_estimate"))
    assert count.as_py() > 34_000
    assert math.isfinite(float(made.table["value"].to_numpy().sum()))

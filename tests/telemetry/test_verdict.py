"""The rules of the verdicts on made-up profiles; the injected causes are in test_verdict_causes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.headlines import headlines
from telemetry.profile import Profile, Row
from telemetry.samples import Kind
from telemetry.verdict import table, verdicts
from telemetry.verdict_rules import RULES
from telemetry.verdict_thresholds import THRESHOLDS

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCHEMA = json.loads((DOCS / "profile.schema.json").read_text())
CPU, READY = ("stage", "cpu_busy_seconds"), ("stage", "process_ready_count")
DISK = ("stage", "process_waiting_for_disk_count")
READ, WRITE = ("stage", "io_read_bytes"), ("stage", "io_write_bytes")
CALLS = ("stage", "io_read_calls_bytes")
WAIT, FAULTS = ("app", "app_step_data_wait_seconds"), ("stage", "page_faults_major")
HELD, PERIODS = ("stage", "cgroup_cpu_throttled_periods"), ("stage", "cgroup_cpu_periods")
COUNT, BUSY = ("machine", "cpu_count"), ("machine", "cpu_busy_seconds")
STEAL, PSI_CPU = ("machine", "cpu_steal_seconds"), ("machine", "psi_cpu_some_seconds")
PSI_MEM, PSI_IO = ("machine", "psi_memory_some_seconds"), ("machine", "psi_io_some_seconds")
RX, TX = ("net:eth0", "net_rx_bytes"), ("net:eth0", "net_tx_bytes")
LO_RX, LO_TX = ("net:lo", "net_rx_bytes"), ("net:lo", "net_tx_bytes")
GPU, GPU_OWN = ("gpu:0", "gpu_util_percent"), ("gpu:0", "gpu_run_sm_percent")
GPU_HELD, COPIED = ("gpu:0", "gpu_run_mem_bytes"), ("app", "app_host_to_device_bytes")
DEVICE = ("disk:vda", "disk_busy_seconds")
TOOK_R, TOOK_W = ("disk:vda", "disk_read_wait_seconds"), ("disk:vda", "disk_write_wait_seconds")
ONLY_DISK, PACED = ("stage", "process_only_disk_wait_percent"), ("app", "app_paced_seconds")
GROUP = ("cgroup", "cgroup_cpu_seconds")
GPU_ALL = ("gpu:0", "gpu_processes_sm_percent")
GAUGES = {READY, DISK, ONLY_DISK, COUNT, GPU, GPU_ALL, GPU_OWN, GPU_HELD}
SECONDS = 10

QUIET = {
    CPU: 0.0, READY: 0.0, DISK: 0.0, READ: 0.0, WRITE: 0.0, CALLS: 0.0, FAULTS: 0.0, HELD: 0.0,
    PERIODS: 0.0, COUNT: 4.0, BUSY: 0.1, STEAL: 0.0, PSI_CPU: 0.0, PSI_MEM: 0.0, PSI_IO: 0.0,
    RX: 0.0, TX: 0.0, DEVICE: 0.0,
}  # fmt: skip
"""Means over a stage of 10 s on 4 CPUs in which nothing happened."""
Means = dict[tuple[str, str], float]


def row(key: tuple[str, str], mean: float, coverage: float = 1.0, stage: str = "s") -> Row:
    kind: Kind = "gauge" if key in GAUGES else "counter"
    return Row(
        stage=stage, entity=key[0], metric=key[1], unit="%" if key[0] == "gpu:0" else "1",
        kind=kind, mean=mean, p50=mean, p95=mean, max=mean, coverage=coverage,
        total=None if kind == "gauge" else mean * SECONDS,
    )  # fmt: skip


def a_run(seconds: float = SECONDS, **more: Any) -> dict[str, Any]:
    stage = {"name": "s", "status": "finished", "start_ns": 1, "end_ns": 1 + round(seconds * 1e9),
             "reused_from": None, "reason": None}  # fmt: skip
    return {"stages": [stage], **more}


def judged(
    means: Means, run: dict[str, Any] | None = None, more: Iterable[Row] = (), **hypervisor: Any
) -> dict[str, Any]:
    rows = (*(row(key, mean) for key, mean in means.items()), *more)
    return verdicts(Profile(rows=rows, hypervisor=hypervisor or None), run or a_run())[0]


ONE_THREAD = {CPU: 1.0, READY: 1.0, BUSY: 1.05}
CASES: list[tuple[str, str, Means]] = [
    ("data-storage", "data-bound", {WAIT: 0.8, DISK: 0.75, CPU: 0.2, READY: 0.2, READ: 5e6}),
    ("data-decoding", "data-bound", {WAIT: 0.9, **ONE_THREAD}),
    ("data-decoding", "data-bound", {WAIT: 0.9, CPU: 0.2, READY: 1.0, HELD: 9.0, PERIODS: 10.0}),
    ("data-decoding", "data-bound", {WAIT: 0.6, CPU: 7.0, READY: 7.2, DISK: 0.4, COUNT: 8.0}),
    ("data-storage", "data-bound", {WAIT: 0.9, CPU: 0.7, READY: 0.7, DISK: 5.0, READ: 5e6}),
    ("data-machine", "data-bound", {WAIT: 0.9, DISK: 0.4, CPU: 0.1, READ: 5e6, PSI_IO: 0.9}),
    ("data-machine", "data-bound", {WAIT: 0.9, CPU: 0.1, READ: 5e6, DEVICE: 0.5}),
    ("data-machine", "data-bound", {WAIT: 0.9, CPU: 0.1, READ: 5e6, PSI_IO: 0.05, BUSY: 15.0}),
    ("data-starved", "data-bound", {WAIT: 0.7, CPU: 0.3, READY: 0.3}),
    ("data-starved", "data-bound", {WAIT: 0.9, CPU: 0.1, PSI_IO: 0.9}),  # a neighbour's disk
    ("data-starved", "data-bound", {WAIT: 0.9, CPU: 0.1, READ: 5e6, PSI_IO: 0.3}),
    ("data-starved", "data-bound", {WAIT: 0.9, CPU: 0.1, READ: 5e6, PSI_IO: 0.01, BUSY: 32.0}),
    ("data-starved", "data-bound", {WAIT: 0.9, CPU: 0.1, READ: 5e5, PSI_IO: 0.9}),  # its own files
    ("gpu-busy", "GPU-bound", {GPU: 93.0, GPU_OWN: 88.0, **ONE_THREAD}),
    ("gpu-busy", "GPU-bound", {GPU: 93.0, GPU_HELD: 2e9, **ONE_THREAD}),
    ("gpu-busy", "GPU-bound", {GPU: 93.0, COPIED: 1e6, **ONE_THREAD}),
    ("gpu-neighbour", "contention", {GPU: 99.0, GPU_ALL: 96.0, GPU_OWN: 45.0, **ONE_THREAD}),
    ("cpu-one", "CPU-bound", {GPU: 99.0, GPU_ALL: 96.0, GPU_OWN: 4.0, **ONE_THREAD}),
    ("cpu-one", "CPU-bound", {GPU: 70.0, GPU_ALL: 70.0, GPU_OWN: 45.0, **ONE_THREAD}),
    ("gpu-busy", "GPU-bound", {GPU: 99.0, GPU_ALL: 99.0, GPU_OWN: 85.0, **ONE_THREAD}),
    ("memory-stall", "memory-bound", {PSI_MEM: 0.4, FAULTS: 900.0, DISK: 0.8, READ: 4e6}),
    (
        "memory-stall",
        "memory-bound",
        {PSI_MEM: 0.08, FAULTS: 900.0, DISK: 0.8, READ: 4e6, CPU: 0.1, BUSY: 8.1, COUNT: 16.0},
    ),
    ("cpu-quota", "CPU-bound", {CPU: 0.3, READY: 1.0, HELD: 9.0, PERIODS: 10.0}),
    ("cpu-quota", "CPU-bound", {CPU: 0.4, GROUP: 0.41, HELD: 10.0, PERIODS: 10.0}),  # its threads
    ("steal", "contention", {**ONE_THREAD, STEAL: 1.2, BUSY: 2.0}),
    ("steal", "contention", {CPU: 0.4, READY: 1.0, BUSY: 0.45, STEAL: 0.6, COUNT: 16.0}),
    ("neighbour", "contention", {CPU: 0.5, READY: 1.0, BUSY: 4.0, PSI_CPU: 0.9}),
    ("neighbour", "contention", {CPU: 2.0, READY: 4.0, BUSY: 4.0, PSI_CPU: 0.9}),
    ("disk-read", "disk-bound", {CPU: 0.05, DISK: 0.9, READ: 5e6}),
    ("disk-write", "disk-bound", {CPU: 0.05, DISK: 0.9, WRITE: 5e6, READ: 1e6}),
    ("cpu-all", "CPU-bound", {CPU: 3.9, READY: 4.0, BUSY: 4.0, PSI_CPU: 0.9}),
    ("cpu-one", "CPU-bound", ONE_THREAD),
    ("cpu-one", "CPU-bound", {**ONE_THREAD, BUSY: 4.0, PSI_CPU: 0.9}),  # it had a CPU of its own
    ("cpu-some", "CPU-bound", {CPU: 2.2, READY: 2.3, BUSY: 2.3}),
    ("disk-machine", "disk-bound", {CPU: 0.1, READY: 0.1, READ: 5e6, DEVICE: 0.9}),
    (
        "disk-machine",
        "disk-bound",
        {CPU: 0.1, READY: 0.1, READ: 5e6, DEVICE: 0.9, TOOK_R: 2.0, TOOK_W: 0.0},
    ),
    (
        "idle",
        "idle",  # ticks in which requests began; all together they took a hundredth
        {CPU: 0.1, READY: 0.1, READ: 5e6, DEVICE: 0.9, TOOK_R: 0.01, TOOK_W: 0.0},
    ),
    ("network", "network-bound", {CPU: 0.1, READY: 0.1, RX: 12e6}),
    ("idle", "idle", {CPU: 0.02, READY: 0.01}),
    ("mixed", "unknown", {CPU: 0.3, READY: 0.35, DISK: 0.3, READ: 1e6}),
]


def with_scheduler() -> dict[str, Any]:
    run = a_run()
    run["stages"][0]["scheduler"] = "tcp://192.0.2.10:8786"
    return run


@pytest.mark.parametrize(
    ("rule", "verdict", "means"),
    [
        ("cluster", "unknown", {CPU: 0.02, READY: 0.01}),
        ("cluster", "unknown", {CPU: 0.1, READY: 0.1, RX: 12e6}),
        ("cluster", "unknown", {CPU: 0.1, READY: 0.1, READ: 5e6, DEVICE: 0.9}),
        ("cpu-one", "CPU-bound", ONE_THREAD),
        ("mixed", "unknown", {CPU: 0.3, READY: 0.35, DISK: 0.3, READ: 1e6}),
    ],
)
def test_a_stage_whose_work_others_did_is_not_called_idle(
    rule: str, verdict: str, means: Means
) -> None:
    found = judged(QUIET | means, with_scheduler())
    assert (found["rule"], found["verdict"], found["also"]) == (rule, verdict, [])
    assert ("the workers of tcp://192.0.2.10:8786" in found["sentence"]) == (rule == "cluster")
    assert found["missing"] == [
        "what the workers of tcp://192.0.2.10:8786 did, to whom its work went: nobody watched them"
    ]


@pytest.mark.parametrize(("rule", "verdict", "means"), CASES)
def test_each_cause_has_its_rule(rule: str, verdict: str, means: Means) -> None:
    found = judged(QUIET | means)
    assert (found["rule"], found["verdict"]) == (rule, verdict), found["sentence"]
    assert not found["missing"]


def test_every_rule_is_somewhere_the_one_that_decides() -> None:
    known = {rule for rule, _, _ in CASES} | {"hypervisor", "vm-limit"}  # test_verdict_vm
    known |= {"cluster"}  # of a stage that names a scheduler
    assert {rule.id for rule in RULES} | {"mixed"} == known


@pytest.mark.parametrize(
    ("means", "not_rule"),
    [
        ({PSI_MEM: 0.9, **ONE_THREAD}, "memory-stall"),  # a neighbour's memory, no faults here
        ({PSI_MEM: 0.05, FAULTS: 900.0, **ONE_THREAD}, "memory-stall"),
        ({HELD: 9.0, PERIODS: 10.0, CPU: 0.1, READY: 0.1}, "cpu-quota"),  # it wanted none
        ({HELD: 9.0, PERIODS: 10.0, CPU: 0.1, GROUP: 0.5}, "cpu-quota"),  # others used it up
        ({HELD: 9.0, PERIODS: 10.0, CPU: 0.1, GROUP: 0.01}, "cpu-quota"),  # not its group
        ({PSI_MEM: 0.015, FAULTS: 900.0, BUSY: 40.0, COUNT: 64.0}, "memory-stall"),
        ({HELD: 0.2, PERIODS: 10.0, **ONE_THREAD}, "cpu-quota"),
        ({STEAL: 2.0, BUSY: 2.0}, "steal"),
        ({**ONE_THREAD, STEAL: 0.3, BUSY: 3.6}, "steal"),
        ({STEAL: 1.2, BUSY: 14.0, COUNT: 16.0, CPU: 0.9, READY: 1.0}, "steal"),  # of 15 wanted
        ({BUSY: 4.0, PSI_CPU: 0.9}, "neighbour"),
        ({CPU: 4.0, READY: 8.0, BUSY: 4.0, PSI_CPU: 1.0}, "neighbour"),  # in its own way only
        ({DISK: 0.9}, "disk-read"),  # nothing moved: it waited for something else
        ({DISK: 0.9, READ: 5e6, CPU: 1.5, READY: 2.0}, "disk-read"),
        ({DEVICE: 1.0, PSI_IO: 1.0, CPU: 0.1}, "disk-machine"),  # a neighbour's disk
        ({LO_RX: 9e8, LO_TX: 9e8, CPU: 0.2}, "network"),
        ({RX: 12e6, **ONE_THREAD}, "network"),  # it worked while something was received
        ({GPU: 99.0, GPU_OWN: 3.0, **ONE_THREAD}, "gpu-busy"),  # another run's kernels
        ({GPU: 99.0, GPU_OWN: 3.0, COPIED: 1e6, **ONE_THREAD}, "gpu-busy"),
        ({GPU: 99.0, GPU_HELD: 0.0, **ONE_THREAD}, "gpu-busy"),
        ({GPU: 99.0, **ONE_THREAD}, "gpu-busy"),
        ({WAIT: 0.4, **ONE_THREAD}, "data-decoding"),
    ],
)
def test_what_is_not_the_stages_own_decides_nothing(means: Means, not_rule: str) -> None:
    found = judged(QUIET | means)
    assert not_rule not in {found["rule"], *(one["rule"] for one in found["also"])}


def test_other_rules_that_hold_are_told_beside() -> None:
    slowed = {WAIT: 0.9, CPU: 0.25, READY: 1.0, HELD: 9.0, PERIODS: 10.0}
    found = judged(QUIET | slowed)
    assert found["rule"] == "data-decoding"
    assert [one["rule"] for one in found["also"]] == ["cpu-quota"]
    decoders = judged(QUIET | {WAIT: 0.6, CPU: 7.0, READY: 7.2, DISK: 0.4, COUNT: 8.0})
    assert [one["rule"] for one in decoders["also"]] == ["cpu-all"]
    reads = judged(QUIET | {CPU: 1.6, READY: 1.6, DISK: 0.4, ONLY_DISK: 40.0, READ: 5e6})
    assert (reads["rule"], [one["rule"] for one in reads["also"]]) == ("cpu-some", ["disk-share"])
    some = judged(QUIET | ONE_THREAD | {WAIT: 0.3})
    assert (some["rule"], [one["rule"] for one in some["also"]]) == ("cpu-one", ["data-share"])


@pytest.mark.parametrize(("median", "rule"), [(0.0, "disk-read"), (3.2, "cpu-some")])
def test_what_first_reads_and_then_computes_waits_for_its_disk(median: float, rule: str) -> None:
    """Threads that compute behind a first one that waits show in the median of the CPUs in use."""
    means = QUIET | {READY: 1.6, DISK: 0.6, ONLY_DISK: 60.0, READ: 5e6}
    means.pop(CPU)
    found = judged(means, more=[replace(row(CPU, 3.2), p50=median)])
    assert found["rule"] == rule
    assert [one["rule"] for one in found["also"]] == (
        ["cpu-some"] if rule == "disk-read" else ["disk-share"]
    )


@pytest.mark.parametrize(
    ("usable", "rule", "says"),
    [
        (4, "cpu-all", "it used 3.90 of the 4 CPUs that the run may use, of the machine's 64 CPUs"),
        (64, "cpu-some", "it used 3.90 CPUs"),
        (None, "cpu-some", "it used 3.90 CPUs"),
    ],
)
def test_all_cpus_are_those_that_the_run_may_use(usable: int | None, rule: str, says: str) -> None:
    means = QUIET | {CPU: 3.9, READY: 4.0, BUSY: 4.0, COUNT: 64.0}
    found = judged(means, a_run(environment={"cpu_usable": usable}))
    assert (found["rule"], found["sentence"]) == (rule, says)


def test_a_load_that_comes_by_the_clock_is_said() -> None:
    told = judged(QUIET | ONE_THREAD | {PACED: 0.8})
    assert told["rule"] == "cpu-one"
    assert "for 80 % of its time its load came by a timetable" in told["sentence"]
    assert PACED in {(one["entity"], one["metric"]) for one in told["evidence"]}
    assert "timetable" not in judged(QUIET | ONE_THREAD | {PACED: 0.3})["sentence"]


# --- what is missing ------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [CPU, READY, DISK])
def test_without_what_every_rule_rests_on_there_is_no_verdict(key: tuple[str, str]) -> None:
    means = {one: mean for one, mean in (QUIET | ONE_THREAD).items() if one != key}
    found = judged(means)
    assert (found["verdict"], found["rule"], found["evidence"]) == ("unknown", "missing", [])
    assert found["sentence"].count(key[1]) == 1
    assert f"not known: {key[1]} of stage was not recorded" in found["sentence"]


def test_a_figure_that_covers_little_is_not_used() -> None:
    rows = [row(key, mean, 0.4 if key == CPU else 1.0) for key, mean in QUIET.items()]
    found = verdicts(Profile(rows=tuple(rows)), a_run())[0]
    assert found["verdict"] == "unknown"
    assert "cpu_busy_seconds of stage covers 40 % of the stage" in found["sentence"]


def test_a_stage_that_is_too_short_is_not_judged() -> None:
    rows = tuple(row(key, mean) for key, mean in (QUIET | ONE_THREAD).items())
    found = verdicts(Profile(rows=rows), a_run(seconds=0.6))[0]
    assert found["verdict"] == "unknown"
    assert "the stage took 0.60 s" in found["sentence"]


def test_what_could_not_be_judged_is_said() -> None:
    """A kernel without PSI says nothing of memory and of neighbours, and the rest stands."""
    kept = {key: mean for key, mean in (QUIET | ONE_THREAD).items() if "psi_" not in key[1]}
    rows = [row(key, mean) for key, mean in kept.items()]
    rows.append(Row(stage="s", entity=PSI_MEM[0], metric=PSI_MEM[1], unit="s", kind="counter",
                    reason="/proc/pressure/memory: No such file or directory"))  # fmt: skip
    found = verdicts(Profile(rows=tuple(rows)), a_run())[0]
    assert found["rule"] == "cpu-one"
    assert found["missing"] == [
        "memory: /proc/pressure/memory: No such file or directory",
        "neighbours: psi_cpu_some_seconds of machine was not recorded",
    ]


def test_a_stage_that_was_not_measured_has_none() -> None:
    run = a_run()
    run["stages"].append({**run["stages"][0], "name": "reused", "start_ns": None, "end_ns": None})
    assert [one["stage"] for one in verdicts(Profile(rows=()), run)] == ["s"]


# --- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "storage", "source"),
    [
        (50e6, 50e6, "storage"),
        (50e6, 0.0, "cache"),
        (50e6, 20e6, "both"),
        (0.0, 50e6, "storage"),  # mapped files are read without a call
        (0.5e6, 0.1e6, "little"),
    ],
)
def test_where_the_data_came_from(calls: float, storage: float, source: str) -> None:
    found = judged(QUIET | {CALLS: calls, READ: storage})["io"]
    assert found["source"] == source
    assert found["witnesses"][0]["read_bytes"] == calls * SECONDS
    assert found["witnesses"][1]["read_bytes"] == storage * SECONDS


def test_witnesses_that_are_missing_say_why() -> None:
    means = {key: mean for key, mean in QUIET.items() if key != CALLS}
    io = judged(means)["io"]
    assert io["source"] == "unknown"
    names = {one["name"]: one for one in io["witnesses"]}
    assert names["application"]["read_bytes"] is None
    assert names["application"]["reason"] == "io_read_calls_bytes of stage was not recorded"
    assert names["hypervisor"]["reason"] == "no vCenter was asked"
    assert names["guest device"]["reason"] == "no block device was recorded"


def test_devices_are_summed() -> None:
    means: Means = {}
    for disk in ("disk:vda", "disk:vdb"):
        means |= {(disk, "disk_read_bytes"): 1e6, (disk, "disk_write_bytes"): 2e6}
    names = {one["name"]: one for one in judged(QUIET | means)["io"]["witnesses"]}
    assert (names["guest device"]["read_bytes"], names["guest device"]["write_bytes"]) == (2e7, 4e7)
    means.pop(("disk:vdb", "disk_write_bytes"))
    little = row(("disk:vdb", "disk_write_bytes"), 2e6, 0.4)
    names = {one["name"]: one for one in judged(QUIET | means, more=[little])["io"]["witnesses"]}
    assert (names["guest device"]["read_bytes"], names["guest device"]["write_bytes"]) == (
        2e7,
        None,
    )
    assert names["guest device"]["reason"] == (
        "disk_write_bytes of disk:vdb covers 40 % of the stage"
    )


# --- whatever comes -------------------------------------------------------------------------------

ANY = st.fixed_dictionaries(
    {key: st.floats(0, 8) for key in QUIET}
    | {
        COUNT: st.integers(1, 8).map(float),
        GPU: st.floats(0, 100),
        GPU_HELD: st.floats(0, 1e10),
        WAIT: st.floats(0, 1),
        LO_RX: st.floats(0, 1e9),
        ONLY_DISK: st.floats(0, 100),
        GROUP: st.floats(0, 8),
        PACED: st.floats(0, 1),
        TOOK_R: st.floats(0, 8),
        TOOK_W: st.floats(0, 8),
    }
)


@given(means=ANY, seed=st.integers(0, 99), dropped=st.sets(st.sampled_from(sorted(QUIET))))
def test_a_verdict_rests_on_the_profiles_rows_alone(
    means: Means, seed: int, dropped: set[tuple[str, str]]
) -> None:
    rows = [row(key, mean) for key, mean in means.items() if key not in dropped]
    profile = Profile(rows=tuple(rows))
    found = verdicts(profile, a_run())
    random.Random(seed).shuffle(rows)
    assert verdicts(Profile(rows=tuple(rows)), a_run()) == found
    for one in found[0]["evidence"]:
        known = profile.find("s", one["entity"], one["metric"])
        assert known is not None
        assert one["value"] == getattr(known, one["figure"])
    assert (found[0]["verdict"] == "unknown") or found[0]["evidence"]
    schema = {"$ref": "#/$defs/verdict", "$defs": SCHEMA["$defs"]}
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(found[0])))


@given(means=ANY)
def test_another_stages_rows_change_nothing(means: Means) -> None:
    rows = tuple(row(key, mean) for key, mean in (QUIET | ONE_THREAD).items())
    others = tuple(row(key, mean, stage="t") for key, mean in means.items())
    assert verdicts(Profile(rows=rows + others), a_run()) == verdicts(Profile(rows=rows), a_run())


def test_who_waits_for_what_is_no_block_device_is_told_so() -> None:
    """FUSE: a process waits as for a disk, and the kernel counts no bytes of storage."""
    found = judged(QUIET | {CPU: 0.05, READY: 0.05, DISK: 0.9})
    assert (found["verdict"], found["rule"]) == ("unknown", "mixed")
    assert "0.90 processes waiting for a disk" in found["sentence"]
    assert found["sentence"].endswith(
        "no storage moved for it meanwhile: FUSE, a network file system or a driver keeps a "
        "process waiting in the same way"
    )
    assert "FUSE" not in judged(QUIET | {CPU: 0.3, READY: 0.35, DISK: 0.3, READ: 1e6})["sentence"]


def test_the_documentation_has_the_tables_of_the_code() -> None:
    page = (DOCS / "verdicts.md").read_text()
    assert "\n".join(table()) in page
    assert all(one.source for one in THRESHOLDS.values())


def test_the_table_of_stages_has_the_verdict() -> None:
    rows = tuple(row(key, mean) for key, mean in (QUIET | ONE_THREAD).items())
    run = a_run()
    profile = Profile(rows=rows, verdicts=tuple(verdicts(Profile(rows=rows), run)))
    assert headlines(profile, run)[0].verdict == "CPU-bound"
    assert headlines(Profile(rows=rows), run)[0].verdict == ""

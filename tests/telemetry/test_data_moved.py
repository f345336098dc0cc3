"""What each stage moved is what the profile's rows say, and what was not measured is never 0."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.attribution import correlate
from telemetry.collectors.gpu_metrics import GPM_METRICS
from telemetry.data_moved import (
    ON_CPU,
    UNTOLD_COPIES,
    UNTOLD_EPOCH_BYTES,
    UNTOLD_EPOCHS,
    data_moved,
)
from telemetry.profile import Profile, Row
from telemetry.runfolder import Span
from telemetry.samples import Metric
from tests.telemetry.oracle import Raw, make_samples

START_NS = 1_795_485_600_000_000_000
ROWS = (
    *(("stage", f"io_{way}_bytes") for way in ("read_calls", "read", "write_calls", "write")),
    *(("machine", f"net_{way}_bytes") for way in ("rx", "tx")),
    *(("app", f"app_{way}_bytes") for way in ("host_to_device", "device_to_host")),
    *((gpu, f"gpm_pcie_{way}_bytes_per_s") for gpu in ("gpu:0", "gpu:1") for way in ("rx", "tx")),
    *(("data", f"bytes_{way}") for way in ("in", "out")),
)
NO_DRIVER = "no NVIDIA driver here"


def row(
    entity: str, metric: str, total: float | None, reason: str | None = None, **more: Any
) -> Row:
    seen = {"coverage": 0.0 if reason else 0.9, "total_share": None if reason else 1.0}
    return Row(
        stage="training", entity=entity, metric=metric, unit="B", kind="counter",
        total=total, reason=reason, **(seen | more),
    )  # fmt: skip


def run(summary: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "environment": {"cpu": {"model": "AMD EPYC", "count": 2}},
        "stages": [
            {"name": "ingest", "start_ns": None, "end_ns": None},
            {
                "name": "training",
                "start_ns": START_NS,
                "end_ns": START_NS + 10**10,
                "summary": summary or {},
            },
            {"name": "serving", "start_ns": START_NS + 10**10, "end_ns": None},
        ],
    }


def moved(*rows: Row, summary: dict[str, Any] | None = None) -> dict[str, Any]:
    (entry,) = data_moved(Profile(rows=rows), run(summary))
    assert entry["stage"] == "training"  # the others were reused, or have no end
    return entry


def by_source(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {one["source"]: one for one in entry["moved"]}
    assert len(found) == len(entry["moved"])
    return found


def test_what_was_moved_in_a_part_of_the_stage_is_not_told_as_the_whole() -> None:
    part = {"coverage": 0.4, "total_share": 0.4}
    rows = [
        row("machine", "net_rx_bytes", 7e6, **part),
        row("app", "app_epochs", 4.0, **part),
    ]
    entry = moved(*rows)
    (received,) = (one for one in entry["moved"] if one["what"] == "received")
    assert (received["bytes"], received["coverage"]) == (None, 0.4)
    assert received["reason"] == "it was seen in 40 % of the stage alone"
    assert entry["epochs"] is None
    assert "epochs: it was seen in 40 % of the stage alone" in entry["reason"]


BYTES = st.floats(0, 1e18)
FOUND = st.dictionaries(
    st.sampled_from(ROWS), st.one_of(BYTES, st.sampled_from(["no samples", "refused"]))
)


@given(FOUND)
def test_every_total_is_the_rows_and_what_is_absent_is_null_with_a_reason(
    found: dict[tuple[str, str], float | str],
) -> None:
    rows = [
        row(*key, None, value) if isinstance(value, str) else row(*key, value)
        for key, value in found.items()
    ]
    entry = moved(*rows)
    sources = by_source(entry)
    assert {f"{entity} {metric}" for entity, metric in found} <= sources.keys()
    for source, one in sources.items():
        value = found.get(tuple(source.split(" ")))  # type: ignore[arg-type]
        if isinstance(value, float):
            assert (one["bytes"], one["reason"], one["coverage"]) == (value, None, 0.9)
        else:
            assert (one["bytes"], one["coverage"]) == (None, 0.0)
            assert one["reason"]
            assert one["reason"] == (value or one["reason"])


@given(BYTES, st.integers(1, 1000), st.floats(1, 1e18))
def test_bytes_per_epoch_are_what_each_pass_took_and_not_what_the_stage_read(
    taken: float, epochs: int, input_bytes: float
) -> None:
    entry = moved(
        row("stage", "io_read_calls_bytes", 12_345.0),
        row("app", "app_epoch_bytes", taken),
        row("app", "app_epochs", float(epochs)),
        row("data", "bytes_in", input_bytes),
        row("data", "growth_ratio", None, mean=2.5),
    )
    assert entry["epochs"] == epochs
    assert entry["bytes_per_epoch"] * epochs == pytest.approx(taken)
    assert entry["bytes_per_epoch_of_input"] * input_bytes == pytest.approx(
        entry["bytes_per_epoch"]
    )
    assert (entry["growth_ratio"], entry["reason"]) == (2.5, None)


def test_what_the_bus_carried_is_the_integral_of_its_windows() -> None:
    end_ns = START_NS + 10**10
    told = {metric.name: metric for metric in GPM_METRICS}
    windows: dict[tuple[str, Metric], list[Raw]] = {}
    for way, rate in (("rx", 3e9), ("tx", 5e8)):
        ends = range(START_NS + 200_000_000, end_ns + 400_000_000, 200_000_000)
        windows["gpu:0", told[f"gpm_pcie_{way}_bytes_per_s"]] = [
            (ts, ts - 200_000_000, rate) for ts in ends
        ]
    span = Span(stage="training", start_ns=START_NS, end_ns=end_ns)
    (entry,) = data_moved(correlate(make_samples(windows, period_s=0.2), [span]), run())
    sources = by_source(entry)
    for way, rate in (("rx", 3e9), ("tx", 5e8)):
        one = sources[f"gpu:0 gpm_pcie_{way}_bytes_per_s"]
        assert (one["bytes"], one["reason"]) == (pytest.approx(10 * rate), None)


def test_a_stage_without_passes_or_growth_says_so() -> None:
    entry = moved(
        row("stage", "io_read_calls_bytes", 1e6),
        row("data", "growth_ratio", None, "ingest does not say how many bytes it wrote"),
    )
    assert entry["growth_ratio"] is None
    assert entry["epochs"] is None
    assert entry["bytes_per_epoch"] is None
    assert entry["bytes_per_epoch_of_input"] is None
    assert entry["reason"] == (
        f"growth: ingest does not say how many bytes it wrote; epochs: {UNTOLD_EPOCHS}"
    )


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        pytest.param((), UNTOLD_EPOCH_BYTES, id="a run before there was the counter"),
        ((row("app", "app_epoch_bytes", None, "every reading failed"),), "every reading failed"),
    ],
)
def test_passes_that_do_not_say_what_they_took_have_no_bytes(
    rows: tuple[Row, ...], reason: str
) -> None:
    entry = moved(
        row("stage", "io_read_calls_bytes", 1e9),
        row("app", "app_epochs", 3.0),
        row("data", "growth_ratio", None, mean=1.0),
        *rows,
    )
    assert (entry["epochs"], entry["bytes_per_epoch"]) == (3.0, None)
    assert entry["bytes_per_epoch_of_input"] is None
    assert entry["reason"] == f"bytes per epoch: {reason}"


def test_the_network_and_the_bus_are_of_the_machine() -> None:
    sources = by_source(moved(*(row(*key, 1.0) for key in ROWS)))
    of_machine = {source for source, one in sources.items() if one["scope"] == "machine"}
    assert of_machine == {
        "machine net_rx_bytes",
        "machine net_tx_bytes",
        *(f"gpu:{n} gpm_pcie_{way}_bytes_per_s" for n in (0, 1) for way in ("rx", "tx")),
    }
    assert {one["scope"] for one in sources.values()} == {"machine", "stage"}
    to_gpu = [one["source"] for one in moved(*(row(*key, 1.0) for key in ROWS))["moved"]
              if one["what"] == "to the GPU"]  # fmt: skip
    assert to_gpu == [
        "app app_host_to_device_bytes",
        "gpu:0 gpm_pcie_rx_bytes_per_s",
        "gpu:1 gpm_pcie_rx_bytes_per_s",
    ]


@pytest.mark.parametrize(
    ("summary", "rows", "reason"),
    [
        ({"memory": {"gpu": "absent: the server scores on the CPU"}}, (), ON_CPU),
        ({"device": "AMD EPYC"}, (), ON_CPU),
        ({"device": "NVIDIA H100"}, (), UNTOLD_COPIES),
        ({}, (row("gpu", "energy_j", None, NO_DRIVER),), NO_DRIVER),
        ({}, (row("gpu:0", "energy_j", 5.0),), UNTOLD_COPIES),
    ],
)
def test_why_nothing_went_to_a_gpu(
    summary: dict[str, Any], rows: tuple[Row, ...], reason: str
) -> None:
    sources = by_source(moved(*rows, summary=summary))
    for metric in ("app_host_to_device_bytes", "app_device_to_host_bytes"):
        assert (sources[f"app {metric}"]["bytes"], sources[f"app {metric}"]["reason"]) == (
            None,
            reason,
        )

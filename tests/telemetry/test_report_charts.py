"""The report's charts of guest and GPU: every series has a place or is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from telemetry.collectors.gpu_metrics import GPM_METRICS, PROCESS_USES
from telemetry.report import render
from telemetry.report_charts import MAX_SERIES, MAX_WINDOW_CHARTS, _steps
from telemetry.report_specs import has_place
from telemetry.series import Points, SeriesIndex, select
from tests.telemetry.report_runs import START_NS, MadeRun
from tests.telemetry.test_report import chart, chart_data, drawn_points


def test_windows_are_steps_over_their_own_time() -> None:
    page = render(*MadeRun(seconds=90, vcenter=True).build())
    series = chart(page, "window-0")["series"][0]
    points = drawn_points(series)
    assert [at for at, _ in points[:4]] == [0, 20_000, 20_000, 40_000]
    assert points[0][1] == points[1][1]


def test_each_window_metric_of_a_gpu_is_drawn_with_its_source() -> None:
    made = chart_data(render(*MadeRun(seconds=60, gpus=1).build()))["charts"]
    shown = {
        (one["key"], series["label"]): max(v for v in series["v"] if v is not None)
        for one in made
        for series in one["series"]
    }
    of_gpm = {
        ("gpu-sm", "GPU 0 busy"): "gpm_sm_util_percent",
        ("gpu-sm", "GPU 0 occupancy"): "gpm_sm_occupancy_percent",
        ("gpu-tensor", "GPU 0"): "gpm_tensor_util_percent",
        ("gpu-pipes", "GPU 0 HMMA"): "gpm_tensor_half_util_percent",
        ("gpu-pipes", "GPU 0 FP32"): "gpm_fp32_util_percent",
        ("gpu-dram", "GPU 0"): "gpm_dram_bw_util_percent",
        ("gpu-pcie", "GPU 0 in"): "gpm_pcie_rx_bytes_per_s",
        ("gpu-nvlink", "GPU 0 out"): "gpm_nvlink_tx_bytes_per_s",
        ("gpu-processes", "GPU 0 this run"): "gpu_run_sm_percent",
    }
    _, _, samples = MadeRun(seconds=60, gpus=1).build()
    index = SeriesIndex(samples)
    for name, metric in of_gpm.items():
        assert shown[name] == pytest.approx(index.points("gpu:0", metric).values.max(), rel=1e-3)
    windows = {metric.name for metric in (*GPM_METRICS, *PROCESS_USES)}
    rest = {one["title"].replace(" ", "_") for one in made if one["key"].startswith("window")}
    assert rest == {metric for metric in windows if not has_place(metric)}
    assert "nvmlGpmMetricsGet" in next(one for one in made if one["key"] == "gpu-sm")["note"]


def test_windows_without_room_are_named() -> None:
    extra = [f"w{number:02}" for number in range(MAX_WINDOW_CHARTS + 3)]
    many = [f"gpu:{number}" for number in range(MAX_SERIES + 2)]
    names = [("gpu:0", name) for name in extra[1:]] + [(gpu, extra[0]) for gpu in many]
    page = render(*MadeRun(seconds=60, more_windows=tuple(names)).build())
    made = [one for one in chart_data(page)["charts"] if one["key"].startswith("window")]
    assert [one["title"] for one in made] == extra[:MAX_WINDOW_CHARTS]
    assert made[-1]["note"].endswith("No room for charts of w12, w13, w14: see the stages' tables.")
    assert len(made[0]["series"]) == MAX_SERIES
    assert made[0]["note"].endswith("Not drawn, with the least in them: gpu:8, gpu:9.")


@pytest.mark.parametrize("seconds", [60, 600])
def test_an_outage_of_a_gpu_is_a_break_in_its_windows(seconds: float) -> None:
    """However many windows there are: as steps, or as points."""
    run, document, samples = MadeRun(seconds=seconds, gpus=1).build()
    low, high = (START_NS + int(share * seconds * 1e9) for share in (0.5, 0.6))
    mask = [
        not (metric.startswith("gpm_") and low < at <= high)
        for metric, at in zip(
            samples.table.column("metric").to_pylist(),
            samples.table.column("ts_ns").to_pylist(),
            strict=True,
        )
    ]
    page = render(run, document, replace(samples, table=samples.table.filter(mask)))
    (series,) = chart(page, "gpu-tensor")["series"]
    points = drawn_points(series)
    breaks = [at for at, value in points if value is None and at < 900 * seconds]
    assert len(breaks) == 1
    assert breaks[0] == pytest.approx(500 * seconds, abs=400)
    following = next(at for at, value in points if at > breaks[0] and value is not None)
    assert following == pytest.approx(600 * seconds, abs=400)


@pytest.mark.parametrize("many", [40, 2000])
def test_short_windows_that_lie_apart_are_one_line_with_its_outages(many: int) -> None:
    """As PCIe's are: 20 ms of every 200, and half a minute without any."""
    place = np.arange(many)
    ends = START_NS + place * 200_000_000 + (place >= many // 2) * 30_000_000_000
    jitter = np.random.default_rng(3).integers(0, 20_000_000, many)
    points = Points(ts_ns=ends + jitter, values=np.ones(many), start_ns=ends + jitter - 20_000_000)
    drawn_ = _steps(points)
    broken = drawn_.times[np.isnan(drawn_.values)]
    assert len(broken) == 1
    assert ends[many // 2 - 1] <= broken[0] < ends[many // 2]


def test_a_chart_of_what_older_runs_do_not_have_is_left_out() -> None:
    run, document, samples = MadeRun(seconds=60).build()
    (series,) = chart(render(run, document, samples), "cpu-speed")["series"]
    assert {one for one in series["v"] if one is not None} == {47.0, 88.0}
    older = select(samples, lambda entity, metric: metric != "cpu_loop_us")
    keys = [one["key"] for one in chart_data(render(run, document, older))["charts"]]
    assert "psi" in keys
    assert "cpu-speed" not in keys

"""How fast a report opens: an hour at 10 Hz through the real sample writer, in headless Chromium.

From the navigation's start to the marks that the page's own script sets: its first charts drawn
(the overview above them stands by then), and all of them. Each figure is the median of ``TIMES``.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from telemetry.report import render
from telemetry.samples import Sample, Series
from telemetry.segments import SampleSet, SegmentWriter, read_samples
from tests.devtools import LivePage, live_page
from tests.telemetry.report_judged import judged
from tests.telemetry.report_vsphere import MadeVsphere

SECONDS, GPUS = 3600, 2
TIMES = 5
VIEWS = (
    ("desktop 1440x900", 1440, 900, False, 1),
    ("phone 390x844", 390, 844, True, 1),
    ("phone 390x844, CPU 4 times slower", 390, 844, True, 4),
)
_MARKS = ("stagescope-script", "stagescope-first-charts", "stagescope-all-charts")
_TIME = "performance.getEntriesByName('{}')[0].startTime"
_BATCH = 500
"""Rows that a recorder at 10 Hz writes at once, about."""


def main() -> None:
    made, profile, samples = MadeVsphere(seconds=SECONDS, gpus=GPUS, move_s=SECONDS / 2).build()
    with tempfile.TemporaryDirectory(prefix="stagescope-bench-") as name:
        folder = Path(name)
        rows = written(folder, samples)
        start = time.perf_counter()
        read = read_samples(folder)
        page = render(made, judged(profile), read)
        took_s = time.perf_counter() - start
        path = folder / "report.html"
        path.write_text(page, encoding="utf-8")
        size = sum(one.stat().st_size for one in folder.glob("*.arrows"))
        print(
            f"an hour at 10 Hz: {rows:,} samples, {size / 1e6:.0f} MB, read and rendered in "
            f"{took_s:.1f} s; the page has {len(page.encode()) / 1e6:.2f} MB",
            flush=True,
        )
        with live_page() as browser:
            for view in VIEWS:
                print(opened(browser, path.as_uri(), *view), flush=True)


def written(folder: Path, samples: SampleSet) -> int:
    """Write samples through the recorder's own writer, a batch a second; return their number.

    A collector for each period, as in a run.
    """
    absent, total = list(samples.absent), 0
    for period in sorted(set(samples.periods.values())):
        names = [name for name in samples.metrics if samples.periods[name] == period]
        told = pc.cast(samples.table["metric"], pa.string())
        table = samples.table.filter(pc.is_in(told, pa.array(names))).sort_by("ts_ns")
        series: dict[tuple[str, str], Series] = {}
        for name, entity in zip(
            table["metric"].to_pylist(), table["entity"].to_pylist(), strict=True
        ):
            if (entity, name) not in series:
                series[entity, name] = Series(entity=entity, metric=samples.metrics[name])
        writer = SegmentWriter(
            folder, f"every{period:g}s", [*series.values(), *absent], host="bench", period_s=period
        )
        for start in range(0, table.num_rows, _BATCH):
            writer.write([
                Sample(row["ts_ns"], series[row["entity"], row["metric"]], row["value"],
                       row["start_ns"])
                for row in table.slice(start, _BATCH).to_pylist()
            ])  # fmt: skip
        writer.close()
        total, absent = total + table.num_rows, []
    return total


def opened(
    browser: LivePage, url: str, title: str, width: int, height: int, phone: bool, slower: int
) -> str:
    """One line: the medians of what the page's marks say, in a view of it."""
    browser.call("Emulation.setCPUThrottlingRate", rate=slower)
    found: list[list[float]] = []
    for _ in range(TIMES + 1):
        browser.show("about:blank", wait=False)
        browser.show(url, width=width, height=height, phone=phone)
        found.append([browser.value(_TIME.format(mark)) for mark in _MARKS])
    script, first, whole = (statistics.median(one) for one in zip(*found[1:], strict=True))
    slowest = max(one[1] for one in found[1:])
    return (f"{title}: first charts after {first:.0f} ms (slowest of {TIMES}: {slowest:.0f}), "
            f"all charts after {whole:.0f} ms; the script began at {script:.0f} ms")  # fmt: skip


if __name__ == "__main__":
    main()

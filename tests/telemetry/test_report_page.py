"""The report as a page: one screen, phone, dark, print, keyboard, contrast, and no request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from telemetry.report import render
from telemetry.report_series import MAX_POINTS, pieces
from telemetry.report_verdict import SIGNS
from tests.devtools import LivePage, live_page
from tests.telemetry.report_judged import KINDS, UNSEEN, judged
from tests.telemetry.report_runs import STAGES, MadeRun
from tests.telemetry.report_vsphere import MadeVsphere
from tests.telemetry.test_report import Elements, chart, chart_data, killed_run

OVERLAPS = """
  (() => {
    const found = [], boxes = [];
    const walker = document.createTreeWalker(document.getElementById("overview"), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const node = walker.currentNode;
      if (!node.data.trim() || !node.parentElement.checkVisibility()) continue;
      const range = document.createRange();
      range.selectNodeContents(node);
      const hidden = node.parentElement.closest("thead") && innerWidth <= 760;
      for (const rect of range.getClientRects()) {
        const clip = node.parentElement.closest("td, th, p, li, h2").getBoundingClientRect();
        const right = Math.min(rect.right, clip.right);
        if (!hidden && rect.width > 1) boxes.push([node.data.trim(), rect.left, rect.top, right, rect.bottom]);
      }
    }
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
      const wide = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
      const high = Math.min(a[4], b[4]) - Math.max(a[2], b[2]);
      if (wide > 1 && high > 4) found.push(`${a[0]} on ${b[0]}`);
    }));
    return {found, boxes: boxes.length};
  })()
"""  # noqa: E501 - a script of the page
CAPTIONS = "document.querySelector('#chart-KEY h3').textContent"
ON_ANOTHER = """
  [...document.querySelectorAll("figure.chart")].flatMap((figure) => {
    const parts = [...figure.querySelectorAll("h3 small, .legend li, svg[role=img]")];
    const boxes = parts.flatMap((one) =>
      [...one.getClientRects()].map((rect) => [one.textContent, rect]));
    return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) => a !== b &&
      Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 &&
      Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 1
    ).map(([b]) => `${a} on ${b}`));
  })
"""
CONTRAST = """
  (() => {
    const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = (color) => {
      const [r, g, b] = numbers(color).map((one) => one / 255)
        .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (node) => {
      for (let one = node; one; one = one.parentElement) {
        const color = getComputedStyle(one).backgroundColor;
        if (numbers(color).length === 3 || numbers(color)[3] > 0.99) return color;
      }
      return "rgb(255, 255, 255)";
    };
    const worst = {};
    for (const node of document.querySelectorAll("h1, h2, h3, p, td, th, dd, dt, li, a, summary, small, caption, .status, .bound, .verdict, figure text")) {
      if (!node.checkVisibility() || !node.textContent.trim()) continue;
      const own = getComputedStyle(node), isSvg = node.tagName === "text";
      const pair = [light(isSvg ? own.fill : own.color), light(behind(node))].sort((a, b) => b - a);
      const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
      if (ratio < 4.5 && !node.classList.contains("in")) worst[`${node.tagName} ${node.className.baseVal ?? node.className} ${node.textContent.slice(0, 30)}`] = ratio;
    }
    return worst;
  })()
"""  # noqa: E501 - a script of the page


@pytest.fixture(scope="module")
def browser() -> Iterator[LivePage]:
    with live_page() as page:
        yield page


def made(kind: str) -> str:
    """The pages that are looked at, by name."""
    if kind == "killed":
        return render(*killed_run())
    if kind == "vsphere":
        run, profile, samples = MadeVsphere(seconds=300, gpus=2, move_s=150.0).build()
        return render(run, judged(profile), samples)
    run, profile, samples = MadeRun(seconds=60, gpus=2 if kind == "gpu" else 0).build()
    return render(run, profile if kind == "old" else judged(profile), samples)


def saved(folder: Path, page: str) -> str:
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path.as_uri()


def test_each_stage_has_its_verdict_by_word_and_sign_with_its_evidence() -> None:
    page = made("plain")
    overview = page.split('id="timeline"')[0]
    for place, (stage, kind) in enumerate(zip(STAGES, KINDS, strict=True), start=1):
        text = Elements(overview).text
        assert f"{SIGNS[kind][0]} {kind}" in text
        section = Elements(page.split(f'id="stage-{place}" class="stage"')[1].split("<h3>")[1]).text
        assert f"{SIGNS[kind][0]} {kind}" in section
        assert f"{stage.capitalize()} kept 1.87 of 2 cores" in section
        assert f"{kind} by share" in section
        assert "cores in use1.87 coresmean of cpu busy secondsstage" in section
        assert "for want of what:A GPU: how busy gpu:0 was is not known." in section
        assert "Out of memory (page cache)." in section
        assert f"hypervisor––{UNSEEN}" in section
        assert "read by calls1.20 GiB" in section
        assert "to the GPU––the stage aloneno GPU was used in this stage" in section
        assert "× 3.32 of the raw data" in section
        assert "Epochs: 14; the steps of each took 90.0 MiB from its table." in section
    assert len({sign for sign, _ in SIGNS.values()}) == len(SIGNS)


def test_a_verdict_without_anything_in_it_is_still_a_page() -> None:
    run, profile, samples = MadeRun(seconds=20).build()
    bare = [{"stage": "ingest", "verdict": "of-a-later-version"}, {"stage": "nobody"}]
    page = render(run, {**profile, "verdicts": bare, "data_moved": [{"stage": "ingest"}]}, samples)
    text = Elements(page).text
    assert "? of-a-later-version" in text
    assert "No sentence was given." in text


def test_what_a_whole_run_lacks_is_said_once_with_its_reason() -> None:
    text = Elements(made("old").split('id="timeline"')[0]).text
    assert text.count("Verdicts absent. This profile holds no verdicts") == 1
    assert text.count("GPU not measured: no NVIDIA driver") == 1
    assert text.count("Hypervisor not measured: no vCenter") == 1
    assert "Verdicts absent" not in Elements(made("plain")).text
    assert "GPU not measured" not in Elements(made("gpu")).text
    assert "Verdicts absent" in Elements(made("killed")).text


def test_strips_lie_where_the_stages_were() -> None:
    run, profile, samples = MadeRun(seconds=100).build()
    page = render(run, profile, samples)
    bars = re.findall(r'class="when (\w+)" x="([\d.]+)" y="0" width="([\d.]+)"', page)
    long = run["ended_ns"] - run["started_ns"]
    for stage, (look, x, width) in zip(run["stages"], bars, strict=True):
        assert look == "whole"
        assert float(x) == pytest.approx(
            200 * (stage["start_ns"] - run["started_ns"]) / long, abs=0.01
        )
        took = stage["end_ns"] - stage["start_ns"]
        assert float(width) == pytest.approx(200 * took / long, abs=0.02)
    assert 'class="when open"' in render(*killed_run())


def test_range_bars_have_the_profiles_median_and_band() -> None:
    run, profile, samples = MadeRun(seconds=60).build()
    row = next(
        one
        for one in profile["stages"][3]["metrics"]
        if (one["entity"], one["metric"]) == ("stage", "mem_rss_bytes")
    )
    section = render(run, profile, samples).split('id="stage-4" class="stage"')[1]
    cell = section.split(">Memory of the stage<")[1].split("</tr>")[0]
    median = re.search(r'class="median" x="([\d.]+)"', cell)
    middle = re.search(r'class="middle" x="([\d.]+)"[^>]* width="([\d.]+)"', cell)
    assert median is not None
    assert middle is not None
    at = [2 + 116 * row[name] / row["max"] for name in ("p50", "p95")]
    assert float(median[1]) + 1 == pytest.approx(at[0], abs=0.06)
    assert float(middle[1]) == pytest.approx(at[0], abs=0.06)
    assert float(middle[2]) == pytest.approx(max(at[1] - at[0], 1.5), abs=0.11)


@pytest.mark.parametrize("count", [MAX_POINTS + 1, 36_000, 360_000])
def test_buckets_are_bounded_and_keep_smallest_median_and_largest(count: int) -> None:
    times = np.arange(count, dtype=np.float64) * 1e8
    values = np.random.default_rng(3).lognormal(size=count)
    values[count // 3] = np.nan
    trace = pieces(times, values)
    assert trace.low is not None
    assert trace.high is not None
    assert len(trace.values) <= MAX_POINTS
    assert np.nanmin(trace.low) == np.nanmin(values)
    assert np.nanmax(trace.high) == np.nanmax(values)
    assert np.isnan(trace.values).sum() == 1
    known = np.isfinite(trace.values)
    assert (trace.low[known] <= trace.values[known]).all()
    assert (trace.values[known] <= trace.high[known]).all()
    size = -(-(count // 3) // np.flatnonzero(~known)[0])
    assert trace.values[1] == np.median(values[size : 2 * size])


def test_a_page_of_an_hour_has_bands_and_no_more_points_than_one_of_ten_minutes() -> None:
    short, long = (
        chart_data(render(*MadeRun(seconds=seconds).build()))["charts"] for seconds in (600, 3600)
    )
    most = [max(len(one["t"]) for c in made for one in c["series"]) for made in (short, long)]
    assert max(most) <= MAX_POINTS
    series = chart(render(*MadeRun(seconds=3600).build()), "disk")["series"][0]
    assert len(series["lo"]) == len(series["hi"]) == len(series["t"])


def test_each_chart_knows_how_many_samples_a_point_holds() -> None:
    hour, minute = (render(*MadeRun(seconds=seconds, gpus=1).build()) for seconds in (3600, 60))
    for key in ("cpu", "disk", "gpu-power"):
        held = {(one["holds"], one["holdsS"]) for one in chart(hour, key)["series"]}
        assert held <= {(18, 1.8), (19, 1.9)}, key
        for series in chart(hour, key)["series"]:
            known = [value for value in series["v"] if value is not None]
            assert len(known) * series["holds"] >= 35_990, "all samples are in the points"
    assert not [one for made in chart_data(minute)["charts"] for one in made["series"]
                if "holds" in one]  # fmt: skip


def test_the_three_worlds_stand_together_first() -> None:
    drawn = chart_data(made("vsphere"))["charts"]
    assert drawn[0]["heading"] == "Guest, GPU and hypervisor together"
    first = next(i for i, one in enumerate(drawn) if i and one.get("heading"))
    assert {one["world"] for one in drawn[:first]} == {"guest", "gpu", "hypervisor"}
    assert len({one["key"] for one in drawn}) == len(drawn)
    assert drawn[0]["hint"].startswith("Thin line")


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("kind", ["plain", "gpu", "vsphere", "old", "killed"])
def test_desktop_shows_the_overview_on_one_screen(
    tmp_path: Path, browser: LivePage, kind: str
) -> None:
    browser.show(saved(tmp_path, made(kind)))
    assert browser.value("document.scrollingElement.scrollWidth <= innerWidth")
    assert browser.value("document.querySelector('.overview').getBoundingClientRect().bottom") < 900
    overlaps = browser.value(OVERLAPS)
    assert overlaps["found"] == []
    assert overlaps["boxes"] > 40
    assert_quiet(browser)


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("kind", ["plain", "vsphere", "killed"])
def test_a_phone_shows_every_figure_within_its_width(
    tmp_path: Path, browser: LivePage, kind: str
) -> None:
    browser.show(saved(tmp_path, made(kind)), width=390, height=844, phone=True)
    assert browser.value("innerWidth") == 390
    assert browser.value("document.scrollingElement.scrollWidth <= innerWidth")
    assert browser.value(OVERLAPS)["found"] == []
    outside = browser.value(
        "[...document.querySelectorAll('.overview td, .overview th[scope=row], .flags td, "
        ".evidence td, .moved td, .witnesses td')].filter((one) => one.checkVisibility() && "
        "one.getBoundingClientRect().right > innerWidth).map((one) => one.textContent)"
    )
    assert outside == []
    assert_quiet(browser)


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_captions_of_a_long_run_say_what_a_point_holds_and_stand_on_nothing(
    tmp_path: Path, browser: LivePage, width: int
) -> None:
    page = render(*MadeRun(seconds=3600, gpus=2).build())
    browser.show(saved(tmp_path, page), width=width, phone=width == 390)
    for key in ("cpu", "disk", "gpu-power"):
        told = browser.value(CAPTIONS.replace("KEY", key))
        assert re.search(r"a point holds up to 1[89] samples \(1\.[89] s\)$", told), told
    assert browser.value(ON_ANOTHER) == []
    assert browser.value("document.scrollingElement.scrollWidth <= innerWidth")
    assert_quiet(browser)


def assert_quiet(page: LivePage) -> None:
    """Nothing on the console, and no request but for the page itself."""
    told = page.told("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert told == []
    asked = [one["request"]["url"] for one in page.told("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == asked[:1]
    assert asked[0].startswith("file:")


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("look", ["light", "dark", "print"])
@pytest.mark.parametrize("kind", ["vsphere", "killed"])
def test_text_stands_out_from_its_ground(
    tmp_path: Path, browser: LivePage, kind: str, look: str
) -> None:
    # A dark screen prints on white paper.
    media = "print" if look == "print" else ""
    browser.show(saved(tmp_path, made(kind)), dark=look != "light", media=media)
    assert browser.value(CONTRAST) == {}
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (look != "dark")


@pytest.mark.needs("chromium")
def test_tab_reaches_sections_charts_and_tables(tmp_path: Path, browser: LivePage) -> None:
    browser.show(saved(tmp_path, made("plain")))
    reached = set()
    for _ in range(60):
        browser.press("Tab")
        reached.add(
            browser.value(
                "(() => { const one = document.activeElement; return one.closest('nav') ? 'nav' : "
                "one.id === 'charts' ? 'charts' : one.id ? one.id : one.className || one.tagName;"
                "})()"
            )
        )
        outline = browser.value("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
    assert {"nav", "charts", "scroll", "closer", "SUMMARY", "BUTTON"} <= reached
    browser.value("document.getElementById('charts').focus()")
    before = browser.value("document.getElementById('range').textContent")
    browser.press("+")
    browser.settle()
    zoomed = browser.value("document.getElementById('range').textContent")
    assert zoomed != before
    ticks = browser.value(
        "[...document.querySelectorAll('figure.chart > svg')].map((one) => "
        "[...one.querySelectorAll('.tick')].map((t) => t.textContent).filter((t) => "
        "/^\\d+:\\d\\d/.test(t)).join(' '))"
    )
    assert len(ticks) > 5
    assert len(set(ticks)) == 1, "zooming is linked"


@pytest.mark.needs("chromium")
def test_many_samples_in_a_pixel_are_a_median_within_a_band(
    tmp_path: Path, browser: LivePage
) -> None:
    browser.show(saved(tmp_path, render(*MadeRun(seconds=600).build())))
    assert browser.value("document.querySelectorAll('#chart-disk .minmax').length") == 4
    paths: list[str] = browser.value(
        "[...document.querySelectorAll('#chart-disk .minmax')].map((one) => one.getAttribute('d'))"
    )
    assert all(path.startswith("M") and path.endswith("Z") for path in paths)
    browser.value("document.querySelectorAll('button[data-stage]')[0].click()")
    browser.settle()
    assert browser.value(CAPTIONS.replace("KEY", "disk")).endswith(
        "a point holds up to 4 samples (0.4 s)"
    )
    few: Any = browser.value(
        "document.querySelector('#chart-disk .minmax').getAttribute('d').length"
    )
    assert few < len(paths[0]), "a stage alone has fewer columns"

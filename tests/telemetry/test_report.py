"""The report: whole, honest about gaps and absences, inert to hostile names, and alone."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from telemetry.report import render
from telemetry.report_accounts import growth
from telemetry.report_html import human, percent, seconds, short, tag
from telemetry.report_series import MAX_POINTS
from telemetry.report_view import StageView
from telemetry.runfolder import killed
from telemetry.segments import SampleSet
from tests.browser import Browser
from tests.telemetry.report_runs import NO_GPU, NO_VCENTER, STAGES, START_NS, MadeRun

HOSTILE = '</script><img src=x onerror="document.body.dataset.hacked=1">'
_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


class Elements(HTMLParser):
    """All elements of a page with their attributes, and its text per element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def ids(self) -> set[str]:
        return {attrs["id"] or "" for _, attrs in self.found if "id" in attrs}


def chart_data(page: str) -> dict[str, Any]:
    found = _DATA.search(page)
    assert found is not None
    return dict(json.loads(found[1]))


def chart(page: str, key: str) -> dict[str, Any]:
    return next(one for one in chart_data(page)["charts"] if one["key"] == key)


def drawn_points(series: dict[str, Any]) -> list[tuple[int, float | None]]:
    """(ms since the start, value or None), as the page's script reads them."""
    return list(zip(np.cumsum(series["t"]).tolist(), series["v"], strict=True))


def killed_run() -> tuple[dict[str, Any], dict[str, Any], SampleSet]:
    run, profile, samples = MadeRun(seconds=60).build()
    nothing = {"start_ns": None, "end_ns": None, "rusage": None}
    stages = run["stages"]
    stages[0] |= {**nothing, "status": "reused", "reused_from": "20261123-231502-aa01ff"}
    stages[3] |= {"status": "failed", "reason": "no space left on device", "exit_code": 1}
    stages[4] |= {"status": "running", "end_ns": None, "rusage": None}
    stages[5] |= {**nothing, "status": "skipped", "reason": "training failed"}
    run |= {"status": "running", "ended_ns": None, "losses": ["recorder: lost 1.0 s of samples"]}
    run["clock"]["offset_end_ns"] = None
    run = killed(run, Path("no samples on disk"))
    run["ended_ns"] = max(samples.table.column("ts_ns").to_pylist())  # as where they are
    return run, profile, samples


def hostile_run() -> tuple[dict[str, Any], dict[str, Any], SampleSet]:
    names = (f"in{HOSTILE}gest", "processing", "{{script}}", "training", "validation", "serving")
    run, profile, samples = MadeRun(names=names, seconds=30, reason=HOSTILE).build()
    run |= {"name": HOSTILE, "host": HOSTILE, "losses": [HOSTILE]}
    run["stages"][1]["reason"] = HOSTILE
    run["stages"][1]["summary"] = {HOSTILE: [{HOSTILE: HOSTILE}]}
    run["environment"]["cpu"]["model"] = HOSTILE
    profile["ledger"][0]["parts"] = {HOSTILE: 1.0}
    profile["stages"][0]["metrics"][0]["entity"] = HOSTILE
    return run, profile, samples


def written(folder: Path, page: str) -> str:
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path.as_uri()


def test_tables_name_every_stage_and_what_was_absent() -> None:
    page = render(*MadeRun().build())
    elements = Elements(page)
    assert {f"stage-{place}" for place in range(1, 7)} <= elements.ids()
    for name in STAGES:
        assert name in elements.text
    assert f"GPU not measured: {NO_GPU}." in elements.text
    assert NO_VCENTER in elements.text
    assert "this kernel gives no full line for it" in elements.text
    assert "✗ does not close" in elements.text
    assert "? too small to tell" in elements.text
    assert "0.8741" in elements.text  # the model's metrics, out of the stage's summary
    assert "× 3.32" in elements.text  # features are 312 MB of 94 MB raw data


def test_every_metric_of_a_stage_is_in_its_table_or_among_the_absent() -> None:
    run, profile, samples = MadeRun(seconds=40).build()
    page = render(run, profile, samples)
    sections = page.split('class="stage">')[1:]
    for section, stage in zip(sections, profile["stages"], strict=True):
        for row in stage["metrics"]:
            assert row["metric"].replace("_", " ") in section
            if row["reason"]:
                assert row["reason"] in section


def test_reused_failed_and_unended_stages_say_so() -> None:
    text = Elements(render(*killed_run())).text
    assert "its outputs are those of run 20261123-231502-aa01ff" in text
    assert "✗ failed" in text
    assert "no space left on device" in text
    assert "■ killed" in text
    assert "Not run: training failed." in text
    assert "recorder: lost 1.0 s of samples" in text
    assert "no end was recorded" in text
    assert "drift not known" in text


def test_a_killed_run_is_shown_to_the_last_thing_known_of_it_and_has_no_end() -> None:
    run, profile, samples = killed_run()
    page = render(run, profile, samples)
    data, text = chart_data(page), Elements(page).text
    assert data["durationMs"] == 59_900
    going = data["stages"][-1]
    assert (going["name"], going["to"], going["ended"]) == ("validation", 59_900, False)
    assert "Tookat least 59.9 s: no end was recorded" in text
    assert "Endednot known: no end was recorded" in text
    assert "outside of the stages" not in text
    ended = Elements(render({**run, "status": "failed"}, profile, samples)).text
    assert "Took59.9 s" in ended
    assert "outside of the stages" in ended
    lost = {**run, "stages": [], "ended_ns": run["started_ns"]}
    text = Elements(render(lost, {}, SampleSet.empty())).text
    assert "Tooknot known: no end was recorded" in text


def test_a_run_without_stages_or_samples_has_sentences_instead() -> None:
    run, _, _ = MadeRun(seconds=20).build()
    bare = {**run, "stages": [], "status": "interrupted"}
    page = render(bare, {}, SampleSet.empty())
    text = Elements(page).text
    assert "This run has no stages yet" in text
    assert "There is no ledger" in text
    assert [one["empty"] for one in chart_data(page)["charts"]] == [
        "No samples were recorded in this run, so there is nothing to draw."
    ]
    least = render({"run_id": "x", "status": "killed"}, {}, SampleSet.empty())
    assert "Run without a name" in least


def test_same_run_gives_same_bytes_whatever_the_order_of_its_samples() -> None:
    run, profile, samples = MadeRun(seconds=30, gpus=1, vcenter=True).build()
    order = np.random.default_rng(1).permutation(samples.table.num_rows)
    shuffled = SampleSet(
        table=samples.table.take(order),
        metrics=samples.metrics,
        absent=samples.absent,
        periods=samples.periods,
    )
    assert render(run, profile, samples) == render(run, profile, shuffled)


def test_rates_of_counters_are_those_of_a_slow_reference() -> None:
    run, profile, samples = MadeRun(seconds=40).build()
    rows = [
        (row["ts_ns"], row["value"])
        for row in samples.table.to_pylist()
        if row["entity"] == "disk:sda" and row["metric"] == "disk_read_bytes"
    ]
    expected = {
        round((after[0] - START_NS) / 1e6): (after[1] - before[1]) / ((after[0] - before[0]) / 1e9)
        for before, after in itertools.pairwise(rows)
    }
    series = chart(render(run, profile, samples), "disk")["series"]
    read = next(one for one in series if one["label"] == "sda read")
    assert len(read["v"]) == len(expected)
    for at, value in drawn_points(read):
        assert value == pytest.approx(expected[at], rel=1e-3)


def test_cpu_layers_add_up_to_the_busy_share_of_the_counters() -> None:
    run, profile, samples = MadeRun(seconds=400).build()
    ends: dict[str, list[float]] = {}
    for row in samples.table.to_pylist():
        if row["entity"] == "machine" and row["metric"].startswith("cpu_"):
            ends.setdefault(row["metric"], []).append(row["value"])
    grown = {metric: values[-1] - values[0] for metric, values in ends.items()}
    share = 100 * (1 - grown["cpu_idle_seconds"] / sum(grown.values()))
    layers = chart(render(run, profile, samples), "cpu")["series"]
    assert [layer["label"] for layer in layers] == ["user", "system", "I/O wait", "steal"]
    mean = sum(sum(layer["v"]) / len(layer["v"]) for layer in layers)
    assert mean == pytest.approx(share, rel=2e-3)


def test_gaps_in_sampling_are_breaks_and_never_zero() -> None:
    made = MadeRun(seconds=400, gap=True)
    page = render(*made.build())
    low, high = made._spans[3]
    gap = ((low + high) / 2 * 1000 + 150, (low + high) / 2 * 1000 + 11_850)
    for one in chart_data(page)["charts"]:
        for series in one["series"]:
            points = drawn_points(series)
            if points[0][0] > gap[0] or points[-1][0] < gap[1]:
                continue  # a stage that was not there at the time
            inside = [value for at, value in points if gap[0] < at < gap[1]]
            around = [value for at, value in points if gap[0] - 300 < at < gap[1] + 300]
            assert all(value is None for value in inside), series["label"]
            assert None in around, series["label"]


def test_an_hour_at_10_hz_stays_small() -> None:
    page = render(*MadeRun(seconds=3600, gpus=2, gap=True, vcenter=True).build())
    lengths = [
        (one["key"], series["label"], len(series["t"]))
        for one in chart_data(page)["charts"]
        for series in one["series"]
    ]
    assert len(lengths) > 20
    assert all(length <= MAX_POINTS for _, _, length in lengths), lengths
    assert len(page.encode()) < 5_000_000


def test_page_names_no_address_and_forbids_all() -> None:
    page = render(*MadeRun(seconds=20, gpus=1).build())
    elements = Elements(page)
    for name, attrs in elements.found:
        for key in ("src", "href", "action", "data", "srcset"):
            value = attrs.get(key)
            assert value is None or value.startswith("#") or value == "data:,", (name, value)
        assert not [key for key in attrs if key.startswith("on")]
    assert not re.search(r"url\(\s*['\"]?(?!#)", page.replace("`url(#", ""))
    assert "@import" not in page
    assert re.findall(r"https?://[^\"\s]*", page) == ["http://www.w3.org/2000/svg"]
    policy = next(a for t, a in elements.found if t == "meta" and "http-equiv" in a)["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")


def test_hostile_strings_are_text() -> None:
    page = render(*hostile_run())
    elements = Elements(page)
    assert not [name for name, _ in elements.found if name == "img"]
    assert sum(name == "script" for name, _ in elements.found) == 2
    assert page.count('"use strict"') == 1  # a stage called {{script}} is not filled in
    assert chart_data(page)["stages"][0]["name"] == f"in{HOSTILE}gest"


def test_a_name_that_is_no_utf_8_is_told_in_backslashes() -> None:
    """As os.listdir gives it of a disk that was written by others."""
    run, document, samples = MadeRun(seconds=60).build()
    run["stages"][0] |= {"status": "failed", "reason": "ValueError: bad file caf\udce9.csv"}
    assert "caf\\udce9.csv" in render(run, document, samples).encode().decode()


@pytest.mark.needs("chromium")
def test_hostile_strings_are_inert_in_a_browser(tmp_path: Path) -> None:
    # Without the policy, so that escaping alone has to hold.
    page = _POLICY.sub("", render(*hostile_run()))
    opened = Browser().open(written(tmp_path, page))
    assert "data-hacked" not in opened.dom
    assert not [name for name, _ in Elements(opened.dom).found if name == "img"]
    assert 'id="chart-cpu"' in opened.dom


@pytest.mark.needs("chromium")
def test_browser_draws_all_charts_without_a_word_on_the_console(tmp_path: Path) -> None:
    page = render(*MadeRun(seconds=60, gpus=2, gap=True, vcenter=True).build())
    opened = Browser().open(written(tmp_path, page))
    assert opened.console == []
    for key in ("cpu", "memory", "rss", "disk", "net", "psi", "cpu-speed", "gpu-util",
                "gpu-power", "gpu-memory", "window-0", "vm-contention"):  # fmt: skip
        figure = opened.dom.split(f'id="chart-{key}"')[1].split("</figure>")[0]
        assert '<path d="M' in figure, key
        assert "4 training" in figure or "4</text>" in figure, key
    bars = opened.dom.split('id="chart-stages"')[1].split("</figure>")[0]
    for place, name in enumerate(STAGES, start=1):
        assert f"{place} {name} · " in bars


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("made", ["plain", "killed"])
def test_page_is_no_wider_than_a_phone(tmp_path: Path, made: str) -> None:
    run = killed_run() if made == "killed" else MadeRun(seconds=60, gpus=2).build()
    # A window of the browser is at least 500 px wide; a frame is as narrow as it is told to be.
    probe = "parent.postMessage(innerWidth + ' ' + document.documentElement.scrollWidth, '*');"
    inner = written(tmp_path, with_script(render(*run), probe))
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<script>onmessage = (event) => { document.title = 'width ' + event.data; };</script>"
        f'<iframe src="{inner}" width="390" height="844" style="border:0"></iframe>'
    )
    opened = Browser().open(frame.as_uri())
    assert "<title>width 390 390</title>" in opened.dom


POINTER_AND_KEYS = """
  Element.prototype.setPointerCapture = () => {};
  const root = document.documentElement;
  const box = document.getElementById("charts");
  const svg = document.querySelector("#chart-memory > svg");
  const rect = svg.getBoundingClientRect();
  const texts = (where) => [...document.querySelectorAll(where)].map((one) => one.textContent);
  const fire = (type, share) => svg.dispatchEvent(new PointerEvent(type, {
    clientX: rect.left + rect.width * share, clientY: rect.top + 20,
    pointerType: "mouse", bubbles: true,
  }));
  const press = (key) => box.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  const range = () => document.getElementById("range").textContent;
  const lines = () => [...document.querySelectorAll(".cross")]
    .map((one) => getComputedStyle(one).visibility).sort().join(" ");
  root.dataset.before = lines();
  fire("pointermove", 0.4);
  root.dataset.cross = lines();
  root.dataset.label = getComputedStyle(document.querySelector(".barname")).pointerEvents;
  const values = texts(".legend b");
  root.dataset.hover = `${values.filter(Boolean).length} of ${values.length} ${range()}`;
  fire("pointerdown", 0.3);
  for (const type of ["pointermove", "pointerup", "pointerleave"]) fire(type, 0.5);
  root.dataset.zoom = range();
  press("Escape");
  root.dataset.reset = range();
  press("ArrowRight");
  root.dataset.key = range() + document.getElementById("spoken").textContent;
  press("+");
  document.querySelectorAll("button[data-stage]")[3].click();
  root.dataset.stage = texts("#chart-stages .tick").join(" ");
"""


@pytest.mark.needs("chromium")
def test_pointer_keys_and_buttons_move_all_charts_at_once(tmp_path: Path) -> None:
    page = with_script(render(*MadeRun(seconds=60).build()), POINTER_AND_KEYS)
    opened = Browser().open(written(tmp_path, page))
    root = next(attrs for name, attrs in Elements(opened.dom).found if name == "html")
    told = {key.removeprefix("data-"): value or "" for key, value in root.items()}
    assert set(told["before"].split()) == {"hidden"}
    assert set(told["cross"].split()) == {"visible"}
    assert told["label"] == "none", "a click on a bar's label is one on the bar"
    filled, _, count = told["hover"].split(" ")[:3]
    assert filled == count
    assert "UTC" in told["hover"]
    assert re.match(r"Shown: 0:1\d to 0:[23]\d", told["zoom"]), told["zoom"]
    assert told["reset"] == "Whole run: 0:00 to 1:00"
    assert "CPU of the machine by mode: user" in told["key"]
    assert "0:00" not in told["stage"].split()


@pytest.mark.needs("chromium")
def test_prints_all_but_the_long_lists_that_stayed_folded(tmp_path: Path) -> None:
    probe = """
      document.querySelector("details.long").open = true;
      dispatchEvent(new Event("beforeprint"));
      const closed = [...document.querySelectorAll("details:not([open])")];
      document.documentElement.dataset.closed = closed.filter((one) => !one.matches(".long")).length;
      document.documentElement.dataset.long = closed.length;
    """  # noqa: E501 - a script of the page
    page = render(*MadeRun(seconds=60).build())
    opened = Browser().open(written(tmp_path, with_script(page, probe)))
    assert 'data-closed="0"' in opened.dom
    # Of each stage all its series and what was not measured, less the one that was unfolded.
    assert f'data-long="{2 * len(STAGES) - 1}"' in opened.dom
    target = tmp_path / "report.pdf"
    Browser().pdf(written(tmp_path, page), target)
    assert target.read_bytes().startswith(b"%PDF")


def with_script(page: str, script: str) -> str:
    """The page with one more script, and therefore without its policy."""
    return _POLICY.sub("", page).replace("</body>", f"<script>{{{script}}}</script></body>")


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.0, "B", "0 B"),
        (1023.0, "B", "1,023 B"),
        (1024.0, "B", "1.00 KiB"),
        (1.5 * 2**30, "B", "1.50 GiB"),
        (3.0 * 2**20, "B/s", "3.00 MiB/s"),
        (12_345.0, "J", "12.3 kJ"),
        (0.00042, "s", "420 µs"),
        (125.0, "s", "2 min 05 s"),
        (7322.0, "s", "2 h 02 min"),
        (62.345, "%", "62.3 %"),
        (0.5, "share", "50 %"),
        (5.0, "count", "5 count"),
        (0.99995, "cores", "1.00 cores"),
        (None, "B", "–"),
        (float("nan"), "B", "–"),
    ],
)
def test_values_for_people(value: float | None, unit: str, expected: str) -> None:
    assert human(value, unit) == expected


def test_shares_are_not_rounded_to_all_or_nothing() -> None:
    assert [percent(share) for share in (None, 0.0, 1e-5, 0.42, 0.9999, 1.0)] == [
        "–", "0 %", "< 0.1 %", "42 %", "99.9 %", "100 %",
    ]  # fmt: skip
    assert seconds(0.0) == "0 s"
    assert short(-1234.5) == "-1,230"


def test_elements_escape_text_and_attributes() -> None:
    made = tag("p", "a < b & c", tag("i", '"q"'), None, ["<", tag("br")], title='"><x')
    assert made == '<p title="&quot;&gt;&lt;x">a &lt; b &amp; c<i>&quot;q&quot;</i>&lt;<br></p>'


@pytest.mark.parametrize(("first", "told"), [(100.0, "× 3"), (None, None)])
def test_growth_is_against_the_first_stage_or_not_told(
    first: float | None, told: str | None
) -> None:
    stages = [
        StageView(place=place, record={"name": name, "bytes_out": size}, rows=[])
        for place, (name, size) in enumerate((("ingest", first), ("fit", 300.0)), 1)
    ]
    cells = str(growth(stages)).partition("fit")[2]
    assert ("× 3" in cells) is (told is not None)
    assert "× 1" not in cells

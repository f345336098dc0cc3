"""The report's hypervisor side: beside the guest, honest about what is missing, inert, legible."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from telemetry.report import render
from telemetry.report_contention import has_figures
from telemetry.report_html import exactly
from telemetry.report_series import MAX_POINTS
from telemetry.segments import SampleSet
from telemetry.vm_entity import Seen, parsed, short_hosts
from tests.browser import Browser
from tests.telemetry.report_runs import NO_VCENTER, STAGES, START_NS, MadeRun
from tests.telemetry.report_vsphere import (
    FROM,
    LEVEL_4,
    RULE,
    SERVER,
    TO,
    UNREACHED,
    VM,
    MadeVsphere,
)
from tests.telemetry.test_report import (
    HOSTILE,
    Elements,
    chart,
    chart_data,
    drawn_points,
    with_script,
    written,
)

Made = tuple[dict[str, Any], dict[str, Any], SampleSet]
REFUSAL = "the clock of esx1 is +3.2 s from the guest's, but the load says +41 s"
LONG_VM = "ml-training-production-eu-central-with-a-very-long-name-without-any-blank@team/a-0001"
LONG_HOST = "esx-gpu-node-17.rack-b.frankfurt-west.compute.internal.example-corporation.com"


@pytest.fixture(scope="module")
def plain() -> Made:
    return MadeVsphere(gpus=1).build()


@pytest.fixture(scope="module")
def moved() -> Made:
    return MadeVsphere(move_s=330.0, away=(120.0, 200.0), tls="NOT VERIFIED (insecure)").build()


def text_of(page: str) -> str:
    return Elements(page).text


def stage_part(page: str, place: int) -> str:
    """The section of one stage, without its main figures, some of which have the same names."""
    section = page.split(f'id="stage-{place}" class="stage"')[1].split("</section>", maxsplit=1)[0]
    above, _, rest = section.partition('class="mainfigures"')
    return above + rest.partition("</table>")[2]


def row_of(part: str, title: str) -> str:
    return next(one for one in part.split("<tr>") if one.startswith("<th") and f">{title}<" in one)


def profile_row(made: Made, stage: str, entity: str, metric: str) -> dict[str, Any]:
    rows = next(one["metrics"] for one in made[1]["stages"] if one["name"] == stage)
    return next(one for one in rows if (one["entity"], one["metric"]) == (entity, metric))


def test_header_says_which_vm_on_which_host_by_which_vcenter(plain: Made) -> None:
    page = render(*plain)
    head = text_of(page.split("</header>")[0])
    assert f"{VM} on {FROM}, cluster GPU-Cluster" in head
    assert f"{SERVER} · version 8.0.3" in head
    assert "TLS verified by ca_file" in head
    clock = f"3.21 s ahead of the guest's, within ±48.0 ms, by the clock of host {FROM}"
    assert clock in text_of(page.split('id="hypervisor"')[1])
    assert 'class="warn"' not in page
    assert "Nothing of what vCenter was asked for is missing." in page


def test_an_unverified_connection_is_named_above_all_sections(moved: Made) -> None:
    head = render(*moved).split("<nav")[0]
    assert '<strong class="bad">TLS NOT VERIFIED (insecure)</strong>' in head
    assert "The connection to vCenter was not verified." in head


def test_a_move_is_named_and_no_figures_of_two_hosts_are_mixed(moved: Made) -> None:
    page = render(*moved)
    sentence = f"{VM} moved from {FROM} to {TO} at 02:05:30 UTC (5 min 30 s into the run)."
    overview = text_of(page.split('id="hypervisor"')[0])
    assert sentence in overview
    assert f"{VM} on {FROM} → {TO}" in overview
    used = row_of(stage_part(page, 4), "CPU used") + stage_part(page, 4).split("CPU used<")[1]
    for host, short in ((FROM, "esx1"), (TO, "esx2")):
        row = profile_row(moved, "training", f"vm:{VM}@{host}", "vm_cpu_used_cores")
        assert f'title="{exactly(row["mean"])} cores"' in used
        assert f"on {short}</span>" in used
    data = chart_data(page)
    assert [(move["at"], move["to"]) for move in data["moves"]] == [(330_000, TO)]
    power = chart(page, "vm-power")["series"]
    assert [one["label"] for one in power if one["look"] == "step"] == ["host esx1", "host esx2"]


def test_moves_between_two_looks_have_both_times(moved: Made) -> None:
    run, profile, samples = moved
    at = START_NS + 330 * 10**9
    move = {"vm": VM, "at_ns": at, "not_before_ns": at - 60 * 10**9, "exact": False}
    told = profile["hypervisor"] | {"moves": [move | {"from_host": FROM, "to_host": TO}]}
    page = render(run, profile | {"hypervisor": told}, samples)
    assert f"moved from {FROM} to {TO} between 02:04:30 and 02:05:30 UTC" in page


def test_figures_beside_each_other_are_those_of_the_profile(plain: Made) -> None:
    part = stage_part(render(*plain), 4)
    entity = f"vm:{VM}@{FROM}"
    for title, ours, theirs, estimate in (
        ("CPU used", ("machine", "cpu_busy_seconds", "cores"), "vm_cpu_used_cores", True),
        ("Ready, all vCPUs", ("machine", "cpu_steal_seconds", "cores"), "vm_cpu_ready_cores", 0),
        ("Used · consumed", ("machine", "mem_used_bytes", "B"), "vm_mem_consumed_bytes", False),
        ("Received", ("net:eth0", "net_rx_bytes", "B/s"), "vm_net_rx_bytes_per_s", True),
    ):  # fmt: skip
        row = row_of(part, title)
        guest = profile_row(plain, "training", *ours[:2])
        other = profile_row(plain, "training", entity, theirs)
        assert f'title="{exactly(guest["mean"])} {ours[2]}"' in row
        assert f'title="{exactly(other["mean"])} {other["unit"]}"' in row
        assert f'title="{exactly(other["max"])} {other["unit"]}"' in row
        assert f"<small>{100 * other['coverage']:.0f} %</small>" in row
        if estimate:
            sharp = profile_row(plain, "training", entity, f"{theirs}_estimate")
            assert f'title="{exactly(sharp["mean"])} {other["unit"]}"' in row
            assert '<em class="est">est. ' in row
        else:
            assert "est. " not in row


def test_latency_of_the_guest_is_wait_over_requests(plain: Made) -> None:
    wait = profile_row(plain, "training", "disk:sda", "disk_read_wait_seconds")["total"]
    ops = profile_row(plain, "training", "disk:sda", "disk_read_ops")["total"]
    row = row_of(stage_part(render(*plain), 4), "Latency of reads")
    assert f'title="{exactly(wait / ops * 1000.0)} ms"' in row
    assert ">sda</span>" in row
    assert ">scsi0:0</span>" in row


def test_gpu_and_host_of_the_hypervisor_stand_beside_nvml(plain: Made) -> None:
    part = stage_part(render(*plain), 4)
    nvml = profile_row(plain, "training", "gpu:0", "gpu_util_percent")["mean"]
    host = profile_row(plain, "training", f"esxi:{FROM}/gpu:0", "host_gpu_util_percent")["mean"]
    assert f'title="{exactly(nvml)} %"' in row_of(part, "Busy")
    assert f'title="{exactly(host)} %"' in row_of(part, "Busy")
    watts = profile_row(plain, "training", f"esxi:{FROM}", "host_power_w")["mean"]
    assert f'title="{exactly(watts)} W"' in row_of(part, "Power of the host")


def test_every_dash_has_its_reason_in_writing(plain: Made) -> None:
    part = stage_part(render(*plain), 4)
    notes = re.findall(r"<li>(.*?)</li>", part.split('<ol class="notes">')[1].split("</ol>")[0])
    numbers = [int(one) for one in re.findall(r"<sup>(\d+)</sup>", part)]
    assert sorted(set(numbers)) == list(range(1, len(notes) + 1))
    latency = row_of(part, "CPU latency")
    number = re.findall(r"<sup>(\d+)</sup>", latency)[1]
    assert notes[int(number) - 1] == LEVEL_4
    assert "a guest cannot see this" in notes


def test_estimates_are_marked_wherever_they_stand(plain: Made) -> None:
    page = render(*plain)
    body = page.split('<script type="application/json"')[0]
    assert "_estimate" not in body
    assert "cpu used cores estimate" not in body
    assert '<em title="estimate: the windows sharpened (vCenter of this test)" class="est">' in body
    series = chart(page, "vm-cpu")["series"]
    assert [(one["label"], one["look"]) for one in series] == [
        ("guest", "guest"), ("VM", "step"), ("est. VM", "est"),
    ]  # fmt: skip
    assert series[1]["hue"] == series[2]["hue"] != series[0]["hue"]


def test_windows_are_steps_over_their_own_time_and_gaps_stay_open(moved: Made) -> None:
    series = next(
        one for one in chart(render(*moved), "vm-contention")["series"] if one["label"] == "ready"
    )
    drawn = drawn_points(series)
    windows = sorted(
        (row["start_ns"], row["ts_ns"], row["value"])
        for row in moved[2].table.to_pylist()
        if row["metric"] == "vm_cpu_ready_percent"
    )
    expected: list[tuple[int, float | None]] = []
    for place, (start, end, value) in enumerate(windows):
        expected.append(((start - START_NS) // 10**6, float(f"{value:.4g}")))
        if place + 1 == len(windows) or windows[place + 1][0] != end:
            expected.append(((end - START_NS) // 10**6, None))
    assert drawn == expected
    opened = [at for at, value in drawn if value is None]
    assert len(opened) == 3  # vCenter away, the move, the end of the run
    assert 100_000 < opened[0] <= 120_000
    assert 310_000 < opened[1] <= 330_000


def test_what_is_zero_throughout_is_named_and_not_drawn(plain: Made) -> None:
    page = render(*plain)
    charts = {one["key"]: one for one in chart_data(page)["charts"]}
    assert "vm-dropped" not in charts
    hints = [one["hint"] for one in chart_data(page)["charts"] if one.get("hint")]
    assert len(hints) == 1
    assert "0 in the whole run: Network: packets dropped." in hints[0]
    assert charts["vm-memory"]["note"] == "0 in the whole run: ballooned, swapped."


def test_a_gap_says_when_how_long_and_which_stages(moved: Made) -> None:
    page = render(*moved)
    table = page.split("Times without windows of the hypervisor: 1</caption>")[1]
    table = table.split("</table>", maxsplit=1)[0]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", table) == [
        "02:02:00", "02:03:20", "80.0 s", "2 min 00 s", f"vm:{VM}@{FROM}", "3 features",
        "no window was there",
    ]  # fmt: skip
    assert "Hypervisor seen for 77 % of the run." in text_of(page)


def test_flags_stand_in_the_overview_and_at_their_stage(plain: Made) -> None:
    page = render(*plain)
    overview = page.split('id="timeline"')[0]
    assert overview.count('href="#stage-4-contention"') == 1
    assert "⚑ 2</a>" in overview
    told = text_of(overview.split("<h2>Contention</h2>")[1])
    assert f"3 features{VM}: 5.3 % during features" in told
    for words in ("⚑ 6.10 %", "5 %", RULE, "⚑ 22 ms", "20 ms", "this project's choice"):
        assert words in told
    box = page.split('id="stage-4-contention"')[1].split("</div></div>")[0]
    assert "⚑ 6.10 %" in box
    assert RULE in box
    part = stage_part(page, 4)
    ready, slow = row_of(part, "Ready, per vCPU"), row_of(part, "Largest latency of the VM")
    assert ready.count("⚑") == 1  # its mean
    assert re.search(r"⚑ [\d.]+ ms</b></td></tr>", slow)  # its largest window
    assert "stage-1-contention" not in page


def test_without_flags_it_says_so_only_where_it_was_seen() -> None:
    page = render(*MadeVsphere(flagged=False, seconds=300).build())
    assert "No figure of the hypervisor passed a threshold of contention in any stage." in page
    refused = render(*MadeVsphere(refused=REFUSAL, seconds=300).build())
    assert "No figure of the hypervisor passed" not in refused
    assert f"Not known: refused: {REFUSAL}." in text_of(refused)


def test_a_refused_attribution_has_no_figures_and_its_sentence() -> None:
    page = render(*MadeVsphere(refused=REFUSAL, seconds=300).build())
    text = text_of(page)
    assert f"All figures of the hypervisor are refused: {REFUSAL}." in text
    assert text.count("not known") >= len(STAGES)  # the overview's cells
    assert "What is missing" in text
    assert chart(page, "vm")["empty"] == f"Not measured: refused: {REFUSAL}."
    assert f"No figures of the hypervisor: refused: {REFUSAL}." in text_of(stage_part(page, 1))
    assert 'class="beside"' not in page


def test_a_host_that_was_refused_beside_one_that_was_not(moved: Made) -> None:
    run, profile, samples = moved
    told = profile["hypervisor"] | {"refused": REFUSAL}
    text = text_of(render(run, profile | {"hypervisor": told}, samples))
    assert f"Some figures of the hypervisor are refused: {REFUSAL}." in text


def test_a_vcenter_that_was_never_reached() -> None:
    run, profile, samples = MadeVsphere(reached=False, seconds=300).build()
    page = render(run, profile, samples)
    text = text_of(page)
    assert f"Hypervisor not measured: {UNREACHED}." in text
    assert f"Lost on the way:vcenter: {UNREACHED}" in text
    assert SERVER in text.split("Overview")[0]
    assert "no connection was recorded" in text
    assert "It is not known which VM this machine is" in text
    # and where the run was killed before a profile could say anything of it
    without = {key: value for key, value in profile.items() if key != "hypervisor"}
    assert f"Hypervisor not measured: {UNREACHED}." in text_of(render(run, without, samples))


def test_a_stage_shorter_than_a_window_has_its_coverage_and_no_bare_number() -> None:
    made = MadeVsphere(seconds=100)
    run, profile, samples = made.build()
    page = render(run, profile, samples)
    rows = profile["stages"][4]["metrics"]
    short = next(row for row in rows if row["metric"] == "vm_cpu_used_cores")
    assert short["mean"] is None
    assert short["coverage"] > 0
    cells = row_of(stage_part(page, 5), "CPU used").split("<td")[1:]
    assert f"<small>{100 * short['coverage']:.0f} %</small>" in cells[1]
    assert "cores" not in cells[1]
    assert "est. " in cells[2]
    assert short["reason"] in stage_part(page, 5)


def test_a_run_without_vcenter_keeps_its_page_and_its_one_line() -> None:
    page = render(*MadeRun(seconds=60).build())
    text = text_of(page.split('<script type="application/json"')[0])
    assert text.count(f"not measured: {NO_VCENTER} (machine by VMware, Inc.)") == 1
    for word in ("Guest beside hypervisor", "Contention", "What is missing", "vCenter version"):
        assert word not in text
    assert "hypervisor" not in Elements(page).ids()
    assert not [one["key"] for one in chart_data(page)["charts"] if one["key"].startswith("vm")]


def test_further_vms_of_the_run_are_folded_and_have_no_guest() -> None:
    made = MadeVsphere(seconds=300, others=("ml-worker-02",)).build()
    page = render(*made)
    part = stage_part(page, 4)
    folded = part.split("s view of VM ml-worker-02</summary>")[1]
    worker = profile_row(made, "training", f"vm:ml-worker-02@{FROM}", "vm_cpu_used_cores")
    assert f'title="{exactly(worker["mean"])} cores"' in folded
    assert "no recorder ran there" in folded
    assert "ml-worker-02" not in json.dumps(chart(page, "vm-cpu"))


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"server": SERVER},
        {"vms": [{}], "moves": [{}], "gaps": [{}], "contention": [{}], "clock": {}, "clocks": [{}]},
        {"vms": [{"vm": VM}], "moves": [{"vm": VM, "at_ns": START_NS}], "clock": {"offset_s": 0.0}},
        {"gaps": [{"from_ns": START_NS}], "contention": [{"stage": "gone", "value": None}]},
        {"clock": {"offset_s": -2.0, "witness": "correlation", "correlation": 0.9}},
        dict.fromkeys(("server", "tls", "vms", "moves", "clock", "gaps", "losses", "contention")),
    ],
)  # fmt: skip
def test_whatever_the_record_leaves_out(plain: Made, told: dict[str, Any]) -> None:
    run, profile, samples = plain
    text = text_of(render(run, profile | {"hypervisor": told}, samples))
    assert "Guest beside hypervisor" in text
    assert not re.search(r"\bNone\b", text)
    assert render(run, profile | {"hypervisor": told}, SampleSet.empty())


def hostile() -> Made:
    made = MadeVsphere(vm=f"a{HOSTILE}@x/y", hosts=(HOSTILE, f"b{HOSTILE}"), move_s=100.0,
                       seconds=240.0, tls=HOSTILE, gpus=1)  # fmt: skip
    run, profile, samples = made.build()
    told = profile["hypervisor"]
    told |= {"server": HOSTILE, "losses": [HOSTILE], "refused": HOSTILE}
    told["gaps"] = [
        {"from_ns": START_NS, "to_ns": START_NS + 1, "reason": HOSTILE, "entity": HOSTILE}
    ]
    for flag in told["contention"]:
        flag |= {"source": HOSTILE, "sentence": HOSTILE, "unit": HOSTILE}
    return run, profile, samples


def test_hostile_names_are_text() -> None:
    elements = Elements(render(*hostile()))
    assert not [name for name, _ in elements.found if name == "img"]
    assert sum(name == "script" for name, _ in elements.found) == 2
    for _, attrs in elements.found:
        assert not [key for key in attrs if key.startswith("on")]


@pytest.mark.needs("chromium")
def test_hostile_names_are_inert_in_a_browser(tmp_path: Path) -> None:
    # The page's own script still runs; without the policy, so that escaping alone has to hold.
    opened = Browser().open(written(tmp_path, with_script(render(*hostile()), "")))
    assert "data-hacked" not in opened.dom
    assert not [name for name, _ in Elements(opened.dom).found if name == "img"]
    assert 'id="chart-vm-cpu"' in opened.dom


def test_an_hour_with_a_vcenter_stays_small() -> None:
    page = render(*MadeVsphere(seconds=3600, gpus=1, move_s=1800.0).build())
    lengths = [len(series["t"]) for one in chart_data(page)["charts"] for series in one["series"]]
    assert max(lengths) <= MAX_POINTS + 2
    assert len(page.encode()) < 5_000_000


# Text may not leave its cell, nor stand on other text; nothing may be wider than the window.
LEGIBLE = """
  for (const type of ["beforeprint", "afterprint"]) dispatchEvent(new Event(type));  // all are drawn
  const told = [];
  const near = 1.5;
  const box = (node) => { const r = document.createRange(); r.selectNodeContents(node); return r.getBoundingClientRect(); };
  for (const cell of document.querySelectorAll(".beside td, .beside th, .flags td, .gaps td, .gaps th, header dd, #hypervisor dd")) {
    const inner = box(cell), outer = cell.getBoundingClientRect();
    if (inner.width && (inner.left < outer.left - near || inner.right > outer.right + near)) told.push(`leaves its cell: ${cell.textContent}`);
  }
  for (const svg of document.querySelectorAll("figure.chart > svg")) {
    const texts = [...svg.querySelectorAll("text")].filter((one) => !one.classList.contains("barname"));
    const rects = texts.map((one) => one.getBoundingClientRect());
    const frame = svg.getBoundingClientRect();
    texts.forEach((one, i) => {
      if (rects[i].left < frame.left - near || rects[i].right > frame.right + 14) told.push(`leaves its chart: ${one.textContent}`);
      for (let k = i + 1; k < texts.length; k += 1) {
        const wide = Math.min(rects[i].right, rects[k].right) - Math.max(rects[i].left, rects[k].left);
        const high = Math.min(rects[i].bottom, rects[k].bottom) - Math.max(rects[i].top, rects[k].top);
        if (wide > near && high > 4) told.push(`${svg.parentNode.id}: ${one.textContent} on ${texts[k].textContent}`);
      }
    });
  }
  const root = document.documentElement;
  const steps = [...document.querySelectorAll("path.look-step")];
  const turned = steps.filter((one) => /^M[-\\d. ]+(H[-\\d.]+(V[-\\d.]+)?|M[-\\d. ]+)*$/.test(one.getAttribute("d"))).length;
  const answer = { width: innerWidth, page: root.scrollWidth, told, steps: steps.length, turned };
  root.dataset.legible = JSON.stringify(answer);
  parent.postMessage(JSON.stringify(answer), "*");
"""  # noqa: E501 - a script of the page


def measured(folder: Path, page: str, width: int) -> dict[str, Any]:
    """What the script above found in a page at a width, which a frame has for a phone's sake."""
    inner = written(folder, with_script(page, LEGIBLE))
    frame = folder / "frame.html"
    frame.write_text(
        "<script>onmessage = (event) => {document.documentElement.dataset.told = event.data;}"
        f'</script><iframe src="{inner}" width="{width}" height="844" style="border:0"></iframe>'
    )
    opened = Browser(width=max(500, width)).open(frame.as_uri())
    assert opened.console == []
    told = next(attrs["data-told"] for _, attrs in Elements(opened.dom).found if attrs)
    return dict(json.loads(told or "{}"))


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("kind", ["plain", "moved", "long"])
def test_nothing_overlaps_or_leaves_its_place(
    tmp_path: Path, plain: Made, moved: Made, kind: str, width: int
) -> None:
    hosts = (LONG_HOST, LONG_HOST.replace("17", "18"))
    made = {"plain": plain, "moved": moved}.get(kind) or MadeVsphere(
        vm=LONG_VM, hosts=hosts, move_s=150.0, seconds=300, gpus=2, others=("ml-worker-02",)
    ).build()
    found = measured(tmp_path, render(*made), width)
    assert found["told"] == []
    assert found["page"] == found["width"] == width
    assert found["steps"] == found["turned"] > 10


@pytest.mark.parametrize(
    ("entity", "seen"),
    [
        ("vm:ml-01@esx1", Seen(vm="ml-01", host="esx1", instance=None)),
        ("vm:ml-01@esx1/scsi0:0", Seen(vm="ml-01", host="esx1", instance="scsi0:0")),
        ("vm:a@b/c:d@esx1.lab/4000", Seen(vm="a@b/c:d", host="esx1.lab", instance="4000")),
        ("vm:ml-01", Seen(vm="ml-01", host=None, instance=None)),
        ("esxi:esx1/gpu:0", Seen(vm=None, host="esx1", instance="gpu:0")),
        ("vm", Seen(vm=None, host=None, instance=None)),
        ("disk:sda", Seen(vm=None, host=None, instance=None)),
    ],
)
def test_entities_are_taken_apart(entity: str, seen: Seen) -> None:
    assert parsed(entity) == seen


def test_hosts_lose_their_domain_only_where_they_stay_apart() -> None:
    assert short_hosts(["a.x", "b.x"]) == {"a.x": "a", "b.x": "b"}
    assert short_hosts(["a.x", "a.y"]) == {"a.x": "a.x", "a.y": "a.y"}
    assert short_hosts(["10.0.0.1", "10.0.0.2"])["10.0.0.1"] == "10.0.0.1"


def test_estimates_and_clocks_alone_do_not_say_that_there_was_no_contention() -> None:
    """A stage shorter than a window has those and nothing to hold against a threshold."""
    rows: list[dict[str, Any]] = [
        {"entity": f"vm:{VM}@{FROM}", "metric": "vm_cpu_ready_percent", "mean": None},
        {"entity": f"vm:{VM}@{FROM}", "metric": "vm_cpu_used_cores_estimate", "mean": 1.0},
        {"entity": f"esxi:{FROM}", "metric": "clock_offset_seconds", "mean": 0.0},
    ]
    stage = cast("Any", SimpleNamespace(rows=rows))
    assert not has_figures(stage)
    rows[0]["mean"] = 0.1
    assert has_figures(stage)

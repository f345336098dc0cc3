"""The report's table of all stages, and what is added up in it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from telemetry.report import render
from telemetry.report_html import exactly
from telemetry.report_overview import _moved, _overlap, _together_s
from telemetry.report_view import StageView
from tests.telemetry.report_runs import MadeRun
from tests.telemetry.test_report import Elements

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted), max_size=8)


@given(SPANS)
def test_time_together_is_that_of_a_slow_reference(spans: list[list[int]]) -> None:
    stages = [
        StageView(place=place, record={"start_ns": low, "end_ns": high}, rows=())
        for place, (low, high) in enumerate(spans)
    ]
    covered = [place for low, high in spans for place in range(low, high)]
    assert round(_together_s(stages) * 1e9) == len(set(covered))
    if len(covered) > len(set(covered)):
        assert _overlap(stages)
    if not _overlap(stages):
        assert len(covered) == len(set(covered))


def test_what_ran_at_the_same_time_is_not_added_up() -> None:
    run, profile, samples = MadeRun(seconds=60).build()
    whole = Elements(render(run, profile, samples)).text
    assert "Sum of the measured" in whole
    outer, inner = run["stages"][3], run["stages"][4]
    outer["end_ns"] = inner["end_ns"] + 10**9
    run["stages"] = run["stages"][:5]
    page = render(run, profile, samples)
    foot = page.split("<tfoot>")[1].split("</tfoot>")[0]
    assert "All measured together" in foot
    assert foot.count("would count twice") == 3  # CPU, storage, network
    first = run["stages"][0]["start_ns"]
    gaps = sum(
        later["start_ns"] - earlier["end_ns"]
        for earlier, later in zip(run["stages"][:3], run["stages"][1:4], strict=True)
    )
    assert f'title="{exactly((outer["end_ns"] - first - gaps) / 1e9)} s; time in which' in foot


def test_overview_numbers_are_those_of_the_profile() -> None:
    run, profile, samples = MadeRun(gpus=2).build()
    text = Elements(render(run, profile, samples))
    row = {(one["entity"], one["metric"]): one for one in profile["stages"][3]["metrics"]}
    cpu_s = row["stage", "cpu_user_seconds"]["total"] + row["stage", "cpu_system_seconds"]["total"]
    energy_j = sum(row[f"gpu:{number}", "energy_j"]["total"] for number in range(2))
    titles = [attrs.get("title") or "" for _, attrs in text.found]
    assert any(title.startswith(f"{exactly(cpu_s)} core·s") for title in titles)
    assert any(title.startswith(f"{exactly(energy_j)} J") for title in titles)


def test_energy_of_some_gpus_is_not_that_of_all() -> None:
    run, profile, samples = MadeRun(seconds=60, gpus=2).build()
    rows = profile["stages"][3]["metrics"]
    lost = next(r for r in rows if (r["entity"], r["metric"]) == ("gpu:1", "energy_j"))
    left = next(r for r in rows if (r["entity"], r["metric"]) == ("gpu:0", "energy_j"))["total"]
    lost |= {"total": None, "mean": None, "reason": "the GPU was lost"}
    page = render(run, profile, samples)
    assert f'title="{exactly(left)} J; 1 of 2 GPUs: the others&#x27; was not measured"' in page
    assert "(1 of 2)" in Elements(page).text
    foot = page.split("<tfoot>")[1].split("</tfoot>")[0]
    assert "not known of every GPU in every stage" in foot


def test_bytes_that_a_bridge_passes_on_are_counted_once() -> None:
    """The machine's sum is of interfaces with hardware; without it all but lo are added."""

    def view(*entities: str) -> StageView:
        rows = [{"entity": one, "metric": "net_rx_bytes", "total": 1e9} for one in entities]
        return StageView(place=1, record={"name": "fit"}, rows=rows)

    assert _moved(view("net:eth0", "net:docker0", "net:veth1", "machine"), "net_rx_bytes") == 1e9
    assert _moved(view("net:eth0", "net:eth1", "net:lo"), "net_rx_bytes") == 2e9

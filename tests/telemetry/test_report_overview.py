"""The report's table of all stages, and what is added up in it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from telemetry.report import render
from telemetry.report_html import NOTHING, exactly
from telemetry.report_overview import _COLUMNS, _cpu, _moved, _overlap, _together_s
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
    some = "1 of 2 GPUs: the others&#x27; was not measured in all of the stage"
    assert f'title="{exactly(left)} J; {some}"' in page
    assert "(1 of 2)" in Elements(page).text
    foot = page.split("<tfoot>")[1].split("</tfoot>")[0]
    assert "not known of every GPU in every stage" in foot


def test_energy_of_a_part_of_a_stage_is_not_that_of_all() -> None:
    """One GPU fell off the bus at 40 % of the stage, then the other one, too."""
    run, profile, samples = MadeRun(seconds=60, gpus=2).build()
    rows = profile["stages"][3]["metrics"]
    first, second = (row for row in rows if row["metric"] == "energy_j")
    second |= {"coverage": 0.4, "total_share": 0.4}
    page = render(run, profile, samples)
    assert f'title="{exactly(first["total"])} J; 1 of 2 GPUs' in page
    assert "not known of every GPU" in page.split("<tfoot>")[1].split("</tfoot>")[0]
    first |= {"coverage": 0.6, "total_share": 0.6}
    assert "energy of 40 % alone" in Elements(render(run, profile, samples)).text


def test_what_half_a_stage_was_seen_to_use_is_not_told_as_the_whole() -> None:
    """The recorder was lost: cores are of what it saw, and the sum is by wait4 or not there."""

    def view(share: float | None, **used: float) -> StageView:
        rows = [
            {"entity": "stage", "metric": metric, "total": total, "mean": total / 5.0,
             "coverage": 0.5, "total_share": share}
            for metric, total in (("cpu_user_seconds", 16.0), ("cpu_system_seconds", 4.0))
        ]  # fmt: skip
        record = {"name": "fit", "start_ns": 0, "end_ns": 10**10, "rusage": used}
        return StageView(place=1, record=record, rows=rows)

    def told(one: StageView) -> list[Any]:
        return [fact.text for fact in _cpu(one)]

    assert told(view(0.5)) == ["4 cores", NOTHING]
    assert told(view(0.5, user_s=30.0, system_s=9.0)) == ["3.90 cores", "39 core·s"]
    assert told(view(None, user_s=30.0, system_s=9.0)) == ["3.90 cores", "39 core·s"]
    assert told(view(1.0)) == ["2 cores", "20 core·s"]


def test_a_sum_of_stages_is_none_where_one_of_them_is_not_known() -> None:
    def view(place: int, rx_share: float, **used: float) -> StageView:
        rows = [
            {
                "entity": "machine",
                "metric": "net_rx_bytes",
                "total": 5 * 2.0**20,
                "coverage": rx_share,
            }
        ]
        start = place * 10**10
        record = {"name": f"s{place}", "start_ns": start, "end_ns": start + 10**10, "rusage": used}
        return StageView(place=place, record=record, rows=rows)

    def told(stages: list[StageView]) -> list[str]:
        return [str(fact.text) for one in _COLUMNS for fact in one.sums(stages)]

    mib = 2.0**20
    used = {"user_s": 30.0, "system_s": 9.0, "read_bytes": 2 * mib, "write_bytes": 3 * mib}
    known = [view(1, 1.0, **used), view(2, 0.96, **used)]
    storage, network = ("4.00 MiB read", "6.00 MiB written"), ("10.0 MiB in", NOTHING)
    assert told(known) == ["20.0 s", "78 core·s", *storage, *network]
    part = [view(1, 1.0, **used), view(2, 0.94)]
    assert told(part) == ["20.0 s", *[NOTHING] * 5]


def test_bytes_that_a_bridge_passes_on_are_counted_once() -> None:
    """The machine's sum is of interfaces with hardware; without it all but lo are added."""

    def view(*entities: str) -> StageView:
        rows = [
            {"entity": one, "metric": "net_rx_bytes", "total": 1e9, "coverage": 1.0}
            for one in entities
        ]
        return StageView(place=1, record={"name": "fit"}, rows=rows)

    assert _moved(view("net:eth0", "net:docker0", "net:veth1", "machine"), "net_rx_bytes") == 1e9
    assert _moved(view("net:eth0", "net:eth1", "net:lo"), "net_rx_bytes") == 2e9

"""Counters resolved and samples asked of a vCenter: chunks, formats, refusals, re-login."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import vim

from infra.vsphere.counters import Counter, CounterTable, available
from infra.vsphere.errors import VCenterRefused, VCenterUnreachable
from infra.vsphere.perf import MOST_CHUNK, PerfSeries, Wanted, chunks, max_query_metrics, query
from infra.vsphere.session import VCenter
from telemetry.collectors.vcenter_metrics import COUNTER_UNITS
from tests.vcsim_server import Vcsim

NS = 1_000_000_000
STEP_NS = 20 * NS


def counter(number: int, name: str, unit: str = "percent") -> Counter:
    return Counter(id=number, name=name, unit=unit, stats_type="rate", level=1)


def test_names_are_resolved_and_what_is_not_there_or_in_another_unit_has_its_reason() -> None:
    table = CounterTable.of(
        [counter(7, "cpu.usage.average"), counter(9, "mem.consumed.average", "megaBytes")]
    )
    found, reasons = table.resolve(
        ["cpu.usage.average", "mem.consumed.average", "gpu.utilization.average"],
        {"mem.consumed.average": "kiloBytes"},
    )
    assert {name: one.id for name, one in found.items()} == {"cpu.usage.average": 7}
    assert reasons == {
        "mem.consumed.average": (
            "mem.consumed.average is in megaBytes on this vCenter, not in kiloBytes"
        ),
        "gpu.utilization.average": "this vCenter knows no counter gpu.utilization.average",
    }


@given(
    st.lists(st.integers(0, 40), max_size=12),
    st.integers(1, 64),
)
def test_chunks_are_full_and_lose_nothing(sizes: list[int], most: int) -> None:
    wanted = [
        Wanted("VirtualMachine", f"vm-{place}", tuple((number, "") for number in range(size)))
        for place, size in enumerate(sizes)
    ]
    parts = list(chunks(wanted, most))
    flat = [(one.moid, pair) for part in parts for one in part for pair in one.counters]
    assert flat == [(one.moid, pair) for one in wanted for pair in one.counters]
    lengths = [sum(len(one.counters) for one in part) for part in parts]
    assert all(length == most for length in lengths[:-1])
    assert all(0 < length <= most for length in lengths)


@pytest.fixture
def vcenter(vcsim: Vcsim) -> Iterator[VCenter]:
    with VCenter(vcsim.settings(), environ=vcsim.environ()) as session:
        yield session
    counts = vcsim.counts
    assert counts["sessions"] == counts["views"] == 0
    assert counts.get("queries_without_start", 0) == 0


def vms(vcenter: VCenter) -> list[str]:
    return sorted(vm._GetMoId() for vm, _ in vcenter.retrieve(vim.VirtualMachine, ["name"]))


def everything(vcenter: VCenter) -> list[Wanted]:
    """All series of all VMs that the server can describe."""
    known = CounterTable.read(vcenter).by_id
    return [
        Wanted(
            "VirtualMachine",
            moid,
            tuple(one for one in available(vcenter, "VirtualMachine", moid) if one[0] in known),
        )
        for moid in vms(vcenter)
    ]


def last_ns() -> int:
    """End of a window that is surely there, and not the very last."""
    return (time.time_ns() // STEP_NS - 1) * STEP_NS


def rows(series: Iterable[PerfSeries]) -> list[tuple[str, int, str, int, int]]:
    return sorted(
        (one.moid, one.counter_id, one.instance, end_ns, value)
        for one in series
        for end_ns, value in zip(one.ends_ns.tolist(), one.values.tolist(), strict=True)
    )


def by_pyvmomi(
    vcenter: VCenter, wanted: list[Wanted], start_ns: int, end_ns: int
) -> list[tuple[str, int, str, int, int]]:
    kind = vim.PerformanceManager
    start, end = (datetime.fromtimestamp(ns // NS, UTC) for ns in (start_ns, end_ns))
    found = []
    for one in wanted:
        spec = kind.QuerySpec(
            entity=vim.VirtualMachine(one.moid, vcenter.stub),
            metricId=[kind.MetricId(counterId=c, instance=i) for c, i in one.counters],
            startTime=start,
            endTime=end,
            intervalId=20,
        )
        for entity in vcenter.content.perfManager.QueryPerf(querySpec=[spec]):
            stamps = [round(info.timestamp.timestamp()) * NS for info in entity.sampleInfo]
            found += [
                (one.moid, series.id.counterId, series.id.instance, stamp, value)
                for series in entity.value
                for stamp, value in zip(stamps, series.value, strict=True)
            ]
    return sorted(found)


@pytest.mark.needs("go")
@pytest.mark.parametrize("csv", ["yes", "ignore", "refuse"])
@pytest.mark.parametrize("order", ["oldest", "newest"])
def test_the_same_as_by_pyvmomi_in_whatever_format_and_order(
    vcsim: Vcsim, vcenter: VCenter, csv: str, order: str
) -> None:
    vcsim.control(csv=csv, order=order, negatives=[{"from_s": 0, "to_s": last_ns() // NS - 40}])
    wanted, end_ns = everything(vcenter), last_ns()
    start_ns = end_ns - 5 * STEP_NS
    got = rows(query(vcenter, wanted, start_ns=start_ns, end_ns=end_ns))
    assert got == by_pyvmomi(vcenter, wanted, start_ns, end_ns)
    assert {stamp for *_, stamp, _ in got} == {end_ns - n * STEP_NS for n in range(5)}
    assert {value < 0 for *_, value in got} == {True, False}


@pytest.mark.needs("go")
@pytest.mark.parametrize(
    ("option", "most"),
    [("256", 256), ("64", 64), ("7", 7), ("-1", MOST_CHUNK), (None, 256), ("much", 256)],
)
def test_requests_stay_within_what_the_server_allows(
    vcsim: Vcsim, vcenter: VCenter, option: str | None, most: int
) -> None:
    vcsim.control(max_query_metrics=option)
    assert max_query_metrics(vcenter) == most
    wanted, end_ns = everything(vcenter), last_ns()
    before = vcsim.counts.get("queries", 0)
    got = rows(query(vcenter, wanted, start_ns=end_ns - STEP_NS, end_ns=end_ns))
    asked = [(one.moid, *pair, end_ns) for one in wanted for pair in one.counters]
    assert [row[:4] for row in got] == sorted(asked)
    counts = vcsim.counts
    assert counts["query_metrics_most"] <= most
    assert counts.get("queries_too_large", 0) == 0
    assert counts["queries"] - before == -(-len(asked) // most)


@pytest.mark.needs("go")
def test_a_limit_that_cannot_be_known_is_found(vcsim: Vcsim, vcenter: VCenter) -> None:
    vcsim.control(max_query_metrics="10")
    wanted, end_ns = everything(vcenter), last_ns()
    got = rows(query(vcenter, wanted, start_ns=end_ns - STEP_NS, end_ns=end_ns, chunk=100))
    assert len(got) == sum(len(one.counters) for one in wanted)
    assert len(set(got)) == len(got)


@pytest.mark.needs("go")
def test_what_is_gone_or_unknown_does_not_cost_the_others(vcsim: Vcsim, vcenter: VCenter) -> None:
    whole, end_ns = everything(vcenter), last_ns()
    (number, instance), *_ = whole[0].counters
    bad = [
        Wanted("VirtualMachine", "vm-99999", ((number, instance),)),
        Wanted("VirtualMachine", whole[0].moid, ((number, instance), (999_999, ""))),
    ]
    refused: list[tuple[str, int, str]] = []
    got = rows(
        query(
            vcenter,
            [*bad, whole[1]],
            start_ns=end_ns - STEP_NS,
            end_ns=end_ns,
            refuse=lambda one, why: refused.append((one.moid, len(one.counters), why)),
        )
    )
    assert [row[:3] for row in got] == sorted(
        [(whole[0].moid, number, instance)] + [(whole[1].moid, *pair) for pair in whole[1].counters]
    )
    assert [(moid, count) for moid, count, _ in refused] == [("vm-99999", 1), (whole[0].moid, 1)]
    assert "ManagedObjectNotFound" in refused[0][2]
    assert "InvalidArgument" in refused[1][2]
    with pytest.raises(VCenterRefused, match="no samples of VirtualMachine vm-99999"):
        list(query(vcenter, bad[:1], start_ns=end_ns - STEP_NS))


@pytest.mark.needs("go")
def test_a_session_that_ended_is_renewed_within_a_query(vcsim: Vcsim, vcenter: VCenter) -> None:
    wanted, end_ns = everything(vcenter), last_ns()
    series = query(vcenter, wanted, start_ns=end_ns - STEP_NS, end_ns=end_ns, chunk=20)
    got = [next(series)]
    vcsim.control(expire_sessions=True)
    got += series
    assert len(rows(got)) == len(set(rows(got))) == sum(len(one.counters) for one in wanted)
    assert vcsim.counts["expired"] >= 1


@pytest.mark.needs("go")
def test_a_server_that_cannot_is_told_apart_from_one_that_will_not(
    vcsim: Vcsim, vcenter: VCenter
) -> None:
    wanted = everything(vcenter)[:1]
    vcsim.control(outages=[{"mode": "perf_503"}])
    with pytest.raises(VCenterUnreachable, match="503"):
        list(query(vcenter, wanted, start_ns=last_ns()))
    vcsim.control(outages=[{"mode": "perf_fault"}])
    with pytest.raises(VCenterRefused, match="statistics are not to be had"):
        list(query(vcenter, wanted, start_ns=last_ns()))


@pytest.mark.needs("go")
def test_every_counter_of_the_table_is_resolved_on_a_vcenter(vcenter: VCenter) -> None:
    found, reasons = CounterTable.read(vcenter).resolve(COUNTER_UNITS, COUNTER_UNITS)
    assert reasons == {}
    assert found.keys() == COUNTER_UNITS.keys()


@pytest.mark.needs("go")
def test_ids_differ_from_server_to_server_and_one_is_described_by_nobody(
    vcenter: VCenter, own_vcsim: Vcsim
) -> None:
    own_vcsim.restart(seed=2)
    table = CounterTable.read(vcenter)
    with VCenter(own_vcsim.settings(), environ=own_vcsim.environ()) as other:
        ids = {name: one.id for name, one in CounterTable.read(other).by_name.items()}
        assert ids != {name: one.id for name, one in table.by_name.items()}
    offered = {number for number, _ in available(vcenter, "VirtualMachine", vms(vcenter)[0])}
    assert len(offered - table.by_id.keys()) == 1

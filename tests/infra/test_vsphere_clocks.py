"""Offsets of clocks: their bound holds whatever the latencies and the grain, and they are found."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import vim

from infra.vsphere.clocks import (
    MICROSECOND_NS,
    MILLISECOND_NS,
    READINGS,
    SECOND_NS,
    grain,
    offset,
    read_clocks,
)
from infra.vsphere.session import VCenter
from tests.vcsim_server import Vcsim

NS = 1_000_000_000
latencies = st.lists(
    st.tuples(st.integers(0, 2 * NS), st.integers(0, 2 * NS), st.integers(0, 2 * NS)),
    min_size=1,
    max_size=READINGS,
)


@given(
    true_ns=st.integers(-100 * NS, 100 * NS),
    grain_ns=st.sampled_from((MICROSECOND_NS, MILLISECOND_NS, SECOND_NS)),
    start_ns=st.integers(10**18, 2 * 10**18),
    ways=latencies,
)
def test_the_true_offset_is_always_within_the_bound(
    true_ns: int, grain_ns: int, start_ns: int, ways: list[tuple[int, int, int]]
) -> None:
    exchanges = []
    for there_ns, back_ns, pause_ns in ways:
        start_ns += pause_ns
        theirs = (start_ns + there_ns + true_ns) // grain_ns * grain_ns
        exchanges.append((start_ns, theirs, start_ns + there_ns + back_ns))
        start_ns += there_ns + back_ns
    reading = offset("vcenter", exchanges)
    assert reading.offset_ns is not None
    assert reading.bound_ns is not None
    assert abs(reading.offset_ns - true_ns) <= reading.bound_ns
    assert grain([theirs for _, theirs, _ in exchanges]) >= grain_ns


def test_several_readings_are_narrower_than_their_narrowest() -> None:
    late = (0, 90, 100)  # the answer took long to come back
    early = (1000, 1010, 1100)
    assert offset("x", [late, early]).bound_ns < offset("x", [late]).bound_ns  # type: ignore[operator]


def test_a_clock_that_was_set_meanwhile_counts_by_the_narrowest_exchange() -> None:
    reading = offset("x", [(0, 5 * NS, NS), (2 * NS, 90 * NS, 2 * NS + 10)])
    assert reading.offset_ns == pytest.approx(88 * NS, abs=NS)


@pytest.mark.parametrize(
    ("answers", "size"),
    [([3 * NS, 9 * NS], SECOND_NS), ([3 * NS, 9_500_000_000], MILLISECOND_NS), ([1_000], 1_000)],
)
def test_the_grain_is_seen_by_the_digits(answers: list[int], size: int) -> None:
    assert grain(answers) == size


@pytest.mark.needs("go")
def test_finds_the_skew_of_vcenter_and_host(vcsim: Vcsim) -> None:
    vcsim.control(vcenter_skew_s=12.5, host_skew_s={"*": -3.25})
    with VCenter(vcsim.settings(), environ=vcsim.environ()) as vcenter:
        host, named = vcenter.retrieve(vim.HostSystem, ["name"])[0]
        moid = host._GetMoId()
        readings = read_clocks(vcenter, [moid, moid], time.time_ns)
        assert [one.source for one in readings] == ["vcenter", f"esxi:{named['name']}"]
        for reading, skew_s in zip(readings, (12.5, -3.25), strict=True):
            assert reading.reason is None
            assert reading.offset_ns is not None
            assert reading.bound_ns is not None
            assert abs(reading.offset_ns - skew_s * NS) <= reading.bound_ns
            assert abs(reading.at_ns - time.time_ns()) < 5 * NS


@pytest.mark.needs("go")
def test_a_clock_that_may_not_be_read_has_a_reason_and_no_numbers(vcsim: Vcsim) -> None:
    vcsim.control(host_date_forbidden=True)
    with VCenter(vcsim.settings(), environ=vcsim.environ()) as vcenter:
        host = vcenter.retrieve(vim.HostSystem, ["name"])[0][0]
        _, refused, gone = read_clocks(vcenter, [host._GetMoId(), "host-none"], time.time_ns)
        assert (refused.offset_ns, refused.bound_ns) == (None, None)
        assert "lacks" in (refused.reason or "")
        assert (gone.offset_ns, gone.source) == (None, "esxi:host-none")
        assert "no longer there" in (gone.reason or "")

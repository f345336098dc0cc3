"""Which windows were there: none twice, the missing ones named, in whatever order they come."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from telemetry.collectors.vcenter_hosts import Whereabouts
from telemetry.collectors.vcenter_metrics import ROWS
from telemetry.collectors.vcenter_seen import NS, Seen, owner
from telemetry.samples import Sample, Series
from telemetry.segments import SegmentWriter

STEP = 20 * NS
KEY = ("vm:a", "vm_cpu_used_cores")


def ends(*numbers: int) -> list[int]:
    return [STEP * number for number in numbers]


@given(st.lists(st.lists(st.tuples(st.integers(1, 12), st.integers(-1, 3)), max_size=12)))
def test_every_window_once_whatever_comes(rounds: list[list[tuple[int, int]]]) -> None:
    seen = Seen(20)
    taken: list[int] = []
    there: set[int] = set()
    for one in rounds:
        stamps = [STEP * number for number, _ in one]
        values = [value for _, value in one]
        fresh = seen.take(KEY, stamps, values)
        assert [stamps[place] for place in fresh] == sorted(stamps[place] for place in fresh)
        assert all(values[place] >= 0 for place in fresh)
        taken += [stamps[place] for place in fresh]
        there |= {stamp for stamp, value in zip(stamps, values, strict=True) if value >= 0}
    assert sorted(taken) == sorted(there)
    missing = {number for number in range(1, 13) if STEP * number not in there}
    gaps = seen.gaps(KEY, 0, 12 * STEP)
    listed = [n for low, high in gaps for n in range(low // STEP + 1, high // STEP + 1)]
    assert listed == sorted(missing)
    assert all(one[1] < other[0] for one, other in pairwise(gaps))


def test_unbroken_up_to_the_first_hole_and_a_negative_answer_is_no_hole() -> None:
    seen = Seen(20)
    seen.take(KEY, ends(3, 2, 1), [1, 1, 1])  # newest first
    assert seen.unbroken_ns(KEY, 0) == 3 * STEP
    seen.take(KEY, ends(5, 6), [1, 1])
    assert seen.unbroken_ns(KEY, 0) == 3 * STEP
    assert seen.gaps(KEY, 0, 6 * STEP) == [(3 * STEP, 4 * STEP)]
    seen.take(KEY, ends(4), [-1])
    assert seen.unbroken_ns(KEY, 0) == 6 * STEP
    assert seen.gaps(KEY, 0, 6 * STEP) == [(3 * STEP, 4 * STEP)]
    assert seen.newest_ns(KEY) == 6 * STEP
    assert seen.take(KEY, ends(4), [7]) == [0]  # it came after all
    assert seen.gaps(KEY, 0, 6 * STEP) == []


def test_what_is_given_back_is_missing_and_taken_again() -> None:
    seen = Seen(20)
    seen.take(KEY, ends(1, 2, 3), [1, 1, 1])
    seen.give_back(KEY, 2 * STEP)
    seen.give_back(("vm:b", "never"), 2 * STEP)
    assert seen.gaps(KEY, 0, 3 * STEP) == [(STEP, 2 * STEP)]
    assert seen.unbroken_ns(KEY, 0) == STEP
    assert seen.take(KEY, ends(1, 2, 3), [1, 1, 1]) == [1]


def test_the_run_need_not_begin_on_the_grid() -> None:
    seen = Seen(20)
    seen.take(KEY, ends(1, 2), [1, 1])
    since_ns, until_ns = 7 * NS, 45 * NS
    assert seen.unbroken_ns(KEY, since_ns) == 2 * STEP
    assert seen.gaps(KEY, since_ns, until_ns) == [(2 * STEP, until_ns)]
    seen.take(KEY, ends(3), [1])
    assert seen.gaps(KEY, since_ns, until_ns) == []


def test_what_is_forgotten_is_not_taken_again() -> None:
    seen = Seen(20)
    seen.take(KEY, ends(1, 2, 3), [1, 1, 1])
    seen.forget(STEP)
    assert seen.take(KEY, ends(1, 2, 3, 4), [1, 1, 1, 1]) == [3]
    assert seen.unbroken_ns(KEY, 0) == 4 * STEP


def test_a_host_whose_clock_is_hours_ahead_makes_no_other_forget() -> None:
    seen, ahead = Seen(20), ("vm:b", KEY[1])
    seen.take(KEY, ends(1, 2), [1, 1])
    seen.take(ahead, ends(541, 542), [1, 1])
    seen.forget(360 * STEP)
    assert seen.take(KEY, ends(1, 2, 3), [1, 1, 1]) == [2]


def test_segments_say_how_far_it_had_come_whatever_the_host_was(tmp_path: Path) -> None:
    metric = next(row.metric for row in ROWS if row.metric.name == KEY[1])
    one, other = (Series(entity=f"vm:a@{host}", metric=metric) for host in ("h1", "h2"))
    for name in ("vcenter", "vcenter-backfill"):
        writer = SegmentWriter(tmp_path, name, [one], host="x", period_s=300.0)
        number = 1 if name == "vcenter" else 3
        writer.write(
            [
                Sample(STEP * number, one, 1.0, STEP * (number - 1)),
                Sample(STEP * (number + 1), other, 1.0, STEP * number),
            ]
        )
        writer.close()
    torn = tmp_path / "vcenter-0000.arrows"
    torn.write_bytes(torn.read_bytes()[:-3])
    seen = Seen.read(tmp_path, 20)
    assert seen.unbroken_ns(KEY, 0) == 4 * STEP
    assert seen.take(KEY, ends(1, 2, 3, 4, 5), [1] * 5) == [4]
    assert Seen.read(tmp_path / "none", 20).names() == []


def test_an_entity_without_its_host() -> None:
    assert owner("vm:a@h1") == "vm:a"
    assert owner("vm:a@b@h1.example/scsi0:0") == "vm:a@b/scsi0:0"
    assert owner("esxi:h1/gpu:0") == "esxi:h1/gpu:0"


def test_a_vm_is_on_the_host_that_made_the_window() -> None:
    where = Whereabouts()
    where.seen("a", "h1", "host-1")
    assert where.at("a", 5) == "h1"
    move = {"vm": "a", "from_host": "h1", "from_moid": "host-1", "to_host": "h2"}
    where.moved({**move, "to_moid": "host-2", "at_ns": 100})
    assert [where.at("a", at_ns) for at_ns in (99, 100, 101)] == ["h1", "h1", "h2"]
    assert where.now("a") == (100, "h2")
    assert where.hosts() == {"h1": "host-1", "h2": "host-2"}


def test_one_first_seen_after_its_move_was_elsewhere_before() -> None:
    where = Whereabouts()
    move = {"vm": "a", "from_host": "h1", "from_moid": "host-1", "to_host": "h2"}
    where.moved({**move, "to_moid": "host-2", "at_ns": 100})
    where.seen("a", "h2", "host-2")
    assert [where.at("a", at_ns) for at_ns in (100, 101)] == ["h1", "h2"]

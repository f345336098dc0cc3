"""The account of a CPU quota: groups within groups, a process that is moved, one that has ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from telemetry.collectors.procfs import parse_quota
from telemetry.collectors.quota import QuotaAccount

V1 = b"nr_periods 40\nnr_throttled 30\nthrottled_time 2500000000\nnr_bursts 0\nburst_time 0\n"
V2 = b"usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 40\nnr_throttled 30\nthrottled_usec 7\n"
PID = 77


@pytest.mark.parametrize(
    ("data", "expected"),
    [(V1, (2.5, 30, 40)), (V2, (7e-6, 30, 40)), (b"usage_usec 9\nuser_usec 5\n", None)],
)
def test_cpu_stat_of_both_versions(data: bytes, expected: tuple[float, ...] | None) -> None:
    assert parse_quota(data) == expected


class Groups:
    """A /proc with one process and a tree of v1 groups."""

    def __init__(self, root: Path) -> None:
        self.proc, self.root = root / "proc", root / "cpu"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / str(PID)).mkdir()
        (self.proc / "self/mounts").write_text(f"c {self.root} cgroup rw,cpu 0 0\n")

    def put(self, group: str, held: int, periods: int) -> None:
        folder = self.root / group
        folder.mkdir(parents=True, exist_ok=True)
        stat = f"nr_periods {periods}\nnr_throttled {held}\nthrottled_time {held}00000000\n"
        (folder / "cpu.stat").write_text(stat)

    def move(self, group: str) -> None:
        (self.proc / str(PID) / "cgroup").write_text(f"1:cpu:/{group}\n")


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    return Groups(tmp_path)


def test_what_was_held_back_before_does_not_count(groups: Groups) -> None:
    groups.put("a", 5, 9)
    groups.move("a")
    account = QuotaAccount(PID, groups.proc)
    assert account.look() == (0.0, 0, 0)
    groups.put("a", 8, 19)
    assert account.look() == pytest.approx((0.3, 3, 10))


def test_of_groups_within_each_other_the_tightest_counts(groups: Groups) -> None:
    groups.put("", 0, 0)
    groups.put("pod", 0, 0)
    groups.put("pod/box", 0, 0)
    groups.move("pod/box")
    account = QuotaAccount(PID, groups.proc)
    account.look()
    groups.put("pod", 9, 10)
    groups.put("pod/box", 1, 10)
    assert account.look() == pytest.approx((0.9, 9, 10))


def test_a_process_that_is_moved_keeps_its_counters(groups: Groups) -> None:
    groups.put("a", 0, 0)
    groups.put("b", 70, 90)
    groups.move("a")
    account = QuotaAccount(PID, groups.proc)
    account.look()
    groups.put("a", 4, 5)
    account.look()
    groups.move("b")
    assert account.look() == pytest.approx((0.4, 4, 5))
    groups.put("b", 71, 91)
    assert account.look() == pytest.approx((0.5, 5, 6))


def test_a_process_that_has_ended_is_still_asked_for_where_it_was(groups: Groups) -> None:
    """v1 says that a zombie is in the root."""
    groups.put("", 0, 0)
    groups.put("a", 0, 0)
    groups.move("a")
    account = QuotaAccount(PID, groups.proc)
    account.look()
    groups.put("a", 2, 4)
    groups.move("")
    assert account.look() == pytest.approx((0.2, 2, 4))
    (groups.proc / str(PID) / "cgroup").unlink()
    groups.put("a", 3, 6)
    assert account.look() == pytest.approx((0.3, 3, 6))


def test_without_an_account_there_is_none(groups: Groups) -> None:
    groups.root.mkdir()
    groups.move("a")
    assert QuotaAccount(PID, groups.proc).look() is None

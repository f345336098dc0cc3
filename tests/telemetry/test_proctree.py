"""Accounts of process trees against a small kernel that knows the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from telemetry.collectors.procfs import Io, Stat
from telemetry.collectors.proctree import NOTHING, USAGE, Reading, TreeAccount, Usage, reading

ROOT = 10


def plus(a: Usage, b: Usage) -> Usage:
    return tuple(x + y for x, y in zip(a, b, strict=True))


@dataclass
class Process:
    pid: int
    ppid: int
    start: int
    own: Usage = NOTHING
    reaped: Usage = NOTHING
    zombie: bool = False


@dataclass
class Kernel:
    """Processes that fork, work, end and are waited for, as Linux accounts them."""

    alive: dict[int, Process] = field(default_factory=dict)
    used: dict[int, Usage] = field(default_factory=dict)
    clock: int = 0

    def fork(self, parent: int) -> int:
        self.clock += 1
        pid = ROOT + len(self.used)
        self.alive[pid] = Process(pid, parent, self.clock)
        self.used[pid] = NOTHING
        self.work(pid, 0)
        return pid

    def work(self, pid: int, amount: int) -> None:
        """``amount`` of everything; a page fault at the least."""
        usage = (amount, amount, amount + 1, 0, *(amount,) * 5)
        self.alive[pid].own = plus(self.alive[pid].own, usage)
        self.used[pid] = plus(self.used[pid], usage)

    def end(self, pid: int, heir: int) -> None:
        """It becomes a zombie, and its children ``heir``'s."""
        self.alive[pid].zombie = True
        for child in self.alive.values():
            if child.ppid == pid:
                child.ppid = heir

    def wait(self, pid: int) -> None:
        process = self.alive.pop(pid)
        parent = self.alive.get(process.ppid)
        if parent is not None:
            parent.reaped = plus(parent.reaped, plus(process.own, process.reaped))

    def vanish(self, pid: int) -> None:
        """Nobody waits for it: its parent ignores SIGCHLD."""
        del self.alive[pid]

    def look(self, pid: int) -> Reading | None:
        process = self.alive.get(pid)
        if process is None:
            return None
        own, reaped = process.own, process.reaped
        stat = Stat(
            pid, process.start, process.ppid, b"Z" if process.zombie else b"S",
            own[2], reaped[2], own[3], reaped[3], own[0], own[1], reaped[0], reaped[1], 1, 1,
        )  # fmt: skip
        return reading(stat, Io(*plus(own, reaped)[4:]))


def looked_at(
    kernel: Kernel, pids: list[int], between: Callable[[], None] = lambda: None
) -> dict[int, Reading]:
    """Look at the processes one after another, the oldest first, with time passing in between."""
    found = {}
    for pid in sorted(pids):
        one = kernel.look(pid)
        if one is not None:
            found[pid] = one
        between()
    return found


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(choices=st.lists(st.integers(0, 1 << 30), max_size=60))
def test_where_all_are_waited_for_nothing_is_lost_or_counted_twice(choices: list[int]) -> None:
    """Events fall anywhere, between the looks at two processes too; half of them are never seen."""
    kernel, account = Kernel(), TreeAccount()
    kernel.fork(1)
    told: Iterator[int] = iter(choices)
    totals = [NOTHING]

    def event() -> None:
        choice = next(told, None)
        if choice is None:
            return
        living = sorted(pid for pid, one in kernel.alive.items() if not one.zombie)
        kind, pid = choice % 5, living[choice // 5 % len(living)]
        childless = [
            one.pid
            for one in kernel.alive.values()
            if one.pid != ROOT and not any(other.ppid == one.pid for other in kernel.alive.values())
        ]
        if kind == 0:
            kernel.fork(pid)
        elif kind in (1, 2):
            kernel.work(pid, choice % 97)
        elif kind == 3 and childless:
            kernel.alive[childless[choice % len(childless)]].zombie = True
        else:
            for one in [one for one in childless if kernel.alive[one].zombie]:
                kernel.wait(one)

    def update(between: Callable[[], None] = lambda: None) -> None:
        now = looked_at(kernel, list(kernel.alive), between)
        totals.append(account.update(now, {}))
        truth = [sum(column) for column in zip(NOTHING, *kernel.used.values(), strict=True)]
        assert all(total <= true for total, true in zip(totals[-1], truth, strict=True))
        assert all(now >= was for was, now in zip(totals[-2], totals[-1], strict=True))

    for _ in range(len(choices)):
        update(event)
    while len(kernel.alive) > 1:  # the end: all go, and are waited for, the youngest first
        update()
        youngest = max(kernel.alive)
        kernel.wait(youngest)
    update()
    update()
    truth = tuple(sum(column) for column in zip(NOTHING, *kernel.used.values(), strict=True))
    assert totals[-1] == truth


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(choices=st.lists(st.integers(0, 1 << 30), max_size=40))
def test_what_nobody_waited_for_is_kept(choices: list[int]) -> None:
    """Looked at after each piece of work, ends of all kinds lose nothing.

    A process waits for all of its children or for none.
    """
    kernel, account = Kernel(), TreeAccount()
    kernel.fork(1)
    total = NOTHING
    for choice in choices:
        living = sorted(kernel.alive)
        kind, pid = choice % 4, living[choice // 4 % len(living)]
        if kind == 0:
            kernel.fork(pid)
        elif kind == 1:
            kernel.work(pid, choice % 89)
        elif pid != ROOT:
            kernel.end(pid, heir=1)
            if kernel.alive[pid].ppid % 2:
                kernel.wait(pid)
            else:
                kernel.vanish(pid)
        total = account.update(looked_at(kernel, list(kernel.alive)), {})
    for _ in range(2):
        total = account.update(looked_at(kernel, list(kernel.alive)), {})
    assert total == tuple(
        sum(column) for column in zip(NOTHING, *kernel.used.values(), strict=True)
    )


def test_what_a_parent_takes_over_from_another_tree_is_not_its_own() -> None:
    kernel, runner, stage = Kernel(), TreeAccount(), TreeAccount()
    root = kernel.fork(1)
    kernel.work(root, 7)
    child = kernel.fork(root)

    def update() -> tuple[Usage, Usage]:
        now = looked_at(kernel, list(kernel.alive))
        others = {pid: one for pid, one in now.items() if pid == child}
        mine = {pid: one for pid, one in now.items() if pid == root}
        return runner.update(mine, others), stage.update(others, {})

    update()
    kernel.work(child, 1000)
    assert update() == (kernel.used[root], kernel.used[child])
    kernel.end(child, heir=root)
    kernel.wait(child)
    kernel.work(root, 5)
    assert update()[0] == kernel.used[root]
    assert update() == (kernel.used[root], kernel.used[child])


def test_a_child_waited_for_between_two_looks_is_counted_once() -> None:
    kernel, account = Kernel(), TreeAccount()
    root = kernel.fork(1)
    child = kernel.fork(root)
    kernel.work(child, 50)
    account.update(looked_at(kernel, [root, child]), {})
    before = kernel.look(root)
    assert before is not None
    kernel.end(child, heir=root)
    kernel.wait(child)
    truth = plus(kernel.used[root], kernel.used[child])
    assert account.update({root: before}, {}) == truth  # its last values stand in
    assert account.update(looked_at(kernel, [root]), {}) == truth
    assert account.update(looked_at(kernel, [root]), {}) == truth


def test_a_parent_whose_io_is_hidden_does_not_swallow_that_of_its_children() -> None:
    kernel, account = Kernel(), TreeAccount()
    root = kernel.fork(1)
    child = kernel.fork(root)
    kernel.work(child, 50)

    def now() -> dict[int, Reading]:
        found = looked_at(kernel, list(kernel.alive))
        hidden = found[root]
        found[root] = hidden._replace(usage=(*hidden.usage[:4], *(0,) * 5), has_io=False)
        return found

    account.update(now(), {})
    kernel.end(child, heir=root)
    kernel.wait(child)
    assert account.update(now(), {})[USAGE.index("read_bytes")] == 50


def test_a_parent_that_waits_for_one_of_two_is_believed_for_one() -> None:
    """Which of them it was cannot be told; about as much is kept as nobody waited for."""
    kernel, account = Kernel(), TreeAccount()
    root = kernel.fork(1)
    small, large = kernel.fork(root), kernel.fork(root)
    kernel.work(small, 100)
    kernel.work(large, 2000)
    account.update(looked_at(kernel, list(kernel.alive)), {})
    kernel.vanish(small)
    account.update(looked_at(kernel, list(kernel.alive)), {})
    kernel.wait(large)
    for _ in range(3):
        total = account.update(looked_at(kernel, list(kernel.alive)), {})
    assert abs(total[0] - 2100) < 5


def test_kernel_threads_have_no_faults_and_nobody_waits_for_them() -> None:
    kernel, account = Kernel(), TreeAccount()
    root, worker = kernel.fork(1), kernel.fork(ROOT)
    kernel.alive[worker].own = (30, 40, 0, 0, *(0,) * 5)
    account.update(looked_at(kernel, list(kernel.alive)), {})
    kernel.vanish(worker)
    for _ in range(3):
        total = account.update(looked_at(kernel, list(kernel.alive)), {})
    assert total[:2] == (30, 40)
    assert root == ROOT


def test_a_number_given_again_is_another_process() -> None:
    kernel, account = Kernel(), TreeAccount()
    root = kernel.fork(1)
    child = kernel.fork(root)
    kernel.work(child, 50)
    account.update(looked_at(kernel, [root, child]), {})
    kernel.vanish(child)
    kernel.alive[child] = Process(child, root, start=99, own=(1, 1, 1, 0, 1, 1, 1, 1, 1))
    for _ in range(2):
        total = account.update(looked_at(kernel, [root, child]), {})
    assert total[0] == 51

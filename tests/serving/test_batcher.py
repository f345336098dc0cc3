"""The batcher: order, sharing, overload, failures and a quiet end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from serving.batcher import Batcher, OverloadedError


class Job(list[int]):
    """As many rows as it has numbers."""


class OtherJob(Job):
    pass


class Recorder:
    """Answers a job with its sum and remembers the batches; can be held up and can fail."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.settled: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.fails: Exception | None = None
        self.waited: list[float] = []

    def answer(self, jobs: Sequence[Job]) -> list[int]:
        self.free.wait(10)
        self.batches.append([list(job) for job in jobs])
        if self.fails is not None:
            error, self.fails = self.fails, None
            raise error
        return [sum(job) for job in jobs]

    def settle(self) -> None:
        self.settled.append(len(self.batches))


def run(
    steps: Callable[[Batcher[Job, int], Recorder], Coroutine[Any, Any, None]], **limits: int
) -> Recorder:
    recorder = Recorder()

    async def main() -> None:
        batcher: Batcher[Job, int] = Batcher(
            recorder.answer,
            recorder.settle,
            waited=recorder.waited.append,
            **{"max_batch_rows": 100, "max_waiting_rows": 1000, **limits},
        )
        batcher.open()
        try:
            await asyncio.wait_for(steps(batcher, recorder), 20)
        finally:
            recorder.free.set()
            await batcher.close()

    asyncio.run(main())
    return recorder


async def queued(batcher: Batcher[Job, int], *jobs: Job) -> list[asyncio.Task[int]]:
    """Submit a first job and, while it is being answered, the rest."""
    tasks = []
    for job in jobs:
        tasks.append(asyncio.create_task(batcher.submit(job)))
        await asyncio.sleep(0.01)
    return tasks


def test_what_waits_shares_a_batch_in_order_of_arrival() -> None:
    async def steps(batcher: Batcher[Job, int], recorder: Recorder) -> None:
        recorder.free.clear()
        tasks = await queued(batcher, Job([1]), Job([2]), Job([3, 4]), Job([5]))
        recorder.free.set()
        assert await asyncio.gather(*tasks) == [1, 2, 7, 5]

    recorder = run(steps)
    assert recorder.batches == [[[1]], [[2], [3, 4], [5]]]
    assert len(recorder.waited) == 2
    assert recorder.waited[1] > 0.01


def test_a_batch_ends_at_its_rows_and_at_another_kind_of_job() -> None:
    async def steps(batcher: Batcher[Job, int], recorder: Recorder) -> None:
        recorder.free.clear()
        jobs = [Job([0]), Job([1, 1]), Job([2, 2]), OtherJob([3]), Job([4]), Job([5] * 9)]
        tasks = await queued(batcher, *jobs)
        recorder.free.set()
        await asyncio.gather(*tasks)

    recorder = run(steps, max_batch_rows=3)
    assert recorder.batches == [[[0]], [[1, 1]], [[2, 2]], [[3]], [[4]], [[5] * 9]]


def test_writes_follow_the_answers_and_precede_the_next_batch() -> None:
    async def steps(batcher: Batcher[Job, int], recorder: Recorder) -> None:
        for number in range(3):
            await batcher.submit(Job([number]))

    assert run(steps).settled == [1, 2, 3]


def test_too_much_waiting_is_refused_and_what_waits_is_answered() -> None:
    async def steps(batcher: Batcher[Job, int], recorder: Recorder) -> None:
        recorder.free.clear()
        tasks = await queued(batcher, Job([1]), Job([2, 2]), Job([3]))
        with pytest.raises(OverloadedError, match="3 rows wait"):
            await batcher.submit(Job([4]))
        recorder.free.set()
        assert await asyncio.gather(*tasks) == [1, 4, 3]
        assert await batcher.submit(Job([5] * 50)) == 250

    run(steps, max_waiting_rows=3)


def test_a_failure_goes_to_its_batch_alone() -> None:
    async def steps(batcher: Batcher[Job, int], recorder: Recorder) -> None:
        recorder.fails = ValueError("broken")
        with pytest.raises(ValueError, match="broken"):
            await batcher.submit(Job([1]))
        assert await batcher.submit(Job([2])) == 2

    run(steps)


def test_a_failing_write_does_not_stop_the_next_batch(caplog: pytest.LogCaptureFixture) -> None:
    async def steps(batcher: Batcher[Job, int], recorder: Recorder) -> None:
        def broken() -> None:
            raise OSError("no space")

        batcher._settle = broken
        assert await batcher.submit(Job([1])) == 1
        assert await batcher.submit(Job([2])) == 2

    run(steps)
    assert "no space" in caplog.text


def test_one_who_went_away_does_not_stop_the_rest() -> None:
    async def steps(batcher: Batcher[Job, int], recorder: Recorder) -> None:
        recorder.free.clear()
        first, second, third = await queued(batcher, Job([1]), Job([2]), Job([3]))
        second.cancel()
        recorder.free.set()
        assert (await first, await third) == (1, 3)

    assert run(steps).batches == [[[1]], [[2], [3]]]


def test_closing_answers_what_waits() -> None:
    tasks: list[asyncio.Task[int]] = []

    async def steps(batcher: Batcher[Job, int], recorder: Recorder) -> None:
        recorder.free.clear()
        tasks.extend(await queued(batcher, Job([1]), Job([2])))

    run(steps)
    assert [task.result() for task in tasks] == [1, 2]

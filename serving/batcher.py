"""Requests that wait together share a batch: what is queued is drained, nobody waits for more.

One consumer and one worker thread, so jobs take effect in the order of their arrival, and what a
batch wrote is there for the next. ``settle`` (the writes) runs after the batch has its answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, Protocol, TypeVar

log = logging.getLogger(__name__)


class Sized(Protocol):
    def __len__(self) -> int: ...


Job = TypeVar("Job", bound=Sized)
Answer = TypeVar("Answer")


class OverloadedError(RuntimeError):
    """More rows wait than the queue may hold."""


class Waiting(NamedTuple, Generic[Job, Answer]):
    job: Job
    since_ns: int
    future: asyncio.Future[Answer]


class Batcher(Generic[Job, Answer]):
    """Runs ``answer`` over batches of jobs of one type, in order; then ``settle``.

    A batch has ``max_batch_rows`` at most, or is one job alone that has more.
    ``waited`` is told the seconds that the jobs of a batch waited, in sum. An error of ``answer``
    goes to every job of its batch, and the next batch goes on.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Job]], Sequence[Answer]],
        settle: Callable[[], None],
        *,
        waited: Callable[[float], None],
        max_batch_rows: int,
        max_waiting_rows: int,
    ) -> None:
        self._answer, self._settle, self._waited = answer, settle, waited
        self._max_batch_rows, self._max_waiting_rows = max_batch_rows, max_waiting_rows
        self._queue: deque[Waiting[Job, Answer]] = deque()
        self._waiting_rows = 0
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._consumer: asyncio.Task[None] | None = None
        self._busy = False
        """From taking a batch until what it writes is written."""

    def open(self) -> None:
        """Start to consume, on the running loop."""
        self._consumer = asyncio.get_running_loop().create_task(self._consume())

    async def close(self) -> None:
        """Answer what waits, then stop."""
        while self._queue or self._busy:
            await asyncio.sleep(0.005)
        if self._consumer is not None:
            await self.call(lambda: None)
            self._consumer.cancel()
            await asyncio.wait([self._consumer])
        self._thread.shutdown()

    async def submit(self, job: Job) -> Answer:
        """Queue a job and wait for its answer; raises OverloadedError, or what ``answer`` raised.

        A job goes through even if the one who waits for it goes away.
        """
        if self._waiting_rows and self._waiting_rows + len(job) > self._max_waiting_rows:
            raise OverloadedError(f"{self._waiting_rows} rows wait already")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append(Waiting(job, time.monotonic_ns(), future))
        self._waiting_rows += len(job)
        self._wake.set()
        return await future

    async def call(self, function: Callable[[], None]) -> None:
        """Run something else in the worker thread, between batches."""
        await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _consume(self) -> None:
        while True:
            await self._wake.wait()
            self._busy = True
            await self._one_batch(self._drain())
            self._busy = False

    async def _one_batch(self, batch: list[Waiting[Job, Answer]]) -> None:
        loop = asyncio.get_running_loop()
        jobs = [waiting.job for waiting in batch]
        try:
            answers = await loop.run_in_executor(self._thread, self._answer, jobs)
        except Exception as error:  # noqa: BLE001 - the one boundary: a failure is an answer
            _tell(batch, error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(answer)
        try:
            await loop.run_in_executor(self._thread, self._settle)
        except Exception:
            log.exception("writing after the answers failed")

    def _drain(self) -> list[Waiting[Job, Answer]]:
        batch = [self._queue.popleft()]
        rows, kind = len(batch[0].job), type(batch[0].job)
        while (
            self._queue
            and type(self._queue[0].job) is kind
            and rows + len(self._queue[0].job) <= self._max_batch_rows
        ):
            batch.append(self._queue.popleft())
            rows += len(batch[-1].job)
        self._waiting_rows -= rows
        if not self._queue:
            self._wake.clear()
        now = time.monotonic_ns()
        self._waited(sum(now - waiting.since_ns for waiting in batch) / 1e9)
        return batch


def _tell(batch: Sequence[Waiting[Job, Answer]], error: Exception) -> None:
    for waiting in batch:
        if not waiting.future.done():
            waiting.future.set_exception(error)

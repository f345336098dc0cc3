"""The workers of a stage: this process, Dask workers of its own, or an existing Dask scheduler.

Everything listens on loopback only, without a dashboard. Workers of our own end with their owner,
even if it is killed: each waits on a pipe whose other end only the owner holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from distributed import Client, Future

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]

LOOPBACK = "127.0.0.1"
CONNECT_TIMEOUT_S = 10
TASKS_AHEAD_PER_THREAD = 2
"""Tasks handed out beyond those that run: enough to keep a thread busy, few results in memory."""

SETTINGS = {
    "distributed.logging.distributed": "critical",
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.target": False,
    # Pausing a worker would only wait for memory that nobody gives back: results leave at once.
    "distributed.worker.memory.pause": False,
    # Dask would poll the GPUs as well, and a lost one would keep the cluster from starting.
    "distributed.diagnostics.nvml": False,
    # Its stack samples would only be seen on the dashboard.
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # A task that brings its worker over the limit twice does so a third time as well.
    "distributed.scheduler.allowed-failures": 1,
    "distributed.comm.timeouts.connect": f"{CONNECT_TIMEOUT_S}s",
    # Dask lets malloc give back memory above 64 KiB at once, and then half of a task's time goes
    # into getting it again, page by page. Blocks of up to 32 MiB stay with the worker instead.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 256 << 20,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 32 << 20,
}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where tasks run. ``workers`` is 0 when they run one after another in this process."""

    workers: int
    threads_per_worker: int = 1
    memory_limit_bytes: int | None = None
    client: Client | None = None

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        progress: Progress | None = None,
    ) -> list[Result]:
        """Return ``function(item)`` of every item, in the order of the items.

        ``progress`` gets (done, total) as tasks end. The first error of a task cancels the rest
        and is raised as it was; MemoryError names the limit where a worker was killed over it.
        """
        todo = list(items)
        if self.client is None:
            return _map_here(function, todo, progress)
        from distributed import KilledWorker

        ahead = max(1, self.workers) * self.threads_per_worker * TASKS_AHEAD_PER_THREAD
        try:
            return _map_there(self.client, function, todo, progress, ahead)
        except KilledWorker as error:
            limit = f"{self.memory_limit_bytes} bytes" if self.memory_limit_bytes else "the machine"
            raise MemoryError(
                f"a worker was killed twice in the same task, most often for memory (limit: "
                f"{limit}); raise the limit or make the parts smaller. Dask says: {error}"
            ) from error


def _map_here(
    function: Callable[[Item], Result], items: Sequence[Item], progress: Progress | None
) -> list[Result]:
    results = []
    for done, item in enumerate(items, 1):
        results.append(function(item))
        if progress:
            progress(done, len(items))
    return results


def _map_there(
    client: Client,
    function: Callable[[Item], Result],
    items: Sequence[Item],
    progress: Progress | None,
    ahead: int,
) -> list[Result]:
    from distributed import as_completed

    results: dict[int, Result] = {}
    running: dict[Future, int] = {}
    waiting = iter(enumerate(items))
    stream = as_completed(loop=client.loop)

    def hand_out(count: int) -> None:
        for _, (index, item) in zip(range(count), waiting, strict=False):
            future = client.submit(function, item, pure=False)
            running[future] = index
            stream.add(future)

    try:
        hand_out(ahead)
        for future in stream:
            results[running.pop(future)] = future.result()
            future.release()
            hand_out(1)
            if progress:
                progress(len(results), len(items))
    finally:
        if running:
            client.cancel(list(running), force=True)
    return [results[index] for index in range(len(items))]


@contextmanager
def open_cluster(
    *,
    workers: int,
    threads_per_worker: int = 1,
    memory_limit_bytes: int | None = None,
    local_directory: Path,
    scheduler: str | None = None,
) -> Iterator[Cluster]:
    """Start ``workers`` Dask workers here, or join the scheduler at the address ``scheduler``.

    ``workers=0`` without a scheduler runs every task in this process. ``memory_limit_bytes`` is
    per worker: one that passes 95 % of it is killed, and its task tried once more.
    ``local_directory`` holds the workers' scratch. Raises ValueError for settings that cannot be,
    ConnectionError if no scheduler answers.
    """
    _check(workers, threads_per_worker, memory_limit_bytes)
    if scheduler is None and workers == 0:
        yield Cluster(workers=0)
        return
    import dask
    import distributed  # noqa: F401 - its defaults must be there before ours cover them

    with dask.config.set(SETTINGS):
        if scheduler is not None:
            yield from _join(scheduler)
            return
        yield from _start(workers, threads_per_worker, memory_limit_bytes, local_directory)


def _check(workers: int, threads_per_worker: int, memory_limit_bytes: int | None) -> None:
    for name, value, least in (
        ("workers", workers, 0),
        ("threads_per_worker", threads_per_worker, 1),
        ("memory_limit_bytes", 1 if memory_limit_bytes is None else memory_limit_bytes, 1),
    ):
        if value < least:
            raise ValueError(f"cluster {name} = {value}: it must be at least {least}")


def _join(scheduler: str) -> Iterator[Cluster]:
    from distributed import Client

    try:
        asyncio.run(_ask(scheduler))
        client = Client(scheduler, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        why = str(error) or f"no word within {CONNECT_TIMEOUT_S} s"
        raise ConnectionError(
            f"no Dask scheduler answers at {scheduler!r}: {why}; start one with "
            "`dask scheduler`, or leave the address out to use local workers"
        ) from error
    with client:
        threads = client.nthreads()
        if not threads:
            raise ConnectionError(
                f"the Dask scheduler at {scheduler!r} has no workers; start one with "
                f"`dask worker {scheduler}`"
            )
        yield Cluster(workers=len(threads), threads_per_worker=max(threads.values()), client=client)


async def _ask(scheduler: str) -> None:
    """Raises TimeoutError where something takes the connection and is no scheduler: a ``Client``
    would wait for its greeting for ever."""
    from distributed import Security, rpc

    async with rpc(scheduler, connection_args=Security().get_connection_args("client")) as peer:
        await asyncio.wait_for(peer.identity(), CONNECT_TIMEOUT_S)


def _start(
    workers: int, threads_per_worker: int, memory_limit_bytes: int | None, local_directory: Path
) -> Iterator[Cluster]:
    from distributed import Client, LocalCluster

    local_directory.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "n_workers": workers,
        "threads_per_worker": threads_per_worker,
        "memory_limit": memory_limit_bytes or 0,
        "processes": True,
        "host": LOOPBACK,
        "dashboard_address": None,
        "local_directory": str(local_directory),
        "silence_logs": logging.CRITICAL,
        # Port 8787 is what Dask takes by itself; two runs at once must not meet there.
        "scheduler_kwargs": {"dashboard_address": f"{LOOPBACK}:0"},
    }
    with LocalCluster(**settings) as local, Client(local, set_as_default=False) as client:
        yield Cluster(
            workers=workers,
            threads_per_worker=threads_per_worker,
            memory_limit_bytes=memory_limit_bytes,
            client=client,
        )

"""Programs that are held back by one known thing each, for ``tests.study.verdicts``.

``python -m tests.study.verdict_loads NAME SECONDS SETTINGS``, with the settings as JSON; run as the
command of a recorded run. Those with steps count them through the recorder's handle, as training
does. Each works, or waits, for so many seconds and ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import mmap
import multiprocessing
import os
import queue
import random
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from telemetry.clock import Clock
from telemetry.handle import Handle

Settings = dict[str, Any]
CHUNK = 1 << 20


def burn(seconds: float) -> None:
    """Compute on one CPU until so much time has passed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(2000))


def one_thread(seconds: float, _: Settings) -> None:
    burn(seconds)


def all_cpus(seconds: float, _: Settings) -> None:
    children = [multiprocessing.get_context("fork").Process(target=burn, args=(seconds,))
                for _ in range(os.cpu_count() or 1)]  # fmt: skip
    for child in children:
        child.start()
    for child in children:
        child.join()


def behind_a_sleeper(seconds: float, _: Settings) -> None:
    """A thread computes, and the first one waits for it."""
    worker = threading.Thread(target=burn, args=(seconds,))
    worker.start()
    worker.join()


def idle(seconds: float, settings: Settings) -> None:
    """Wakes now and then, as a program does that polls."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        burn(0.0005)
        time.sleep(settings["every_s"])


def chunks(path: str, *, cold: bool, start: float = 0.0) -> Iterator[bytes]:
    """The file again and again; ``cold``: nothing of it stays in the page cache.

    ``start``: the share of the file that is left out at its beginning.
    """
    begin = int(Path(path).stat().st_size * start) // CHUNK * CHUNK
    with Path(path).open("rb", buffering=0) as file:
        while True:
            at = begin
            file.seek(begin)
            while data := file.read(CHUNK):
                yield data
                if cold:
                    os.posix_fadvise(file.fileno(), at, len(data), os.POSIX_FADV_DONTNEED)
                at += len(data)
            if cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(seconds: float, settings: Settings) -> None:
    """Read a file; ``digest``: how many times each chunk is digested."""
    until = time.monotonic() + seconds
    for data in chunks(settings["path"], cold=settings["cold"]):
        for _ in range(settings["digest"]):
            hashlib.sha256(data).digest()
        if time.monotonic() >= until:
            return


def read_then_compute(seconds: float, settings: Settings) -> None:
    """Read for a part of the time, then compute on all CPUs for the rest."""
    read(seconds * settings["reading"], settings)
    all_cpus(seconds * (1 - settings["reading"]), settings)


def write(seconds: float, settings: Settings) -> None:
    """Write and sync, again and again."""
    until = time.monotonic() + seconds
    block = os.urandom(CHUNK) * settings["mib"]
    with Path(settings["path"]).open("wb", buffering=0) as file:
        while time.monotonic() < until:
            file.seek(0)
            file.write(block)
            os.fsync(file.fileno())


def touch_mapped(seconds: float, settings: Settings) -> None:
    """Touch pages of a mapped file that does not fit into the memory of the control group."""
    until = time.monotonic() + seconds
    draw = random.Random(settings["seed"])
    with Path(settings["path"]).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), settings["mib"] << 20, prot=mmap.PROT_READ)
        pages = len(mapped) // mmap.PAGESIZE
        while time.monotonic() < until:
            for _ in range(100):
                mapped[draw.randrange(pages) * mmap.PAGESIZE]


def loopback(seconds: float, settings: Settings) -> None:
    """Send to another process over lo as fast as it goes, or at a measured pace."""
    server = socket.create_server(("127.0.0.1", 0))
    if os.fork() == 0:
        peer = server.accept()[0]
        while peer.recv(CHUNK):
            pass
        os._exit(0)
    until = time.monotonic() + seconds
    with socket.create_connection(server.getsockname()) as sender:
        block = bytes(CHUNK)
        while time.monotonic() < until:
            sender.sendall(block)
            time.sleep(settings["pause_s"])
    os.wait()


def download(seconds: float, settings: Settings) -> None:
    """Take what a server sends; it may still be on its way up."""
    until = time.monotonic() + seconds
    peer = None
    while peer is None:
        with contextlib.suppress(ConnectionError):
            peer = socket.create_connection(tuple(settings["address"]), timeout=10)
        time.sleep(0.01)
    while time.monotonic() < until:
        peer.recv(CHUNK)


# --- a loop of steps ------------------------------------------------------------------------------


def steps(seconds: float, settings: Settings, batches: Iterator[object]) -> None:
    """Take a batch, compute on it; counted as training counts its steps."""
    with _handle(settings) as handle:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            next(batches)
            got = time.monotonic()
            burn(settings["compute_s"])
            handle.count("step_data_wait_seconds", got - began)
            handle.count("step_compute_seconds", time.monotonic() - got)
            handle.count("steps")


@contextlib.contextmanager
def _handle(settings: Settings) -> Iterator[Handle]:
    """A handle of the run that is being recorded around this process."""
    folder = Path(settings["out"]) / "latest"
    record = json.loads((folder / "run.json").read_text())
    clock = Clock(offset_ns=record["clock"]["offset_start_ns"])
    with Handle(folder.resolve() / "samples", settings["stage"], clock) as handle:
        yield handle


def _packed(settings: Settings) -> bytes:
    draw = random.Random(settings["seed"])
    return zlib.compress(bytes(draw.choices(b"abcdefgh", k=1 << 20)), 6)


def _decoded(settings: Settings) -> Iterator[object]:
    packed = _packed(settings)
    while True:
        yield [zlib.decompress(packed) for _ in range(settings["images"])]


def slow_decoder(seconds: float, settings: Settings) -> None:
    """The batch is unpacked when it is asked for, in this process or by a worker."""
    if not settings["worker"]:
        steps(seconds, settings, _decoded(settings))
        return
    ready, given = multiprocessing.Pipe(duplex=False)
    if os.fork() == 0:
        ready.close()
        for batch in _decoded(settings):
            try:
                given.send(len(str(type(batch))))
            except OSError:
                os._exit(0)
    given.close()
    steps(seconds, settings, _received(ready))
    ready.close()
    os.wait()


def _received(ready: Any) -> Iterator[object]:
    while True:
        yield ready.recv()


def decoding_workers(seconds: float, settings: Settings) -> None:
    """A worker for each CPU, which reads a piece from a file in no cache and works on it longer."""
    ready, given = multiprocessing.Pipe(duplex=False)
    count = os.cpu_count() or 1
    for number in range(count):
        if os.fork() == 0:
            ready.close()
            with contextlib.suppress(OSError):
                while True:
                    for data in chunks(settings["path"], cold=True, start=number / count):
                        burn(settings["decode_s"])
                        given.send(len(data))
            os._exit(0)
    given.close()
    steps(seconds, settings, _received(ready))
    ready.close()
    for _ in range(count):
        os.wait()


def starved_loader(seconds: float, settings: Settings) -> None:
    """The loader waits for a source that does not give more; inline, or in a thread of its own."""

    def source() -> Iterator[object]:
        while True:
            time.sleep(settings["every_s"])
            yield b"batch"

    if not settings["worker"]:
        steps(seconds, settings, source())
        return
    steps(seconds, settings, _by_a_thread(source()))


def _by_a_thread(batches: Iterator[object]) -> Iterator[object]:
    """Batches that a thread takes, two ahead."""
    arrived: queue.Queue[object] = queue.Queue(maxsize=2)

    def load() -> None:
        for batch in batches:
            arrived.put(batch)

    threading.Thread(target=load, daemon=True).start()
    return iter(arrived.get, None)


def reading_loader(seconds: float, settings: Settings) -> None:
    """The loader reads its batches from a file that is in no cache; inline, or in a thread."""
    batches = chunks(settings["path"], cold=True)
    steps(seconds, settings, _by_a_thread(batches) if settings["worker"] else batches)


LOADS: dict[str, Callable[[float, Settings], None]] = {
    one.__name__: one
    for one in (one_thread, all_cpus, behind_a_sleeper, idle, read, read_then_compute, write,
                touch_mapped, loopback, download, slow_decoder, decoding_workers, starved_loader,
                reading_loader)
}  # fmt: skip


def main() -> None:
    name, seconds, settings = sys.argv[1], float(sys.argv[2]), json.loads(sys.argv[3])
    if "stage" in settings:  # what its handle writes with is not read under a group's limits
        importlib.import_module("telemetry.segments")
    for group in settings.get("join", ()):
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    LOADS[name](seconds, settings)
    sys.stdout.flush()
    os._exit(0)  # no thread is waited for


if __name__ == "__main__":
    main()

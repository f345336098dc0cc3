"""No request to MLflow is under way while a stage runs: its work would be in that stage's figures.

Somebody between a whole run and a real server notes when, by the clock that the spans are of.
"""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from telemetry.runfolder import RunFolder, Span
from tests.pipeline.small import STAGES, environment, latest, logs, run_command, statuses
from tests.pipeline.test_tracking import free_port, server

# MLflow's own store uses it.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
PATIENCE_S = 120
OURS = "/health?asked-by-the-test"
ASKED_IN = "training"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request, or a part of its answer, that was under way: ns of the monotonic clock."""

    what: str
    begin_ns: int
    end_ns: int


@dataclass(kw_only=True)
class Noting:
    """Passes all that comes on to the server at ``onward``, a port here, and notes when it was."""

    onward: int
    noted: list[Asked] = field(default_factory=list)

    def serve(self, client: socket.socket) -> None:
        """One connection, until one of the two closes it."""
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", self.onward)) as upstream,
        ):
            self._pass_on(client, upstream)

    def _pass_on(self, client: socket.socket, upstream: socket.socket) -> None:
        what, begin_ns, answered = "", 0, True
        while True:
            for one in select.select([client, upstream], [], [])[0]:
                data = one.recv(1 << 16)
                if not data:
                    return
                now_ns = time.monotonic_ns()
                if one is client and answered:
                    what, begin_ns = data.partition(b"\r\n")[0].decode(errors="replace"), now_ns
                answered = one is upstream
                self.noted.append(Asked(what=what, begin_ns=begin_ns, end_ns=now_ns))
                (client if answered else upstream).sendall(data)


@contextmanager
def listening(noting: Noting) -> Iterator[int]:
    """The port on which it listens."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            noting.serve(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, request_queue_size = True, 64

    with Server(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield listener.server_address[1]
        finally:
            listener.shutdown()
            thread.join()


def under_way(
    noted: Iterable[Asked], spans: Sequence[Span], offset_ns: int
) -> set[tuple[str, str]]:
    """Stage and request of all that was under way in a span; ``offset_ns``: the run's clock."""
    return {
        (span.stage, one.what)
        for one in noted
        for span in spans
        if one.end_ns + offset_ns >= span.start_ns and one.begin_ns + offset_ns <= span.end_ns
    }


def wait_for(stage: str, out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(FileNotFoundError):
            if statuses(latest(out)).get(stage) == "running":
                return
        assert process.poll() is None, f"the run ended before {stage}"
        assert time.monotonic() < deadline, f"{stage} did not begin"
        time.sleep(0.02)


def run_and_ask_once(out: Path, uri: str) -> None:
    """A whole run that has its MLflow at ``uri``, and one request of ours while a stage runs."""
    settings = ("--set", f"tracking.uri={uri}", "--set", "tracking.timeout_s=60")
    with subprocess.Popen(
        run_command(out, *settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    ) as process:
        try:
            wait_for(ASKED_IN, out, process)
            urllib.request.urlopen(f"{uri}{OURS}", timeout=10).close()
            output, _ = process.communicate(timeout=300)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 0, output + logs(out)


def test_no_request_is_under_way_in_a_span_but_the_one_of_this_test(tmp_path: Path) -> None:
    """Our own shows that one would be found."""
    out, port = tmp_path / "runs", free_port()
    noting = Noting(onward=port)
    with server(tmp_path / "server", port), listening(noting) as here:
        run_and_ask_once(out, f"http://127.0.0.1:{here}")
    record = latest(out)
    assert not [loss for loss in record["losses"] if "away" in loss]
    assert statuses(record) == dict.fromkeys(STAGES, "finished")
    spans, offset_ns = RunFolder(out / "latest").spans(), record["clock"]["offset_start_ns"]
    assert under_way(noting.noted, spans, offset_ns) == {(ASKED_IN, f"GET {OURS} HTTP/1.1")}
    breaks = [
        Span(stage=f"before {after.stage}", start_ns=before.end_ns, end_ns=after.start_ns)
        for before, after in pairwise(spans)
    ]
    heard = {stage for stage, _ in under_way(noting.noted, breaks, offset_ns)}
    assert heard == {one.stage for one in breaks}, "each stage is sent when it has ended"

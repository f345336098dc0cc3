"""The workers: order, errors, limits, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from infra.cluster import Cluster, open_cluster

LIMIT_BYTES = 512 << 20


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    scratch = tmp_path_factory.mktemp("dask")
    with open_cluster(
        workers=2, memory_limit_bytes=LIMIT_BYTES, local_directory=scratch
    ) as cluster:
        yield cluster


def square_slowly(number: int) -> tuple[int, int]:
    time.sleep(0.02 if number % 3 == 0 else 0)
    return number * number, os.getpid()


def fail_at_three(number: int) -> int:
    if number == 3:
        raise LookupError("no three here")
    return number


def fill_memory(megabytes: int) -> int:
    held = np.ones(megabytes << 17)
    time.sleep(2)
    return held.size


def test_results_come_in_the_order_of_the_items_from_both_workers(two: Cluster) -> None:
    seen: list[tuple[int, int]] = []
    results = two.map(square_slowly, range(40), lambda done, total: seen.append((done, total)))
    assert [square for square, _ in results] == [number**2 for number in range(40)]
    assert len({pid for _, pid in results} - {os.getpid()}) == 2
    assert seen == [(done, 40) for done in range(1, 41)]
    assert two.map(square_slowly, []) == []


def test_zero_workers_run_here(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with open_cluster(workers=0, local_directory=tmp_path / "unused") as cluster:
        assert cluster.workers == 0
        results = cluster.map(square_slowly, range(4), lambda *told: seen.append(told))
        with pytest.raises(LookupError, match="no three here"):
            cluster.map(fail_at_three, range(5))
    assert results == [(number**2, os.getpid()) for number in range(4)]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not (tmp_path / "unused").exists()


def test_an_error_of_a_task_comes_through_and_the_cluster_goes_on(two: Cluster) -> None:
    with pytest.raises(LookupError, match="no three here"):
        two.map(fail_at_three, range(50))
    assert two.map(fail_at_three, [1, 2]) == [1, 2]


def test_a_worker_over_its_memory_limit_is_a_memory_error(
    two: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MemoryError, match=f"limit: {LIMIT_BYTES} bytes"):
        two.map(fill_memory, [1024])
    assert two.map(fail_at_three, [1]) == [1]
    assert capfd.readouterr() == ("", "")


def test_everything_listens_on_loopback_alone(two: Cluster) -> None:
    me = psutil.Process()
    listening = [
        connection.laddr.ip
        for process in (me, *me.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 4
    assert set(listening) == {"127.0.0.1"}


def test_an_existing_scheduler_can_be_joined(two: Cluster, tmp_path: Path) -> None:
    assert two.client is not None
    two.client.wait_for_workers(2, timeout=30)
    address = two.client.scheduler.address
    with open_cluster(workers=0, local_directory=tmp_path, scheduler=address) as joined:
        assert joined.workers == 2
        assert joined.map(fail_at_three, [0, 1, 2]) == [0, 1, 2]
    assert two.map(fail_at_three, [1]) == [1]


def test_a_scheduler_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.cluster.CONNECT_TIMEOUT_S", 1)
    with (
        pytest.raises(ConnectionError, match=r"tcp://127\.0\.0\.1:9.*dask scheduler"),
        open_cluster(workers=0, local_directory=tmp_path, scheduler="tcp://127.0.0.1:9"),
    ):
        pass


def test_what_takes_the_connection_and_says_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.cluster.CONNECT_TIMEOUT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with (
            pytest.raises(ConnectionError, match="no word within 1 s"),
            open_cluster(workers=0, local_directory=tmp_path, scheduler=address),
        ):
            pass


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"workers": -1}, "workers = -1"),
        ({"workers": 1, "threads_per_worker": 0}, "threads_per_worker = 0"),
        ({"workers": 1, "memory_limit_bytes": 0}, "memory_limit_bytes = 0"),
    ],
)
def test_settings_that_cannot_be_are_named(
    tmp_path: Path, settings: dict[str, int], name: str
) -> None:
    with (
        pytest.raises(ValueError, match=name),
        open_cluster(**settings, local_directory=tmp_path),  # type: ignore[arg-type]
    ):
        pass


OWNER = """
import sys, time
from pathlib import Path
from infra.cluster import open_cluster

def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))

if __name__ == "__main__":
    with open_cluster(workers=2, local_directory=Path(sys.argv[1])) as cluster:
        cluster.map(len, ["a", "b"])
        print("ready", flush=True)
        cluster.map(spin, [60] * 8)
"""


def test_killing_the_owner_leaves_no_worker(tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, script, tmp_path / "scratch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        time.sleep(0.3)
        tree = psutil.Process(owner.pid).children(recursive=True)
        assert len(tree) >= 2
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    _, alive = psutil.wait_procs(tree, timeout=5)
    for process in alive:
        process.kill()
    assert alive == []

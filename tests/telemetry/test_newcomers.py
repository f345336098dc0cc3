"""Disks and interfaces that come while a machine is sampled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from telemetry.clock import Clock, measure_offset_ns
from telemetry.collectors.guest import GuestCollector
from telemetry.health import Worker
from telemetry.segments import SegmentWriter, read_samples
from telemetry.series import SeriesIndex
from tests.telemetry.test_guest import NET_DEV, STAT, made

DISKS = b"""   8       0 sda 100 0 800 5 10 0 80 5 0 5 10
   8       1 sda1 100 0 800 5 10 0 80 5 0 5 10
"""
NEW_DISK = b"   8      16 sdb %d 0 %d 5 0 0 0 0 0 5 5\n   8      17 sdb1 1 0 8 5 0 0 0 0 0 5 5\n"
NEW_CARDS = b"  eth1: 7 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  veth1: 7 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A VM with a disk and a card, and a second card that has carried nothing."""
    idle = b"  eth1: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
    made(tmp_path / "proc", {"stat": STAT, "diskstats": DISKS, "net/dev": NET_DEV + idle})
    cards = {f"class/net/{name}/device/x": b"" for name in ("eth0:1", "eth1")}
    down = {"class/net/eth1/flags": b"0x1002\n"}
    made(tmp_path / "sys", {"block/sda/size": b"1000\n", **cards, **down})
    return tmp_path


@pytest.fixture
def guest(machine: Path) -> GuestCollector:
    return GuestCollector(
        clock=Clock(offset_ns=measure_offset_ns()),
        period_s=0.1,
        proc=machine / "proc",
        sys=machine / "sys",
    )


@pytest.fixture
def worker(guest: GuestCollector, tmp_path: Path) -> Iterator[Worker]:
    writer = SegmentWriter(tmp_path / "samples", "guest", [], host="h", period_s=0.1)
    (tmp_path / "samples").mkdir()
    worker = Worker(collector=guest, writer=writer, clock=guest.clock)
    assert worker.open()
    yield worker
    worker.close()


def second(worker: Worker, guest: GuestCollector) -> None:
    """Have the look of a whole second, and the one after it."""
    guest._slow_at_s = 0.0
    assert worker._once()
    assert worker._once()
    worker.flush()


def test_a_disk_that_comes_is_sampled_from_then_on(
    worker: Worker, guest: GuestCollector, machine: Path
) -> None:
    second(worker, guest)
    made(machine / "sys", {"block/sdb/size": b"1000\n"})
    made(machine / "proc", {"diskstats": DISKS + NEW_DISK % (1, 8)})
    second(worker, guest)
    made(machine / "proc", {"diskstats": DISKS + NEW_DISK % (3, 24)})
    second(worker, guest)
    samples = read_samples(machine / "samples")
    index = SeriesIndex(samples)
    disks = {entity for entity, _ in index.names() if entity.startswith("disk:")}
    assert disks == {"disk:sda", "disk:sdb"}, "and not its partition"
    read = index.points("disk:sdb", "disk_read_bytes").values
    assert (read[0], read[-1]) == (8 * 512, 24 * 512)
    assert samples.period_s("disk:sdb", "disk_read_bytes") == 0.1
    assert not any(one.entity == "disk:sdb" for one in samples.absent)
    assert worker.losses() == []


def test_a_disk_that_cannot_be_looked_at_yet_costs_no_look_and_is_met_later(
    worker: Worker, guest: GuestCollector, machine: Path
) -> None:
    made(machine / "sys", {"block/sdb/slaves/x": b""})  # and no size
    (machine / "sys/block/sdb/slaves/x").unlink()
    made(machine / "proc", {"diskstats": DISKS + NEW_DISK % (1, 8)})
    second(worker, guest)
    (loss,) = worker.losses()
    assert loss.startswith("a disk that is new cannot be sampled: ")
    made(machine / "sys", {"block/sdb/size": b"1000\n"})
    second(worker, guest)
    index = SeriesIndex(read_samples(machine / "samples"))
    assert len(index.points("disk:sdb", "disk_read_bytes").values)


def test_what_is_closed_once_is_not_closed_again(guest: GuestCollector, tmp_path: Path) -> None:
    guest.open()
    guest.close()
    with (tmp_path / "anothers").open("wb") as first, (tmp_path / "too").open("wb") as second_:
        guest.close()
        assert (os.fstat(first.fileno()).st_size, os.fstat(second_.fileno()).st_size) == (0, 0)


def test_a_card_that_comes_into_use_is_a_loss_and_a_virtual_one_is_within_others(
    worker: Worker, guest: GuestCollector, machine: Path
) -> None:
    second(worker, guest)
    assert worker.losses() == []
    made(machine / "proc", {"net/dev": NET_DEV + NEW_CARDS})
    for _ in range(2):
        second(worker, guest)
    (loss,) = worker.losses()
    assert loss.startswith("net:eth1 came into use at 20")
    assert loss.endswith("it is not sampled, nor in machine's sum")

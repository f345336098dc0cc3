"""A file system that says only at the close that it kept not all, as NFS does beyond a quota."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import telemetry
from telemetry.recorder import Recorder
from telemetry.runfolder import find_run
from telemetry.settings import TelemetrySettings
from tests.telemetry.test_recorder import Made, level, recorder_of, until


@pytest.fixture
def beyond_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process: a segment's file is closed, and the disk did not keep all of it."""
    real = os.close

    def close(descriptor: int) -> None:
        is_segment = Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".arrows"
        real(descriptor)
        if is_segment:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "close", close)


@pytest.mark.usefixtures("beyond_quota")
def test_a_span_ends_as_it_should_and_says_what_may_be_missing(tmp_path: Path) -> None:
    with telemetry.span("train", tmp_path, TelemetrySettings(collectors=("guest",))) as handle:
        handle.count("rows", 4)
    run = find_run("latest", tmp_path).read()
    assert run["stages"][0]["status"] == "finished"
    assert "train: not all that it counted is on disk: Disk quota exceeded" in run["losses"]


@pytest.mark.usefixtures("beyond_quota")
def test_the_recorder_ends_every_collector_and_says_what_may_be_missing(tmp_path: Path) -> None:
    one, other = Made(act=level), Made(act=level, name="other")
    recorder: Recorder = recorder_of(tmp_path, one, other)
    recorder.open()
    until(lambda: one.calls > 3 and other.calls > 3)
    recorder.flush()
    recorder.close()
    assert recorder.losses() == [
        f"{name}: its last samples may be missing: Disk quota exceeded"
        for name in ("made", "other")
    ]

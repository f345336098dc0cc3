"""What watches a run, each in processes that can be stopped and set going: ours and the rivals.

MLflow's monitor and CodeCarbon live in the process of whoever uses them; here that process does
nothing else, which is in their favour: no thread of the work waits for their interpreter lock.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from telemetry.clock import Clock, measure_offset_ns
from telemetry.recording import Recording
from telemetry.segments import read_samples
from telemetry.settings import TelemetrySettings

CODECARBON = "codecarbon==3.3.2"
READY = b"ready"
APP = """
import os, sys, time
from pathlib import Path
from telemetry.clock import Clock
from telemetry.handle import Handle
with Handle(Path(sys.argv[1]), "work", Clock(offset_ns=int(sys.argv[2]))) as handle:
    parent = os.getppid()
    print("ready", flush=True)
    while os.getppid() == parent:
        time.sleep(1)
        for _ in range(10):
            with handle.phase("compute"):
                handle.count("samples", 100)
            handle.count("read_bytes", 4096)
"""
MLFLOW = """
import sys
import mlflow
mlflow.set_tracking_uri(f"sqlite:///{sys.argv[1]}/mlflow.db")
mlflow.enable_system_metrics_logging()
mlflow.set_system_metrics_sampling_interval(float(sys.argv[2]))
mlflow.set_system_metrics_samples_before_logging(1)
mlflow.set_experiment("overhead")
mlflow.start_run()
print("ready", flush=True)
sys.stdin.read()
"""
CARBON = """
import sys
from codecarbon import OfflineEmissionsTracker
tracker = OfflineEmissionsTracker(country_iso_code="DEU", measure_power_secs=float(sys.argv[2]),
    output_dir=sys.argv[1], log_level="error", allow_multiple_runs=True)
tracker.start()
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """One that watches. ``pids``: all of its processes; ``kept``: values on its disk by now."""

    name: str
    pids: tuple[int, ...]
    main: int
    kept: Callable[[], int]
    knows: tuple[str, str, str, str]
    """Stages, process tree, GPU, energy per stage."""

    def stop(self) -> None:
        self._tell(signal.SIGSTOP)

    def go_on(self) -> None:
        self._tell(signal.SIGCONT)

    def _tell(self, number: signal.Signals) -> None:
        for pid in self.pids:
            os.kill(pid, number)


@contextmanager
def ours(folder: Path, work: int) -> Iterator[Telemetry]:
    """The recorder as a run has it, and a handle with ten phases and twenty counts a second.

    They come at once: the stage of a run is awake anyway, and waking this one up is no telemetry.
    """
    clock, samples = Clock(offset_ns=measure_offset_ns()), folder / "samples"
    with Recording(samples, clock, TelemetrySettings()) as recording:
        recording.watch("runner", os.getpid(), from_start=False)
        recording.watch("work", work)
        (pid,) = recording.pids()
        with _process([sys.executable, "-c", APP, str(samples), str(clock.offset_ns)]) as app:
            one = Telemetry(
                name="this project, 10 Hz",
                pids=(pid, app),
                main=pid,
                kept=lambda: read_samples(samples).table.num_rows,
                knows=("yes", "yes", "yes", "yes"),
            )
            try:
                yield one
            finally:
                one.go_on()  # a recorder that is stopped cannot end


@contextmanager
def mlflow(folder: Path, interval_s: float) -> Iterator[Telemetry]:
    """MLflow's own system metrics, into a SQLite store."""
    folder.mkdir()
    with _process([sys.executable, "-W", "ignore", "-c", MLFLOW, folder, interval_s]) as pid:
        yield Telemetry(
            name=f"MLflow's system metrics, {interval_s:g} s",
            pids=(pid,),
            main=pid,
            kept=lambda: _metrics_in(folder / "mlflow.db"),
            knows=("no", "no", "yes", "no"),
        )


@contextmanager
def codecarbon(folder: Path, python: Path, interval_s: float) -> Iterator[Telemetry]:
    """CodeCarbon's offline tracker; it keeps a line at its end and nothing before."""
    folder.mkdir()
    with _process([python, "-W", "ignore", "-c", CARBON, folder, interval_s]) as pid:
        yield Telemetry(
            name=f"CodeCarbon, {interval_s:g} s",
            pids=(pid,),
            main=pid,
            kept=lambda: sum(len(one.read_text().splitlines()) for one in folder.glob("*.csv")),
            knows=("where asked", "no", "yes", "where asked"),
        )


def codecarbon_python(folder: Path) -> Path | str:
    """The interpreter of an environment with CodeCarbon, or the sentence why there is none."""
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    made = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", CODECARBON],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode != 0:
        words = made.stderr.strip().splitlines() or ["no reason given"]
        return f"{CODECARBON} could not be installed ({words[-1]}): its line is missing"
    return python


@contextmanager
def _process(command: Sequence[object]) -> Iterator[int]:
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        if not process.stdout.readline().startswith(READY):
            raise RuntimeError(f"{command[0]} ended with {process.wait()} before it was ready")
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def _metrics_in(store: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as one:
        count: int = one.execute("select count(*) from metrics").fetchone()[0]
        return count

"""Record the run that ``stagescope replay example`` replays.

``python -m tests.telemetry.record_example``: a real run of the reference load, small, on this
machine: the guest's samples are the machine's own. Its two GPUs are those of the C library of
tests/nvml, kept as busy as the machine's CPUs; its vCenter is the simulator over TLS, whose VM
takes what this machine takes (tests/vcsim_mirror.py). The archive holds pseudonyms.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from telemetry.archive import EXAMPLE, pack, unpack
from telemetry.finish import finish
from telemetry.runfolder import find_run
from tests.nvml.build import build, environment
from tests.vcsim_mirror import Mirror, _busy_s
from tests.vcsim_server import Vcsim

VM, HOST, UUID = "stagescope-vm", "DC0_C0_H0", "4220f5a4-5c3e-4b1a-9d0e-0a1b2c3d4e5f"
SETTINGS = (
    "name=example",
    "data.days=45",
    "data.customers=2000",
    "data.terminals=2000",
    "protocol.folds=[2018-04-25]",
    "model.epochs=40",
    "model.patience=40",
    "model.members=2",
    "serving.rates=[50, 100, 200]",
    "serving.seconds_per_rate=14",
    "telemetry.guest_hz=4",
    "telemetry.gpu_hz=4",
    "vcenter.query_period_s=20",
    "vcenter.backfill_deadline_s=60",
)
GOLDEN = Path(__file__).parents[1] / "golden/run-example.json"
"""Some figures of its profile: each stage, entity and metric with mean, total and coverage."""
KEPT = frozenset(
    ("cpu_busy_seconds", "mem_rss_bytes", "mem_used_bytes", "io_read_bytes", "io_write_bytes",
     "disk_write_bytes", "gpu_util_percent", "gpu_mem_used_bytes", "power_instant_w", "energy_j",
     "vm_cpu_used_cores", "vm_cpu_ready_percent", "host_power_w", "app_rows", "app_samples",
     "app_requests", "phase_run_seconds", "phase_compute_seconds", "phase_load_seconds")
)  # fmt: skip
GPUS = "gpus=2;power_w=160;power_swing_w=60;power_period_s=17;temperature=52"
STEP_S = 0.25
REST_PERCENT = 35


@contextmanager
def busy_gpus(control: Path) -> Iterator[None]:
    """Keep both GPUs as busy as the machine's CPUs, and at rest below ``REST_PERCENT``."""
    stop = threading.Event()

    def follow() -> None:
        before, cores = _busy_s(), os.cpu_count() or 1
        while not stop.wait(STEP_S):
            now = _busy_s()
            percent = min(100, round(100 * (now - before) / STEP_S / cores))
            before = now
            scratch = control.with_suffix(".new")
            scratch.write_text(f"util={percent if percent >= REST_PERCENT else 0}\n")
            scratch.replace(control)

    control.write_text("util=0\n")
    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def record(folder: Path) -> Path:
    """Run it in ``folder`` and return the run's own folder."""
    control, out = folder / "control", folder / "runs"
    with Vcsim(machines=2, hosts=1, standalone=0) as vcsim, busy_gpus(control):
        vcsim.control(vms=[{"name": "DC0_C0_RP0_VM0", "rename": VM, "uuid": UUID, "cpus": 2}])
        settings = [
            *SETTINGS,
            f"vcenter.host={vcsim.address}",
            f"vcenter.port={vcsim.port}",
            f"vcenter.ca_file={vcsim.ca_file}",
            f"vcenter.vm={UUID}",
        ]
        more = [part for one in settings for part in ("--set", one)]
        env = environment(build(folder / "nvml"), GPUS, control)
        with Mirror(vcsim, VM, HOST):
            subprocess.run(
                [sys.executable, "-m", "pipeline.cli", "run", "--out", str(out), *more],
                check=True,
                env={**env, **vcsim.environ(reader=True), "OMP_NUM_THREADS": "2"},
            )
    return find_run("latest", out).path


def golden_rows(profile: Mapping[str, Any]) -> list[list[Any]]:
    """The figures of a profile.json that are kept in git."""
    return [
        [
            stage["name"],
            row["entity"],
            row["metric"],
            {name: row[name] for name in ("mean", "total", "coverage") if row[name] is not None},
        ]
        for stage in profile["stages"]
        for row in stage["metrics"]
        if row["metric"] in KEPT and row["reason"] is None
    ]


def write_golden() -> None:
    """Derive the archive's profile and keep some of its figures."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, _ = unpack(EXAMPLE, Path(scratch) / "run")
        finish(folder)
        rows = golden_rows(json.loads(folder.profile_json.read_text()))
    GOLDEN.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="example-"))
    folder.mkdir(parents=True, exist_ok=True)
    run = record(folder)
    packed = pack(find_run(str(run), folder), EXAMPLE)
    write_golden()
    print(f"{run} -> {packed} ({packed.stat().st_size / 1024:.0f} KiB)")


if __name__ == "__main__":
    main()

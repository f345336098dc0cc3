"""Made-up verdicts and moved bytes for the report's tests, one of each kind a profile can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = ("data-bound", "CPU-bound", "memory-bound", "GPU-bound", "disk-bound", "contention")
UNSEEN = "no vCenter was asked"


def judged(profile: Mapping[str, Any]) -> dict[str, Any]:
    """The profile with a verdict and what it moved for each of its stages."""
    names = [stage["name"] for stage in profile["stages"]]
    verdicts = [_verdict(name, kind) for name, kind in zip(names, KINDS, strict=False)]
    return {**profile, "verdicts": verdicts, "data_moved": [_moved(name) for name in names]}


def _verdict(stage: str, verdict: str) -> dict[str, Any]:
    return {
        "stage": stage, "verdict": verdict, "rule": f"{verdict} by share",
        "sentence": f"{stage} kept 1.87 of 2 cores in use while work waited for a CPU in 41 % of "
                    "its time, and its disk was busy for 3 % of it; this holds for a long sentence",
        "evidence": [
            {"entity": "stage", "metric": "cpu_busy_seconds", "figure": "mean", "value": 1.87,
             "unit": "cores", "says": "cores in use"},
            {"entity": "machine", "metric": "psi_cpu_some_seconds", "figure": "mean",
             "value": 41.25, "unit": "% of time", "says": "work waited for a CPU"},
        ],
        "also": [{"verdict": "idle", "rule": "little of all", "sentence": "little was in use"}],
        "missing": ["a GPU: how busy gpu:0 was is not known"],
        "io": {
            "source": "cache", "sentence": "its calls read 1.2 GB, and storage delivered 28 kB",
            "witnesses": [
                {"name": "application", "read_bytes": 1_288_490_188.8, "write_bytes": 7_000_000,
                 "reason": None},
                {"name": "storage", "read_bytes": 28_672, "write_bytes": 0, "reason": None},
                {"name": "guest device", "read_bytes": 30_720, "write_bytes": 8e6, "reason": None},
                {"name": "hypervisor", "read_bytes": None, "write_bytes": None, "reason": UNSEEN},
            ],
        },
    }  # fmt: skip


def _moved(stage: str) -> dict[str, Any]:
    return {
        "stage": stage, "growth_ratio": 3.32, "epochs": 14, "bytes_per_epoch": 90 * 2**20,
        "reason": None,
        "moved": [
            {"what": "read by calls", "bytes": 1_288_490_188.8, "scope": "stage", "reason": None,
             "source": "stage io_read_calls_bytes"},
            {"what": "received", "bytes": 0, "scope": "machine", "reason": None,
             "source": "machine net_rx_bytes"},
            {"what": "to the GPU", "bytes": None, "scope": "stage",
             "source": "app app_host_to_device_bytes", "reason": "no GPU was used in this stage"},
        ],
    }  # fmt: skip

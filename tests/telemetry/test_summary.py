"""The figures of a stage for a tracking server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from telemetry.profile import Profile
from telemetry.summary import LIMIT, summary
from tests.telemetry.profile_rows import a_profile, absent, row


def test_the_summary_has_only_what_was_measured() -> None:
    figures = summary(a_profile(), "features")
    assert figures["stage/cpu_seconds"] == 20.0
    assert figures["stage/cpu_cores_p95"] == 3.0
    assert figures["stage/coverage"] == 0.9
    assert figures["data/growth_ratio"] == 2.5
    assert not [name for name in figures if name.startswith("gpu/")]
    assert "data/rows_out" not in figures
    assert summary(a_profile(), "training") == {}


def test_the_summary_is_bounded_and_keeps_the_important() -> None:
    rows = [row("features", "stage", "cpu_busy_seconds")]
    for place in range(40):
        rows += [
            row("features", f"gpu:{place}", "energy_j", coverage=1.0),
            row("features", "net:lo", "net_rx_bytes", coverage=1.0),
            row("features", f"disk:nvme{place} n&1", "disk_read_bytes", coverage=1.0),
        ]
    figures = summary(Profile(rows=tuple(rows)), "features")
    assert len(figures) == LIMIT
    assert figures["stage/cpu_seconds"] == 20.0
    assert figures["gpu/all_energy_j"] == 40 * 20.0
    assert "guest/nvme0 n_1_read_bytes" in figures
    assert not [name for name in figures if "lo_rx" in name]


def test_of_many_gpus_each_figure_is_one_and_the_hypervisor_is_there() -> None:
    rows = [row("features", "vm:ml@esx-1", "vm_cpu_ready_percent", mean=7.0)]
    for place in range(8):
        rows.append(row("features", f"gpu:{place}", "gpu_util_percent", mean=10.0 * place))
        rows.append(row("features", f"gpu:{place}", "energy_j", total=100.0, coverage=1.0))
    rows.append(row("features", "gpu:0/mig:0", "gpu_mem_used_bytes", max=5.0))
    assert summary(Profile(rows=tuple(rows)), "features") == {
        "vcenter/cpu_ready_mean_percent": 7.0,
        "gpu/all_util_percent": 35.0,
        "gpu/0/mig_0_mem_used_max_bytes": 5.0,
        "gpu/all_energy_j": 800.0,
    }


@pytest.mark.parametrize("lost", ["absent", "half"])
def test_of_many_gpus_a_sum_without_one_of_them_is_no_sum(lost: str) -> None:
    """One fell off the bus before the stage, or in the middle of it."""
    rows = []
    for place in range(8):
        rows.append(row("features", f"gpu:{place}", "energy_j", total=100.0, coverage=1.0))
        rows.append(row("features", f"gpu:{place}", "gpu_util_percent", mean=10.0))
    rows[6] = (
        absent("features", "gpu:3", "energy_j", "lost")
        if lost == "absent"
        else replace(rows[6], total=40.0, coverage=0.4)
    )
    assert summary(Profile(rows=tuple(rows)), "features") == {"gpu/all_util_percent": 10.0}


def test_a_total_of_a_part_of_the_stage_is_not_told_as_the_stages() -> None:
    rows = (
        row("features", "esxi:esx-1", "host_power_w", total=5e4, mean=100.0, coverage=0.5),
        row("features", "gpu:0", "power_instant_w", total=9e3, mean=90.0, coverage=0.6),
        row("features", "stage", "io_read_bytes", total=7e6, coverage=0.7, total_share=1.0),
        row("features", "stage", "io_write_bytes", total=7e6, coverage=0.5, total_share=0.5),
        row("features", "vm:a@b", "vm_cpu_used_cores", total=9.0, coverage=0.9, total_share=1.0),
    )
    assert summary(Profile(rows=rows), "features") == {
        "vcenter/host_power_mean_w": 100.0,
        "gpu/0_power_mean_w": 90.0,
        "stage/io_read_bytes": 7e6,  # its processes were watched from beginning to end
        "vcenter/cpu_used_seconds": 9.0,  # its windows reach over both ends
    }


def test_the_summary_has_the_hypervisors_figures() -> None:
    rows = (
        row("features", "vm:ml@esx-1", "vm_cpu_ready_percent", mean=7.0),
        row("features", "vm:ml@esx-1", "vm_cpu_used_cores", total=33.0, coverage=1.0),
        row(
            "features", "vm:ml@esx-1/scsi0:0", "vm_disk_read_bytes_per_s", total=9.0, coverage=0.96
        ),
        row("features", "esxi:esx-1", "host_power_w", total=5e4, coverage=0.95),
        row("features", "esxi:esx-1/gpu:0", "host_gpu_util_percent", mean=81.0),
    )
    assert summary(Profile(rows=rows), "features") == {
        "vcenter/cpu_used_seconds": 33.0,
        "vcenter/cpu_ready_mean_percent": 7.0,
        "vcenter/host_energy_j": 5e4,
        "vcenter/host_power_mean_w": 2.0,
        "vcenter/gpu_0_util_percent": 81.0,
        "vcenter/scsi0_0_read_bytes": 9.0,
    }


def test_a_vm_that_moved_has_a_figure_of_each_host() -> None:
    rows = tuple(
        row("features", f"vm:ml@{host}", "vm_cpu_ready_percent", mean=mean)
        for host, mean in (("esx-1", 1.0), ("esx-2", 8.0))
    )
    assert summary(Profile(rows=rows), "features") == {
        "vcenter/cpu_ready_mean_percent ml_esx-1": 1.0,
        "vcenter/cpu_ready_mean_percent ml_esx-2": 8.0,
    }

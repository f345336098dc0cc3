"""Which of the guest's and the GPU's series stand in which chart: one table."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Line:
    """Series of a chart: entities and metrics by pattern; ``{}`` stands for the entity's name."""

    label: str
    entity: str
    metric: str
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One chart: its title, the unit of its axis and its lines, in their order."""

    key: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    top: float | None = None
    group: str = ""
    """Charts of one group say together, once, that nothing was measured."""
    optional: bool = False
    """Left out where nothing of it was recorded, as of a run before there was such a series."""


_PSI = (("CPU", "cpu", "some"), ("memory", "memory", "some"), ("memory", "memory", "full"),
        ("I/O", "io", "some"), ("I/O", "io", "full"))  # fmt: skip

SPECS = (
    Spec(
        key="memory",
        title="Memory of the machine",
        unit="B",
        lines=(
            Line(label="used", entity="machine", metric="mem_used_bytes"),
            Line(
                label="page cache",
                entity="machine",
                metric=r"(mem_)?(page_)?cache(d)?(_memory)?_bytes",
            ),
            Line(label="swap used", entity="machine", metric=r"(mem_)?swap_used_bytes"),
        ),
    ),
    Spec(
        key="rss",
        title="Memory of each stage's processes (RSS)",
        unit="B",
        lines=(Line(label="{}", entity=r"stage:.+", metric="mem_rss_bytes"),),
    ),
    Spec(
        key="disk",
        title="Disks",
        unit="B/s",
        lines=(
            Line(label="{} read", entity=r"disk:.+", metric="disk_read_bytes"),
            Line(label="{} write", entity=r"disk:.+", metric=r"disk_writ(e|ten)_bytes"),
        ),
    ),
    Spec(
        key="net",
        title="Network",
        unit="B/s",
        lines=(
            Line(label="{} in", entity=r"net:.+", metric="net_rx_bytes"),
            Line(label="{} out", entity=r"net:.+", metric="net_tx_bytes"),
        ),
    ),
    Spec(
        key="psi",
        title="Pressure: share of the time in which work waited",
        unit="%",
        lines=tuple(
            Line(
                label=f"{word}, {how}",
                entity="machine",
                metric=f"psi_{name}_{how}_seconds",
                scale=100.0,
            )
            for word, name, how in _PSI
        ),
    ),
    Spec(
        key="cpu-speed",
        title="CPU speed: a fixed loop's time, longer is slower",
        unit="µs",
        lines=(Line(label="loop", entity="machine", metric="cpu_loop_us"),),
        optional=True,
    ),
    Spec(
        key="gpu-util",
        title="GPU: time with a kernel resident",
        unit="%",
        lines=(Line(label="GPU {}", entity=r"gpu:.+", metric="gpu_util_percent"),),
        top=100.0,
        group="GPU",
    ),
    Spec(
        key="gpu-power",
        title="GPU: power",
        unit="W",
        lines=(
            Line(label="GPU {} instant", entity=r"gpu:.+", metric="power_instant_w"),
            Line(label="GPU {} 1 s mean", entity=r"gpu:.+", metric="power_average_w"),
        ),
        group="GPU",
    ),
    Spec(
        key="gpu-memory",
        title="GPU: memory used",
        unit="B",
        lines=(Line(label="GPU {}", entity=r"gpu:.+", metric="gpu_mem_used_bytes"),),
        group="GPU",
    ),
    Spec(
        key="gpu-sm",
        title="GPU: multiprocessors that had work, and warps on them",
        unit="%",
        lines=(
            Line(label="GPU {} busy", entity=r"gpu:.+", metric="gpm_sm_util_percent"),
            Line(label="GPU {} occupancy", entity=r"gpu:.+", metric="gpm_sm_occupancy_percent"),
        ),
        top=100.0,
        optional=True,
    ),
    Spec(
        key="gpu-tensor",
        title="GPU: time in which the tensor cores worked",
        unit="%",
        lines=(Line(label="GPU {}", entity=r"gpu:.+", metric="gpm_tensor_util_percent"),),
        optional=True,
    ),
    Spec(
        key="gpu-pipes",
        title="GPU: time in which arithmetic units worked, by precision",
        unit="%",
        lines=(
            Line(label="GPU {} FP64", entity=r"gpu:.+", metric="gpm_fp64_util_percent"),
            Line(label="GPU {} FP32", entity=r"gpu:.+", metric="gpm_fp32_util_percent"),
            Line(label="GPU {} FP16", entity=r"gpu:.+", metric="gpm_fp16_util_percent"),
            Line(label="GPU {} HMMA", entity=r"gpu:.+", metric="gpm_tensor_half_util_percent"),
        ),
        optional=True,
    ),
    Spec(
        key="gpu-dram",
        title="GPU: bandwidth of its memory in use",
        unit="%",
        lines=(Line(label="GPU {}", entity=r"gpu:.+", metric="gpm_dram_bw_util_percent"),),
        optional=True,
    ),
    Spec(
        key="gpu-pcie",
        title="GPU: traffic over PCIe",
        unit="B/s",
        lines=(
            Line(label="GPU {} in", entity=r"gpu:.+", metric="(gpm_)?pcie_rx_bytes_per_s"),
            Line(label="GPU {} out", entity=r"gpu:.+", metric="(gpm_)?pcie_tx_bytes_per_s"),
        ),
        optional=True,
    ),
    Spec(
        key="gpu-nvlink",
        title="GPU: traffic over NVLink",
        unit="B/s",
        lines=(
            Line(label="GPU {} in", entity=r"gpu:.+", metric="gpm_nvlink_rx_bytes_per_s"),
            Line(label="GPU {} out", entity=r"gpu:.+", metric="gpm_nvlink_tx_bytes_per_s"),
        ),
        optional=True,
    ),
    Spec(
        key="gpu-processes",
        title="GPU: time with work on it, by whose processes",
        unit="%",
        lines=(
            Line(label="GPU {} this run", entity=r"gpu:.+", metric="gpu_run_sm_percent"),
            Line(label="GPU {} all", entity=r"gpu:.+", metric="gpu_processes_sm_percent"),
        ),
        optional=True,
    ),
)


def has_place(metric: str) -> bool:
    """Whether a metric stands in one of these charts."""
    return any(re.fullmatch(line.metric, metric) for spec in SPECS for line in spec.lines)

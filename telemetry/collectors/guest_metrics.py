"""The metrics of the guest, in tables: name, unit, kind, meaning, source."""

from __future__ import annotations

from telemetry.samples import Kind, Metric


def _metric(name: str, unit: str, kind: Kind, meaning: str, source: str) -> Metric:
    return Metric(name=name, unit=unit, kind=kind, meaning=meaning, source=source)


def _counter(name: str, unit: str, meaning: str, source: str) -> Metric:
    return _metric(name, unit, "counter", meaning, source)


def _gauge(name: str, unit: str, meaning: str, source: str) -> Metric:
    return _metric(name, unit, "gauge", meaning, source)


def _table(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


_MODES = {
    "user": "in user mode (of processes; on a hypervisor its guests' time is in it)",
    "nice": "in user mode at low priority",
    "system": "in the kernel",
    "idle": "idle with nothing to wait for",
    "iowait": "idle while a block device was busy for a task of this CPU",
    "irq": "in interrupts",
    "softirq": "in soft interrupts",
    "steal": "taken by the hypervisor while this guest had work (of a VMware VM only with "
    "stealclock.enable)",
}
CPU = {
    mode: _counter(
        f"cpu_{mode}_seconds",
        "s",
        f"CPU time {text}; of a process tree: its own and its reaped children's"
        if mode in {"user", "system"}
        else f"CPU time {text}",
        "/proc/stat; /proc/<pid>/stat of trees (ticks of 10 ms)",
    )
    for mode, text in _MODES.items()
}
MEMORY = _table(
    _gauge("mem_total_bytes", "B", "memory of the machine", "/proc/meminfo"),
    _gauge("mem_used_bytes", "B", "memory in use: MemTotal - MemAvailable", "/proc/meminfo"),
    _gauge("mem_available_bytes", "B", "memory that a new process could get", "/proc/meminfo"),
    _gauge("mem_page_cache_bytes", "B", "page cache: Cached + Buffers - Shmem", "/proc/meminfo"),
    _gauge("mem_dirty_bytes", "B", "written by programs, and not on its way yet", "/proc/meminfo"),
    _gauge("mem_writeback_bytes", "B", "on its way to a device", "/proc/meminfo"),
    _gauge("mem_swap_used_bytes", "B", "swap in use", "/proc/meminfo"),
)
PRESSURE = {
    (what, kind): _counter(
        f"psi_{what}_{kind}_seconds",
        "s",
        f"time in which {who} waited for {what}",
        f"/proc/pressure/{what}",
    )
    for what in ("cpu", "memory", "io")
    for kind, who in (("some", "some task"), ("full", "every task that had work"))
}
MACHINE_OTHER = _table(
    _gauge("cpu_count", "1", "CPUs that this machine has online", "sysconf"),
    _gauge(
        "cpu_loop_us",
        "µs",
        "CPU time of a fixed loop: more where the CPU is slower, whatever runs on it",
        "the recorder, CLOCK_THREAD_CPUTIME_ID",
    ),
    _gauge("fs_used_bytes", "B", "used on the file system of the runs", "statvfs"),
    _gauge("fs_free_bytes", "B", "free to this user on that file system", "statvfs"),
)
_DISKSTATS = "/proc/diskstats, whole disks"
DISK = _table(
    _counter("disk_read_ops", "1", "reads that the device completed", _DISKSTATS),
    _counter("disk_read_bytes", "B", "bytes read from the device", _DISKSTATS),
    _counter("disk_read_wait_seconds", "s", "time that reads took, summed", _DISKSTATS),
    _counter("disk_write_ops", "1", "writes that the device completed", _DISKSTATS),
    _counter("disk_write_bytes", "B", "bytes written to the device", _DISKSTATS),
    _counter("disk_write_wait_seconds", "s", "time that writes took, summed", _DISKSTATS),
    _counter("disk_busy_seconds", "s", "time with a request in flight", _DISKSTATS),
)
_NET_DEV = (
    "/proc/net/dev; machine: the sum over cards, else over interfaces that are not within others"
)
NET = _table(
    _counter("net_rx_bytes", "B", "bytes received", _NET_DEV),
    _counter("net_rx_packets", "1", "packets received", _NET_DEV),
    _counter("net_tx_bytes", "B", "bytes sent", _NET_DEV),
    _counter("net_tx_packets", "1", "packets sent", _NET_DEV),
)
_PID_STAT, _PID_IO = (
    "/proc/<pid>/stat, summed over the tree",
    "/proc/<pid>/io, summed over the tree",
)
_READ_CALLS = (
    "bytes read by calls of the read family (rchar): neither recv on sockets nor mapped files"
)
_WRITE_CALLS = (
    "bytes written by calls of the write family (wchar): neither send on sockets nor mapped files"
)
_USAGE = (
    CPU["user"],
    CPU["system"],
    _counter("page_faults_minor", "1", "page faults without storage", _PID_STAT),
    _counter("page_faults_major", "1", "page faults that waited for storage", _PID_STAT),
    _counter("io_read_calls_bytes", "B", _READ_CALLS, _PID_IO),
    _counter("io_write_calls_bytes", "B", _WRITE_CALLS, _PID_IO),
    _counter("io_read_bytes", "B", "bytes that storage had to deliver (read_bytes)", _PID_IO),
    _counter("io_write_bytes", "B", "bytes made dirty for storage (write_bytes)", _PID_IO),
    _counter(
        "io_cancelled_write_bytes", "B", "made dirty and dropped before they were written", _PID_IO
    ),
)
PROCESSES = _table(
    *_USAGE,
    _gauge("process_count", "1", "processes", "/proc"),
    _gauge(
        "process_io_hidden_count",
        "1",
        "processes whose I/O may not be read, so that it is in no sum",
        "/proc/<pid>/io",
    ),
)
TREE = _table(
    *_USAGE,
    _gauge("process_count", "1", "processes", "/proc"),
    _gauge("thread_count", "1", "threads", _PID_STAT),
    _gauge("mem_rss_bytes", "B", "resident memory, summed; shared pages count in each", _PID_STAT),
    _gauge(
        "process_ready_count",
        "1",
        "processes whose first thread ran or was ready to run (state R)",
        _PID_STAT,
    ),
    _gauge(
        "process_waiting_for_disk_count",
        "1",
        "processes whose first thread waited without a signal being able to end it: mostly for a "
        "disk (state D)",
        _PID_STAT,
    ),
)
TREE_SLOW = _table(
    _gauge(
        "mem_peak_rss_bytes",
        "B",
        "largest resident memory that any one process of the tree has had so far",
        "/proc/<pid>/status VmHWM",
    ),
    _gauge("mem_swap_bytes", "B", "swapped out, summed", "/proc/<pid>/status VmSwap"),
)
_OWN_CGROUP = "it needs a control group of its own for each stage"
NOT_PER_TREE = (
    (
        MEMORY["mem_page_cache_bytes"],
        f"the kernel charges page cache to control groups, not to processes; {_OWN_CGROUP}",
    ),
    *(
        (
            NET[name],
            "the kernel counts network bytes by interface, not by process; "
            "it needs a network namespace of its own for each stage",
        )
        for name in ("net_rx_bytes", "net_tx_bytes")
    ),
)
_CPU_STAT = (
    "cpu.stat of the recorder's control group; of a stage: of its first process's groups, "
    "the most of any"
)
CGROUP = _table(
    _counter("cgroup_cpu_seconds", "s", "CPU time of this control group", f"{_CPU_STAT}; cpuacct"),
    _counter("cgroup_cpu_throttled_seconds", "s", "time held back by the CPU quota", _CPU_STAT),
    _counter("cgroup_cpu_throttled_periods", "1", "periods in which it was held back", _CPU_STAT),
    _counter("cgroup_cpu_periods", "1", "periods of the quota in which it had work", _CPU_STAT),
    _gauge(
        "cgroup_mem_used_bytes",
        "B",
        "memory of this control group, page cache included",
        "memory.current; memory.usage_in_bytes",
    ),
    _gauge("cgroup_mem_page_cache_bytes", "B", "page cache of this control group", "memory.stat"),
)
QUOTA = tuple(
    CGROUP[f"cgroup_cpu_{name}"] for name in ("throttled_seconds", "throttled_periods", "periods")
)
"""What the CPU quota did to a stage's own control groups, in the order of ``quota.Quota``."""
SLOW = (*MACHINE_OTHER.values(), *TREE_SLOW.values(), *CGROUP.values())
"""Sampled once a second whatever the collector's period."""
METRICS = (
    *CPU.values(),
    *MEMORY.values(),
    *PRESSURE.values(),
    *MACHINE_OTHER.values(),
    *DISK.values(),
    *NET.values(),
    *(metric for metric in TREE.values() if metric not in CPU.values()),
    PROCESSES["process_io_hidden_count"],
    *TREE_SLOW.values(),
    *CGROUP.values(),
)

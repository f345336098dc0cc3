"""Made-up runs for the report's tests: run.json, profile.json and samples that belong together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from telemetry.collectors.gpu_metrics import GPM_METRICS, PROCESS_USES
from telemetry.samples import Kind, Metric, Series
from telemetry.segments import SampleSet

STAGES = ("ingest", "processing", "features", "training", "validation", "serving")
SHARES = (0.05, 0.14, 0.22, 0.33, 0.12, 0.12)
START_NS = 1_795_485_600_000_000_000  # 2026-11-24 02:00 UTC
CPUS = 2
NO_GPU = "no NVIDIA driver here: libnvidia-ml.so.1 cannot be loaded"
NO_VCENTER = "no vCenter is configured"
MIB, GIB = 2.0**20, 2.0**30

Floats = npt.NDArray[np.float64]


def _metric(name: str, unit: str, kind: Kind, integral: str | None = None) -> Metric:
    return Metric(
        name=name, unit=unit, kind=kind, meaning=f"meaning of {name}", source="/proc of this test",
        integral_unit=integral,
    )  # fmt: skip


@dataclass(kw_only=True)
class MadeRun:
    """A run in the making; ``build`` returns what ``render`` takes."""

    names: tuple[str, ...] = STAGES
    seconds: float = 192.0
    hz: float = 10.0
    gpus: int = 0
    gap: bool = False
    vcenter: bool = False
    more_windows: tuple[tuple[str, str], ...] = ()
    """Entities and metrics of windows of 1 s: the first has most in it."""
    reason: str = NO_GPU
    _metrics: dict[str, Metric] = field(init=False, default_factory=dict)
    _columns: dict[tuple[str, str], tuple[Any, Any, Any]] = field(init=False, default_factory=dict)

    def build(self) -> tuple[dict[str, Any], dict[str, Any], SampleSet]:
        self._times = np.arange(0.0, self.seconds, 1 / self.hz)
        self._random = np.random.default_rng(7)
        self._spans = list(self._edges())
        self._guest()
        for stage in range(len(self.names)):
            self._tree(stage)
        for gpu in range(self.gpus):
            self._gpu(gpu)
        if self.vcenter:
            self._vcenter()
        for place, (entity, name) in enumerate(self.more_windows):
            ends = START_NS + (np.arange(1.0, self.seconds) * 1e9).astype(np.int64)
            self._metrics[name] = _metric(name, "%", "window")
            self._columns[entity, name] = ends, ends - 10**9, np.full(len(ends), 50.0 - place)
        samples = self._samples()
        run = self._run()
        return run, self._profile(run, samples), samples

    def _edges(self) -> Iterator[tuple[float, float]]:
        at = 0.6
        scale = (self.seconds - 4.0) / sum(SHARES[: len(self.names)] or (1.0,))
        for share in SHARES[: len(self.names)]:
            yield at, at + share * scale
            at += share * scale + 0.4

    def _level(self, levels: tuple[float, ...], noise: float, idle: float = 0.0) -> Floats:
        out = np.full(len(self._times), idle)
        for (low, high), level in zip(self._spans, levels, strict=False):
            inside = (self._times >= low) & (self._times < high)
            wave = 1 + 0.3 * np.sin(self._times[inside] / 2.3)
            out[inside] = level * wave * (1 + noise * self._random.standard_normal(inside.sum()))
        return np.asarray(np.maximum(out, 0.0), dtype=np.float64)

    def _put(
        self,
        entity: str,
        metric: Metric,
        values: Floats,
        where: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        keep = np.ones(len(self._times), bool) if where is None else where
        if self.gap:
            low, high = self._spans[3]
            middle = (low + high) / 2
            keep = keep & ~((self._times > middle) & (self._times < middle + 12))
        self._metrics[metric.name] = metric
        ts = START_NS + np.rint(self._times[keep] * 1e9).astype(np.int64)
        self._columns[entity, metric.name] = (ts, np.zeros(len(ts), np.int64), values[keep])

    def _count(self, entity: str, name: str, rate: Floats, unit: str = "B") -> None:
        self._put(entity, _metric(name, unit, "counter"), np.cumsum(rate) / self.hz)

    def _guest(self) -> None:
        user = self._level((0.7, 1.6, 1.8, 1.9, 1.2, 1.5), 0.05, idle=0.03).clip(0, 1.9)
        system = self._level((0.3, 0.2, 0.1, 0.04, 0.1, 0.3), 0.1, idle=0.01).clip(0, 0.3) / 3
        iowait = self._level((0.4, 0.2, 0.02, 0.01, 0.02, 0.0), 0.3).clip(0, 0.3) / 3
        modes = {"user": user, "system": system, "iowait": iowait, "steal": iowait * 0.1}
        busy = sum(modes.values(), np.zeros(len(self._times)))
        for mode, rate in ({**modes, "idle": (CPUS - busy).clip(0)}).items():
            self._count("machine", f"cpu_{mode}_seconds", rate, "s")
        used = 1.9 * GIB + self._level((0.4, 1.8, 2.9, 1.4, 0.9, 0.7), 0.01) * GIB
        cache = 0.6 * GIB + np.cumsum(self._level((40, 20, 8, 1, 2, 0), 0.2)) * MIB / self.hz
        self._put("machine", _metric("mem_used_bytes", "B", "gauge"), used)
        self._put("machine", _metric("mem_cached_bytes", "B", "gauge"), cache)
        for entity, factor in (("disk:sda", 1.0), ("disk:sdb", 0.05)):
            self._count(
                entity, "disk_read_bytes", factor * MIB * self._level((120, 60, 14, 2, 6, 0.2), 0.4)
            )
            self._count(
                entity, "disk_write_bytes", factor * MIB * self._level((60, 90, 40, 3, 1, 2), 0.9)
            )
        self._count("net:eth0", "net_rx_bytes", 2e3 + 1e5 * self._level((1, 1, 2, 3, 1, 9), 0.5))
        self._count("net:eth0", "net_tx_bytes", 1e3 + 5e4 * self._level((1, 1, 2, 3, 1, 11), 0.5))
        for what, peak in (("cpu", 0.35), ("memory", 0.02), ("io", 0.22)):
            rate = peak * self._level((0.4, 0.8, 0.9, 1.0, 0.4, 0.5), 0.5).clip(0, 1.2)
            self._count("machine", f"psi_{what}_some_seconds", rate, "s")
        loop = np.where(self._times % 30 < 12, 88.0, 47.0)  # somebody beside this core now and then
        whole = np.arange(len(self._times)) % max(1, round(self.hz)) == 0
        self._put("machine", _metric("cpu_loop_us", "µs", "gauge"), loop, whole)

    def _tree(self, stage: int) -> None:
        entity = f"stage:{self.names[stage]}"
        low, high = self._spans[stage]
        inside = (self._times >= low) & (self._times < high)
        grown = np.minimum(1.0, (self._times - low).clip(0) / (0.3 * (high - low)))
        rss = (0.3 + (0.4, 1.8, 2.9, 1.4, 0.9, 0.7)[stage] * grown) * GIB
        self._put(entity, _metric("mem_rss_bytes", "B", "gauge"), rss, inside)
        for name, unit, rate in (
            ("cpu_user_seconds", "s", (0.7, 1.6, 1.8, 1.9, 1.2, 1.5)[stage]),
            ("cpu_system_seconds", "s", 0.08),
            ("io_read_bytes", "B", (90, 50, 10, 1, 4, 0.1)[stage] * MIB),
            ("io_write_bytes", "B", (50, 80, 33, 2, 1, 1)[stage] * MIB),
        ):
            grows = np.cumsum(rate * inside) / self.hz
            self._put(entity, _metric(name, unit, "counter"), grows, inside)

    def _gpu(self, number: int) -> None:
        entity = f"gpu:{number}"
        busy = self._level((0, 5, 55, 92 - 20 * number, 60, 35), 0.1).clip(0, 100)
        power = 70 + 2.3 * busy * (1 + 0.05 * self._random.standard_normal(len(busy)))
        self._put(entity, _metric("gpu_util_percent", "%", "gauge"), busy)
        self._put(entity, _metric("power_instant_w", "W", "gauge", "J"), power)
        memory = (1.2 + self._level((0, 4, 22, 31, 12, 6), 0.0)) * GIB
        self._put(entity, _metric("gpu_mem_used_bytes", "B", "gauge"), memory)
        self._count(entity, "energy_j", power, "J")
        ends = START_NS + (np.arange(0.2, self.seconds, 0.2) * 1e9).astype(np.int64)
        use = np.interp(ends, START_NS + self._times * 1e9, busy)
        for place, metric in enumerate((*GPM_METRICS, *PROCESS_USES)):
            self._metrics[metric.name] = metric
            self._columns[entity, metric.name] = (ends, ends - 200_000_000, use / (1 + place))

    def _vcenter(self) -> None:
        ends = START_NS + (np.arange(20.0, self.seconds, 20.0) * 1e9).astype(np.int64)
        values = np.abs(np.sin(np.arange(len(ends)))) * 4
        for name in ("vm_cpu_ready_percent", "vm_of_a_later_version_percent"):
            self._metrics[name] = _metric(name, "%", "window")
            self._columns["vm:ml-01", name] = (ends, ends - 20 * 10**9, values)

    def _samples(self) -> SampleSet:
        names = list(self._columns)
        lengths = [len(self._columns[name][0]) for name in names]
        entities, metrics = sorted({n[0] for n in names}), sorted({n[1] for n in names})
        coded = [
            np.repeat(np.array([known.index(name[which]) for name in names], np.int32), lengths)
            for which, known in ((0, entities), (1, metrics))
        ]
        columns = [np.concatenate(part) for part in zip(*self._columns.values(), strict=True)]
        start = pa.array(columns[1], mask=columns[1] == 0)
        table = pa.table(
            {
                "ts_ns": columns[0],
                "start_ns": start,
                "entity": pa.DictionaryArray.from_arrays(coded[0], entities),
                "metric": pa.DictionaryArray.from_arrays(coded[1], metrics),
                "value": columns[2],
            }
        )
        windows = {name for name, metric in self._metrics.items() if metric.kind == "window"}
        of_gpus = {metric.name for metric in (*GPM_METRICS, *PROCESS_USES)}
        periods = {name: 20.0 if name in windows else 1 / self.hz for name in self._metrics}
        periods |= dict.fromkeys(windows & of_gpus, 0.2)
        periods["cpu_loop_us"] = max(1.0, 1 / self.hz)
        return SampleSet(table=table, metrics=self._metrics, absent=self._absent(), periods=periods)

    def _absent(self) -> list[Series]:
        gone = [
            Series(entity="machine", metric=_metric("psi_io_full_seconds", "s", "counter"),
                   reason="this kernel gives no full line for it"),
        ]  # fmt: skip
        if not self.gpus:
            gone += [
                Series(entity="gpu", metric=_metric(name, unit, "gauge"), reason=self.reason)
                for name, unit in (
                    ("gpu_util_percent", "%"),
                    ("power_instant_w", "W"),
                    ("energy_j", "J"),
                )
            ]
        return gone

    def _run(self) -> dict[str, Any]:
        sizes = [(None, 94), (94, 71), (71, 312), (312, 2), (314, 1), (3, 0)]
        stages = []
        for place, (name, (low, high)) in enumerate(zip(self.names, self._spans, strict=True)):
            into, out = sizes[place]
            stages.append(
                {
                    "name": name, "status": "finished",
                    "start_ns": START_NS + int(low * 1e9), "end_ns": START_NS + int(high * 1e9),
                    "pid": 4000 + place, "exit_code": 0, "reused_from": None, "reason": None,
                    "rusage": {"user_s": 10.0, "system_s": 1.0, "max_rss_bytes": 10**9,
                               "read_bytes": 10**6, "write_bytes": 10**6},
                    "bytes_in": None if into is None else into * 10**6, "bytes_out": out * 10**6,
                    "rows_in": 1_754_155 if into else None, "rows_out": 1_754_155 - place,
                    "settings": {"workers": 2, "days": 183}, "summary": SUMMARIES[place],
                }
            )  # fmt: skip
        return {
            "schema": 1, "run_id": "20261124-020000-3fa9c1", "name": "default",
            "status": "finished", "started_ns": START_NS,
            "ended_ns": START_NS + int(self.seconds * 1e9),
            "host": "ml-guest-01", "seed": 7, "stages": stages, "losses": [],
            "clock": {"offset_start_ns": 1_000_000, "offset_end_ns": 1_180_000},
            "environment": {
                "cpu": {"model": "Intel(R) Xeon(R) Gold 6442Y CPU @ 2.60GHz", "count": CPUS},
                "memory_total_bytes": 24 * 2**30, "python": "3.11.7", "kernel": "6.1.0-28-amd64",
                "packages": {"stagescope": "0.1.0", "torch": "2.13.0", "dask": "2026.8.0",
                             "mlflow": "3.17.2"},
                "gpu": {
                    "gpus": [{"name": "NVIDIA H100 PCIe", "memory_total_bytes": 80 * 2**30,
                              "virtualization": "passthrough"}] * self.gpus,
                    "reason": None if self.gpus else self.reason,
                },
            },
            "placement": {"host": "ml-guest-01", "system": "VMware, Inc.", "vm": None,
                          "esxi_host": None,
                          "absent": {"vm": NO_VCENTER, "esxi_host": NO_VCENTER}},
            "recipe": {"name": "default", "data": {"days": 183}, "model": {"kind": "mlp"}},
        }  # fmt: skip

    def _profile(self, run: dict[str, Any], samples: SampleSet) -> dict[str, Any]:
        stages = []
        for stage, span in zip(run["stages"], self._spans, strict=True):
            rows = [self._row(stage["name"], name, span) for name in sorted(self._columns)]
            absent = [
                {"entity": one.entity, "metric": one.metric.name, "unit": one.metric.unit,
                 "kind": one.metric.kind, **dict.fromkeys(("mean", "p50", "p95", "max", "total")),
                 "coverage": 0.0, "reason": one.reason}
                for one in samples.absent
            ]  # fmt: skip
            stages.append({"name": stage["name"], "metrics": [r for r in rows if r] + absent})
        return {"schema": "stagescope.profile/1", "stages": stages, "ledger": LEDGER}

    def _row(
        self, stage: str, name: tuple[str, str], span: tuple[float, float]
    ) -> dict[str, Any] | None:
        entity, metric = name[0], self._metrics[name[1]]
        if entity.startswith("stage:"):
            if entity != f"stage:{stage}":
                return None
            entity = "stage"
        ts, _, values = self._columns[name]
        inside = (ts >= START_NS + span[0] * 1e9) & (ts <= START_NS + span[1] * 1e9)
        here = values[inside]
        if len(here) < 2:
            return None
        if metric.kind == "counter":
            total: float | None = float(here[-1] - here[0])
            here = np.diff(here) * self.hz
        else:
            total = float(here.sum() / self.hz) if metric.integral_unit else None
        p50, p95 = np.percentile(here, [50, 95])
        return {
            "entity": entity, "metric": metric.name, "unit": metric.unit, "kind": metric.kind,
            "mean": float(here.mean()), "p50": float(p50), "p95": float(p95),
            "max": float(here.max()), "total": total,
            "coverage": min(1.0, len(here) / self.hz / (span[1] - span[0])), "reason": None,
        }  # fmt: skip


SUMMARIES: tuple[dict[str, Any], ...] = (
    {"rows": 1_754_155, "days": 183, "first_day": "2026-04-01", "frauds": 14_681},
    {"rows_in": 1_754_155, "rows_out": 1_754_150, "quarantined": {"null key": 5}},
    {"features": 15, "join_seconds": 3.4},
    {"epochs": 14, "best_epoch": 11, "loss": 0.02913, "seconds_per_epoch": 4.1},
    {"auc_roc": 0.8741, "average_precision": 0.6712, "card_precision_at_100": 0.2986,
     "promote": True,
     "slices": [{"slice": "scenario 1", "rows": 213, "auc_roc": 0.991},
                {"slice": "scenario 2", "rows": 9077, "auc_roc": 0.872}]},
    {"rate_held_per_s": 1800,
     "load": [{"rate_per_s": 200, "p50_ms": 1.2, "p95_ms": 2.4, "p99_ms": 4.8, "held": True},
              {"rate_per_s": 1800, "p50_ms": 2.9, "p95_ms": 8.7, "p99_ms": 14.2, "held": True},
              {"rate_per_s": 3200, "p50_ms": 410.0, "p95_ms": 911.0, "p99_ms": 1020.0,
               "held": False}]},
)  # fmt: skip

LEDGER: list[dict[str, Any]] = [
    {"name": "training_cpu", "unit": "s", "parts": {"sampled_tree": 118.2},
     "witnesses": {"sampled tree": 118.2, "wait4 rusage": 118.6},
     "remainder": 0.4, "remainder_percent": 0.34, "closes": True, "reason": None},
    {"name": "machine_cpu", "unit": "s", "parts": {"stages": 271.4, "recorder": 3.1, "rest": 6.2},
     "witnesses": {"processes": 280.7, "/proc/stat busy": 289.9},
     "remainder": 9.2, "remainder_percent": 3.17, "closes": False, "reason": "more than 2 % apart"},
    {"name": "written_bytes", "unit": "B", "parts": {"ingest": 99_614_720, "serving": 4096},
     "witnesses": {"processes": 5_242_880, "block devices": 6_291_456},
     "remainder": 1_048_576, "remainder_percent": 16.7, "closes": None,
     "reason": "under 64 MiB one file system's journal decides"},
]  # fmt: skip

"""Reading 10,000 VMs × 30 counters × 3 samples into Arrow, ours beside plain pyVmomi.

One simulated vCenter on this machine answers both, over TLS, within its limit of 256 series per
request. Each reader is a process of its own; pyVmomi reads fewer VMs and is scaled by their number.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyVmomi import vim

from infra.vsphere.counters import CounterTable, available
from infra.vsphere.perf import PerfSeries, Wanted, chunks, max_query_metrics, query
from infra.vsphere.session import VCenter
from infra.vsphere.settings import VCenterSettings
from tests.bench.measure import Measured, measured
from tests.vcsim_server import Vcsim

VMS = 10_000
PLAIN_VMS = 1_000
COUNTERS = 30
SAMPLES = 3
INTERVAL_S = 20
NS = 1_000_000_000
LIMIT_S, LIMIT_MB = 20.0, 400.0
PIECE = 20_000
"""Series that become a batch of Arrow at once."""
SCHEMA = pa.schema(
    [
        ("moid", pa.dictionary(pa.int32(), pa.string())),
        ("counter_id", pa.int32()),
        ("instance", pa.dictionary(pa.int32(), pa.string())),
        ("end_ns", pa.int64()),
        ("value", pa.int64()),
    ]
)


def to_arrow(series: Iterable[PerfSeries]) -> pa.Table:
    """A row per sample; names are coded, and pieces written as they come."""
    names: tuple[dict[str, int], dict[str, int]] = {}, {}
    columns: list[list[pa.Array]] = []
    rest = iter(series)
    while piece := list(islice(rest, PIECE)):
        lengths = [len(one.values) for one in piece]
        moids, instances = (
            np.array([codes.setdefault(text, len(codes)) for text in texts], np.int32)
            for codes, texts in zip(
                names, ([one.moid for one in piece], [one.instance for one in piece]), strict=True
            )
        )
        counters = np.array([one.counter_id for one in piece], np.int32)
        columns.append(
            [
                pa.array(np.repeat(moids, lengths)),
                pa.array(np.repeat(counters, lengths)),
                pa.array(np.repeat(instances, lengths)),
                pa.array(np.concatenate([one.ends_ns for one in piece])),
                pa.array(np.concatenate([one.values for one in piece])),
            ]
        )
    moid_names, instance_names = (pa.array(list(codes), pa.string()) for codes in names)
    batches = []
    for moids, counters, instances, ends_ns, values in columns:
        coded = pa.DictionaryArray.from_arrays(moids, moid_names)
        parts = pa.DictionaryArray.from_arrays(instances, instance_names)
        batches.append(
            pa.RecordBatch.from_arrays([coded, counters, parts, ends_ns, values], schema=SCHEMA)
        )
    return pa.Table.from_batches(batches, SCHEMA)


def plain(vcenter: VCenter, wanted: Sequence[Wanted], start_ns: int, most: int) -> pa.Table:
    """The same by ``QueryPerf`` of pyVmomi, as its examples and exporters use it."""
    manager = vcenter.content.perfManager
    kind = vim.PerformanceManager
    start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=start_ns // 1000)
    rows: list[tuple[str, int, str, int, int]] = []
    for part in chunks(wanted, most):
        specs = [
            kind.QuerySpec(
                entity=vim.VirtualMachine(one.moid, vcenter.stub),
                metricId=[kind.MetricId(counterId=c, instance=i) for c, i in one.counters],
                startTime=start,
                intervalId=INTERVAL_S,
            )
            for one in part
        ]
        for entity in manager.QueryPerf(querySpec=specs):
            moid = entity.entity._GetMoId()
            ends_ns = [round(info.timestamp.timestamp()) * NS for info in entity.sampleInfo]
            for series in entity.value:
                number, instance = series.id.counterId, series.id.instance
                rows += [
                    (moid, number, instance, end_ns, value)
                    for end_ns, value in zip(ends_ns, series.value, strict=True)
                ]
    moids, numbers, instances, ends, values = zip(*rows, strict=True)
    return pa.table(
        [
            pa.array(moids).dictionary_encode(),
            pa.array(numbers, pa.int32()),
            pa.array(instances).dictionary_encode(),
            pa.array(ends, pa.int64()),
            pa.array(values, pa.int64()),
        ],
        schema=SCHEMA,
    )


def ours(vcenter: VCenter, wanted: Sequence[Wanted], start_ns: int, most: int) -> pa.Table:
    return to_arrow(query(vcenter, wanted, start_ns=start_ns, chunk=most))


READERS: dict[str, Callable[[VCenter, Sequence[Wanted], int, int], pa.Table]] = {
    "ours": ours,
    "pyvmomi": plain,
}


def peak_mb() -> float:
    """Peak of this process's resident memory so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def read(name: str, settings: VCenterSettings, count: int) -> None:
    """In a process of its own: find the VMs, then read and time; prints JSON."""
    with VCenter(settings) as vcenter:
        found = vcenter.retrieve(vim.VirtualMachine, ["name"])
        moids = sorted((vm._GetMoId() for vm, _ in found), key=lambda moid: (len(moid), moid))
        moids = moids[-count:]
        del found
        known = CounterTable.read(vcenter).by_id
        offered = [one for one in available(vcenter, "VirtualMachine", moids[0]) if one[0] in known]
        counters = tuple(sorted(offered, key=lambda one: one[1])[:COUNTERS])
        wanted = [Wanted("VirtualMachine", moid, counters) for moid in moids]
        most = max_query_metrics(vcenter)
        server_ns = round(vcenter.service.CurrentTime().timestamp() * 1e9)
        last_ns = server_ns // (INTERVAL_S * NS) * INTERVAL_S * NS
        start_ns = last_ns - SAMPLES * INTERVAL_S * NS
        before_mb = peak_mb()
        begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
        table = READERS[name](vcenter, wanted, start_ns, most)
        seconds, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
        after_mb = peak_mb()
    table = table.filter(pc.less_equal(table["end_ns"], last_ns))  # a window ended since
    keys = ["moid", "counter_id", "instance", "end_ns"]
    unique = table.select(keys).unify_dictionaries().group_by(keys).aggregate([]).num_rows
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpu_s": cpu_s,
                "vms": len(moids),
                "rows": table.num_rows,
                "doubled": table.num_rows - unique,
                "missing": len(moids) * COUNTERS * SAMPLES - unique,
                "peak_mb": after_mb,
                "before_mb": before_mb,
                "most": most,
            }
        )
    )


def side(name: str, settings: VCenterSettings, count: int) -> dict[str, float]:
    """Measure one reader in a process of its own; raises RuntimeError if it fails or is wrong."""
    given = json.dumps(settings.to_json())
    one: Measured = measured(
        [sys.executable, "-m", "tests.bench.bench_vcenter", name, given, str(count)]
    )
    if one.answer is None:
        raise RuntimeError(f"{name}: {one.error}")
    answer: dict[str, float] = one.answer
    if answer["doubled"] or answer["missing"]:
        raise RuntimeError(f"{name}: {answer['doubled']} doubled, {answer['missing']} missing")
    print(
        f"  {name:8} {answer['vms']:6.0f} VMs  {answer['seconds']:6.2f} s"
        f"  {answer['cpu_s']:6.2f} s CPU  peak {answer['peak_mb']:4.0f} MB"
        f" (with the list of VMs and the session {answer['before_mb']:.0f} MB)"
        f"  {answer['rows']:.0f} samples, none doubled, none missing",
        flush=True,
    )
    return answer


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    with Vcsim(light=VMS) as vcsim:
        os.environ |= vcsim.environ()
        settings = vcsim.settings(timeout_s=60.0)
        print(
            f"{VMS} VMs x {COUNTERS} counters x {SAMPLES} samples, {cores} cores with the server:"
        )
        ours_ = side("ours", settings, VMS)
        plain_ = side("pyvmomi", settings, PLAIN_VMS)
        again = side("ours", settings, VMS)
    best = min(ours_["seconds"], again["seconds"])
    scale = VMS / PLAIN_VMS
    print(f"pyvmomi scaled by {scale:g}: {plain_['seconds'] * scale:.1f} s", end="")
    print(f", {plain_['seconds'] * scale / best:.1f} times as long as ours")
    print(f"CPU of the reader alone: {plain_['cpu_s'] * scale / ours_['cpu_s']:.1f} times as much")
    worst, peak = max(ours_["seconds"], again["seconds"]), ours_["peak_mb"]
    within = worst <= LIMIT_S and peak <= LIMIT_MB
    print(f"within {LIMIT_S:g} s and {LIMIT_MB:g} MB: {'yes' if within else 'NO'}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        read(sys.argv[1], VCenterSettings.from_json(json.loads(sys.argv[2])), int(sys.argv[3]))
    else:
        main()

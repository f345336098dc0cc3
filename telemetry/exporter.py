"""Runs that go on as Prometheus reads them: ``stagescope_…`` with run and stage as labels.

Levels and rates are gauges; what a stage or a card counts itself is a counter, and the last value
of a run that has ended is told beside the next run's, so that a scrape that comes late finds it. A
series that is not measured is not there; it is never 0.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from telemetry.watch import Snapshot, Value
from telemetry.watch_series import MAIN, Main

PREFIX = "stagescope"
QUIET_S = 30.0
"""Twice as long as Prometheus takes to ask again, as Debian sets it up."""


class LiveCollector(Collector):
    """What a scrape gets: of each run the last snapshot that was shown to it.

    ``quiet_s``: after so long without another its series are told no more: the run has ended, or
    nobody samples it. What is known of the run itself stays until then, too; that of the run that
    was shown last stays until there is another.
    """

    def __init__(self, quiet_s: float) -> None:
        self._quiet_s = quiet_s
        self._lock = threading.Lock()
        self._shown: dict[str, tuple[Snapshot, float]] = {}
        self._latest = ""

    def show(self, snapshot: Snapshot) -> None:
        with self._lock:
            self._latest = _run(snapshot)
            self._shown[self._latest] = snapshot, time.monotonic()
            self._drop()

    def forget(self, run: str) -> None:
        with self._lock:
            self._shown.pop(run, None)

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            self._drop()
            known = [snapshot for snapshot, _ in self._shown.values()]
            told = [one for one, at_s in self._shown.values() if not self._is_quiet(at_s)]
        return [*_of_runs(known), *_of_series(told)] if known else []

    def _drop(self) -> None:
        """Let go of earlier runs that have been quiet for long."""
        for run, (_, at_s) in list(self._shown.items()):
            if run != self._latest and self._is_quiet(at_s):
                del self._shown[run]

    def _is_quiet(self, at_s: float) -> bool:
        return time.monotonic() - at_s > self._quiet_s


class Endpoint:
    """The collector behind prometheus_client's own HTTP server; ``with`` starts and ends it."""

    def __init__(self, host: str, port: int, quiet_s: float) -> None:
        self._host, self._port = host, port
        self._collector = LiveCollector(quiet_s)

    @property
    def address(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._server.server_port}/metrics"

    def show(self, snapshot: Snapshot) -> None:
        """Let the next scrape have this, beside runs that have just ended."""
        self._collector.show(snapshot)

    def forget(self, run: str) -> None:
        """Tell nothing more of the run with this id, for nobody knows how it goes."""
        self._collector.forget(run)

    def __enter__(self) -> Endpoint:
        registry = CollectorRegistry()
        registry.register(self._collector)
        self._server, self._thread = start_http_server(self._port, self._host, registry=registry)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def endpoint_at(place: str, quiet_s: float = QUIET_S) -> Endpoint:
    """The endpoint at ``host:port``. Raises ValueError for anything else."""
    host, colon, port = place.rpartition(":")
    if not (colon and host and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"{place!r} is no address to listen on: give one like 127.0.0.1:9464")
    return Endpoint(host.strip("[]"), int(port), quiet_s)


def _of_runs(snapshots: Sequence[Snapshot]) -> Iterator[Metric]:
    """What is known of the runs themselves; every name once, whatever the number of runs."""
    info = _gauge(
        "run_info", "1; the run's name, status and host are its labels", "name", "status", "host"
    )
    took = _gauge("run_duration_seconds", "Time of the run so far")
    newest = _gauge(
        "last_sample_timestamp_seconds", "When the newest sample was taken, by the run's clock"
    )
    stages = _gauge(
        "stage_duration_seconds", "Time of the stage so far, or until its end", "stage", "status"
    )
    going = _gauge("stage_running", "1 while the stage goes on, 0 when it has ended", "stage")
    for snapshot in snapshots:
        record, run = snapshot.record, _run(snapshot)
        about = [str(record.get("name")), str(record["status"]), str(record.get("host"))]
        info.add_metric([run, *about], 1.0)
        took.add_metric([run], snapshot.seconds)
        newest.add_metric([run], snapshot.now_ns / 1e9)
        for stage in record["stages"]:
            seconds = snapshot.stage_seconds(stage)
            if seconds is not None:
                stages.add_metric([run, stage["name"], stage["status"]], seconds)
            going.add_metric([run, stage["name"]], float(stage["status"] == "running"))
    yield from (info, took, newest, stages, going)


def _of_series(snapshots: Sequence[Snapshot]) -> Iterator[Metric]:
    for main in MAIN:
        found = [(snapshot, one) for snapshot in snapshots for one in snapshot.of(main.name)]
        if not found:
            continue
        own = [name for name in found[0][1].labels if name != "stage"]
        family = _family(main, ("run", "stage", *own))
        for snapshot, one in found:
            labels = (one.labels[name] for name in own)
            family.add_metric([_run(snapshot), _stage(snapshot, one), *labels], one.value)
        yield family
    yield from _of_windows(snapshots)


def _of_windows(snapshots: Sequence[Snapshot]) -> Iterator[Metric]:
    """When the newest window of each VM and ESXi host ended."""
    family = _gauge(
        "hypervisor_window_timestamp_seconds",
        "When the newest window of the VM or ESXi host ended, by the run's clock",
        "stage",
        "vm",
        "host",
    )
    for snapshot in snapshots:
        ends_ns: dict[tuple[str, str], int] = {}
        for one in snapshot.values:
            if one.window:
                of = one.labels.get("vm", ""), one.labels.get("host", "")
                ends_ns[of] = max(one.ts_ns, ends_ns.get(of, one.ts_ns))
        for of, end_ns in ends_ns.items():
            family.add_metric([_run(snapshot), snapshot.stage_at(end_ns), *of], end_ns / 1e9)
    if family.samples:
        yield family


def _stage(snapshot: Snapshot, one: Value) -> str:
    """A stage's own series keep its name, and a window has the stage in which it ended.

    What is left of the machine is of the stage that goes on, but for what is counted on and on.
    """
    if "stage" in one.labels or one.main.how == "total":
        return one.labels.get("stage", "")
    return snapshot.stage_at(one.ts_ns) if one.window else snapshot.stage


def _run(snapshot: Snapshot) -> str:
    return str(snapshot.record["run_id"])


def _gauge(name: str, help_: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", help_, labels=("run", *labels))


def _family(main: Main, labels: tuple[str, ...]) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if main.how == "total" else GaugeMetricFamily
    return kind(f"{PREFIX}_{main.name}", main.help, labels=labels)

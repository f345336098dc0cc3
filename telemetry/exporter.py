"""A run that goes on as Prometheus reads it: ``stagescope_…`` with run and stage as labels.

Levels and rates are gauges; what a stage or a card counts itself is a counter, so that a scrape
that comes late loses nothing. A series that is not measured is not there; it is never 0.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from telemetry.watch import MAIN, Main, Snapshot

PREFIX = "stagescope"
QUIET_S = 30.0
"""Twice as long as Prometheus takes to ask again, as Debian sets it up."""


class LiveCollector(Collector):
    """What a scrape gets: the last snapshot that was shown to it.

    ``quiet_s``: after so long without another its series are told no more: the run has ended, or
    nobody samples it. What is known of the run itself stays.
    """

    def __init__(self, quiet_s: float) -> None:
        self._quiet_s = quiet_s
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._shown_s = 0.0

    def show(self, snapshot: Snapshot | None) -> None:
        with self._lock:
            self._snapshot, self._shown_s = snapshot, time.monotonic()

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            snapshot, age_s = self._snapshot, time.monotonic() - self._shown_s
        if snapshot is None:
            return []
        return [*_of_run(snapshot), *(_of_series(snapshot) if age_s <= self._quiet_s else ())]


class Endpoint:
    """The collector behind prometheus_client's own HTTP server; ``with`` starts and ends it."""

    def __init__(self, host: str, port: int, quiet_s: float) -> None:
        self._host, self._port = host, port
        self._collector = LiveCollector(quiet_s)

    @property
    def address(self) -> str:
        return f"http://{self._host}:{self._server.server_port}/metrics"

    def show(self, snapshot: Snapshot | None) -> None:
        """Let the next scrape have this; None: nothing, for nobody knows how it goes."""
        self._collector.show(snapshot)

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


def _of_run(snapshot: Snapshot) -> Iterator[Metric]:
    record = snapshot.record
    run = str(record["run_id"])
    info = GaugeMetricFamily(
        f"{PREFIX}_run_info",
        "1; the run's name, status and host are its labels",
        labels=("run", "name", "status", "host"),
    )
    info.add_metric(
        [run, str(record.get("name")), str(record["status"]), str(record.get("host"))], 1.0
    )
    yield info
    took = GaugeMetricFamily(
        f"{PREFIX}_run_duration_seconds", "Time of the run so far", labels=("run",)
    )
    took.add_metric([run], snapshot.seconds)
    yield took
    newest = GaugeMetricFamily(
        f"{PREFIX}_last_sample_timestamp_seconds",
        "When the newest sample was taken, by the run's clock",
        labels=("run",),
    )
    newest.add_metric([run], snapshot.now_ns / 1e9)
    yield newest
    stages = GaugeMetricFamily(
        f"{PREFIX}_stage_duration_seconds",
        "Time of the stage so far, or until its end",
        labels=("run", "stage", "status"),
    )
    for stage in record["stages"]:
        seconds = snapshot.stage_seconds(stage)
        if seconds is not None:
            stages.add_metric([run, stage["name"], stage["status"]], seconds)
    yield stages
    going = GaugeMetricFamily(
        f"{PREFIX}_stage_running",
        "1 while the stage goes on, 0 when it has ended",
        labels=("run", "stage"),
    )
    for stage in record["stages"]:
        going.add_metric([run, stage["name"]], float(stage["status"] == "running"))
    yield going


def _of_series(snapshot: Snapshot) -> Iterator[Metric]:
    run, stage = str(snapshot.record["run_id"]), snapshot.stage
    for main in MAIN:
        values = snapshot.of(main.name)
        if not values:
            continue
        own = [name for name in values[0].labels if name != "stage"]
        family = _family(main, ("run", "stage", *own))
        for one in values:
            # A stage's own series keep its name; the machine's are of the stage that goes on.
            of = one.labels.get("stage", "" if main.how == "total" else stage)
            family.add_metric([run, of, *(one.labels[name] for name in own)], one.value)
        yield family


def _family(main: Main, labels: tuple[str, ...]) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if main.how == "total" else GaugeMetricFamily
    return kind(f"{PREFIX}_{main.name}", main.help, labels=labels)

"""What tests ask of the simulated vCenter with plain pyVmomi, without our own session."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from pyVmomi import SoapStubAdapter, vim

from tests.vcsim_server import PASSWORD, USER, Vcsim

VM, HOST = "DC0_C0_RP0_VM0", "DC0_C0_H0"
WINDOW_S = 20


@contextmanager
def connected(server: Vcsim, user: str = USER, password: str = PASSWORD) -> Iterator[Any]:
    """A ServiceInstance of real pyVmomi, logged in; it checks the server's certificate."""
    stub = SoapStubAdapter(
        host=server.address,
        port=server.port,
        version="vim.version.v8_0_2_0",
        sslContext=ssl.create_default_context(cafile=server.ca_file),
        httpConnectionTimeout=10,
    )
    service: Any = vim.ServiceInstance("ServiceInstance", stub)
    try:
        service.RetrieveContent().sessionManager.Login(user, password)
        yield service
        service.content.sessionManager.Logout()
    finally:
        stub.DropConnections()


def find(service: Any, kind: type, name: str) -> Any:
    content = service.content
    view = content.viewManager.CreateContainerView(content.rootFolder, [kind], True)
    try:
        return next(one for one in view.view if one.name == name)
    finally:
        view.Destroy()


def done(task: Any) -> Any:
    """A task's result; raises what it failed with."""
    for _ in range(1000):
        info = task.info
        if info.state == "success":
            return info.result
        if info.state == "error":
            raise info.error
        time.sleep(0.01)
    raise TimeoutError(f"task {info.descriptionId} is {info.state}")


def counter_ids(service: Any) -> dict[str, int]:
    return {
        f"{one.groupInfo.key}.{one.nameInfo.key}.{one.rollupType}": one.key
        for one in service.content.perfManager.perfCounter
    }


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def grid(seconds: float) -> int:
    """The last window's end that was before."""
    return int(seconds) // WINDOW_S * WINDOW_S


def ask(
    service: Any, entity: Any, *metrics: tuple[str, str], start: float | None, **more: Any
) -> list[Any]:
    """QueryPerf of one entity by counter names."""
    ids = counter_ids(service)
    wanted = [
        vim.PerformanceManager.MetricId(counterId=ids[name], instance=instance)
        for name, instance in metrics
    ]
    spec = vim.PerformanceManager.QuerySpec(
        entity=entity,
        metricId=wanted,
        intervalId=WINDOW_S,
        startTime=None if start is None else at(start),
        **more,
    )
    found: list[Any] = service.content.perfManager.QueryPerf([spec])
    return found


def series(
    service: Any, entity: Any, counter: str, instance: str = "", *, start: float, **more: Any
) -> list[tuple[float, int]]:
    """Stamps and values of one counter."""
    (entity_metric,) = ask(service, entity, (counter, instance), start=start, **more)
    (one,) = entity_metric.value
    stamps = [info.timestamp.timestamp() for info in entity_metric.sampleInfo]
    return list(zip(stamps, one.value, strict=True))

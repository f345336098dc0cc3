"""What can be known about a run before it starts: problems, and what each stage will do."""

from __future__ import annotations

import os
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra.uri import USERINFO, masked
from pipeline.artifact import STORE, Artifact, Store
from pipeline.keys import stage_key
from pipeline.recipe import Recipe, RecipeError, read_recipe
from pipeline.stages import build_stages

_CONNECT_S = 3.0
_ROWS_PER_CUSTOMER_DAY = 1.92  # the generator's rate, see docs/workload.md
_BYTES_PER_ROW = 250  # on disk over all stages; the default recipe took 191


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """What a run would do with one stage: ``run``, ``reuse`` (and of which run) or ``decide``."""

    name: str
    action: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked recipe. With ``problems`` it cannot run; ``warnings`` are for people."""

    recipe: Recipe
    problems: list[str]
    warnings: list[str]
    stages: list[PlannedStage]

    def sentence(self) -> str:
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        return f"the recipe {self.recipe.name} cannot be run:\n{lines}"

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "problems": self.problems,
            "warnings": self.warnings,
            "stages": [asdict(stage) for stage in self.stages],
        }


def read_and_plan(source: str, overrides: Sequence[str], out: Path) -> Plan:
    """Read a recipe and plan it. Raises RecipeError that also says what its keys do not show."""
    try:
        recipe = read_recipe(source, overrides)
    except RecipeError as error:
        if error.rest is None:
            raise
        beside = _problems(error.rest, out, error.wrong)
        raise RecipeError(source, [*error.problems, *beside]) from error
    return make_plan(recipe, out)


def make_plan(recipe: Recipe, out: Path) -> Plan:
    """Check paths, days, devices and servers, and look up what is already there."""
    problems = list(_problems(recipe, out))
    stages = [] if problems else _stages(recipe, Store(out.resolve() / STORE))
    return Plan(recipe=recipe, problems=problems, warnings=list(_warnings(recipe)), stages=stages)


def data_path(recipe: Recipe) -> Path | None:
    """Where the recipe's raw data lie: its path, else what its environment variable says."""
    named = recipe.data.path or os.environ.get(recipe.data.path_env or "", "")
    return Path(named).expanduser().resolve() if named else None


def _problems(recipe: Recipe, out: Path, wrong: Set[str] = frozenset()) -> Iterator[str]:
    """What is wrong beside the keys; no word on ``wrong`` sections, whose values are not known."""
    if "data" not in wrong:
        yield from _data_problems(recipe)
    if not wrong & {"data", "protocol"}:
        yield from _protocol_problems(recipe)
    if not wrong & {"model", "features"}:
        yield from _device_problems(recipe)
    if not wrong & {"online", "cluster"}:
        yield from _server_problems(recipe)
    if "vcenter" not in wrong:
        yield from vcenter_problems(recipe)
    if "data" not in wrong:
        yield from _disk_problems(recipe, out)


def _data_problems(recipe: Recipe) -> Iterator[str]:
    data = recipe.data
    if data.source == "generator":
        for name, day in data.drift.model_dump().items():
            if name.endswith("_day") and day is not None and day >= data.days:
                yield f"data.drift.{name} = {day}: the data have days 0 to {data.days - 1}"
        return
    path = data_path(recipe)
    if path is None:
        way = f"export {data.path_env}=PATH, or " if data.path_env else ""
        yield f"data.path: not given; {way}--set data.path=PATH (source = {data.source!r})"
    elif not path.exists():
        yield f"data.path: {path} does not exist"
    elif path.is_dir() and not any(path.iterdir()):
        yield f"data.path: {path} is an empty folder"


def _protocol_problems(recipe: Recipe) -> Iterator[str]:
    protocol, data = recipe.protocol, recipe.data
    if list(protocol.folds) != sorted(set(protocol.folds)):
        yield "protocol.folds: write each fold once, the earliest first"
    end = data.start + timedelta(days=data.days)
    needed = protocol.train_days + protocol.delay_days + protocol.test_days
    for fold in protocol.folds:
        if fold < data.start:
            yield f"protocol.folds: {fold} lies before the data, which start on {data.start}"
        elif fold + timedelta(days=needed) > end:
            last = end - timedelta(days=needed)
            yield (
                f"protocol.folds: {fold} needs {needed} days of data and they end on "
                f"{end - timedelta(days=1)}; the last possible start is {last}"
            )


def _device_problems(recipe: Recipe) -> Iterator[str]:
    from infra.device import choose_device

    devices = {
        "model": recipe.model.device,
        "features": recipe.features.device,
        "serving": recipe.serving.device,
    }
    for key, device in devices.items():
        if device == "cuda":
            try:
                choose_device(device)
            except ValueError as error:
                yield f"{key}.device: {error}"


def _server_problems(recipe: Recipe) -> Iterator[str]:
    if recipe.online.store == "redis":
        name = recipe.online.redis_env
        address = os.environ.get(name, "")
        if not address:
            yield f"online.store = 'redis': export {name}=host:port"
        else:
            host, _, port = address.partition(",")[0].partition(":")
            if not _reachable(host, int(port) if port.isdigit() else 6379):
                yield f"online.store = 'redis': nothing answers at {host}:{port or 6379} ({name})"
    if recipe.cluster.scheduler:
        parts = urlsplit(recipe.cluster.scheduler)
        if not parts.hostname or not _reachable(parts.hostname, parts.port or 8786):
            yield f"cluster.scheduler: nothing answers at {recipe.cluster.scheduler}"


def vcenter_problems(recipe: Recipe) -> Iterator[str]:
    """What can be seen without asking the vCenter: one that is away must not keep a run back."""
    vcenter = recipe.vcenter
    try:
        settings = vcenter.settings()
    except ValueError as error:
        yield str(error)
        return
    if settings is None:
        return
    from infra.vsphere.secrets import read_credentials  # brings pyVmomi, so only where it is used

    try:
        read_credentials(settings, os.environ)
    except OSError as missing:
        yield str(missing)
    if vcenter.ca_file and not Path(vcenter.ca_file).is_file():
        yield f"vcenter.ca_file: {vcenter.ca_file} does not exist"


def _disk_problems(recipe: Recipe, out: Path) -> Iterator[str]:
    parent = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        what = "is not writable" if parent.is_dir() else "is a file"
        yield f"--out {out}: {parent} {what}; name another folder"
        return
    if recipe.data.source == "generator":
        rows = _ROWS_PER_CUSTOMER_DAY * recipe.data.customers * recipe.data.days
        free, needed = shutil.disk_usage(parent).free, rows * _BYTES_PER_ROW
        if free < needed:
            yield (
                f"--out {out}: about {needed / 2**30:.1f} GiB are needed for {rows:,.0f} rows and "
                f"{free / 2**30:.1f} GiB are free"
            )


def _warnings(recipe: Recipe) -> Iterator[str]:
    first, start = recipe.protocol.folds[0], recipe.data.start
    if first < start + timedelta(days=37):
        yield (
            f"the fold of {first} starts within 37 days of the first data ({start}): "
            "its longest windows are not full yet"
        )
    vcenter = recipe.vcenter
    if vcenter.host and not _reachable(vcenter.host, vcenter.port):
        yield (
            f"vcenter.host: nothing answers at {vcenter.host}:{vcenter.port}; the run goes on "
            "without the hypervisor's view (stagescope infra probe tells more)"
        )
    if vcenter.insecure:
        yield "vcenter.insecure: the certificate is not verified, and the report will say so"
    uri = recipe.tracking.uri
    if uri.startswith(("http://", "https://")) and not _answers(uri):
        yield f"tracking.uri: {masked(uri)} does not answer; send later with stagescope sync"


def _stages(recipe: Recipe, store: Store) -> list[PlannedStage]:
    planned = []
    artifacts: dict[str, Artifact] = {}
    known = True
    for stage in build_stages(recipe):
        if stage.name in {"validation", "serving"}:
            why = "depends on the champion in the registry when it is reached"
            planned.append(PlannedStage(name=stage.name, action="decide", why=why))
            continue
        manifest = None
        if known:
            inputs = {name: artifacts[name] for name in stage.inputs if name in artifacts}
            manifest = store.find(stage.name, stage_key(stage, inputs, recipe.seed))
        if manifest is None:
            why = "no outputs under this key yet" if known else "an input changes"
            planned.append(PlannedStage(name=stage.name, action="run", why=why))
            known = False
        else:
            why = f"measured in run {manifest.producer}"
            planned.append(PlannedStage(name=stage.name, action="reuse", why=why))
            artifacts |= manifest.artifacts
    return planned


def _reachable(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            return True
    except OSError:
        return False


def _answers(uri: str) -> bool:
    """Whether a server is there; it is asked without user and password, which it may want."""
    address = f"{USERINFO.sub('', uri).rstrip('/')}/health"
    try:
        with urllib.request.urlopen(address, timeout=_CONNECT_S):  # noqa: S310 - http(s) only
            return True
    except urllib.error.HTTPError as error:
        return error.code in {401, 403}
    except OSError:
        return False

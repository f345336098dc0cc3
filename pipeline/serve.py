"""``stagescope serve RUN``: the registered champion on the online features of a run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.artifact import STORE, Artifact
from pipeline.recipe import Recipe
from pipeline.tracking import Champion, Tracking, TrackingAway
from telemetry.runfolder import RunFolder

_A_TIME_NS = 1_527_811_200_000_000_000  # 2018-06-01, within the reference data


def serve_run(
    folder: RunFolder,
    out: Path,
    *,
    host: str,
    port: int,
    token_env: str | None,
    device: str | None,
    say: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises ValueError where there is nothing to serve.

    ``device``: as in the recipe (``serving.device``) where it is None.
    On SQLite it works on a copy of the run's online state, so that it can be served again; on
    Redis it goes on with the state that is there.
    """
    _must_be_free(host, port)
    recipe = _recipe(folder)
    from features.online_views import open_online_store
    from infra.device import choose_device
    from serving.app import ServerSettings
    from serving.server import online_settings, serve

    on = choose_device(device or recipe.serving.device)
    champion = _champion(recipe, out)
    state = _online_state(folder)
    address = _online_address(recipe)
    with tempfile.TemporaryDirectory(prefix="stagescope-serve-") as scratch:
        live = shutil.copytree(state, Path(scratch) / "online")
        say(f"{champion.name} version {champion.version}, loading on {on.name} ...")
        serve(
            champion.artifact.path,
            open_online_store(live, online_settings(address)),
            ServerSettings(host=host, port=port, token_env=token_env),
            device=on,
            ready=partial(_announce, say, host),
        )


def _recipe(folder: RunFolder) -> Recipe:
    """The recipe of a run. Raises ValueError for a run that is of somebody's own command."""
    told = folder.read().get("recipe") or {}
    if "protocol" not in told:
        raise ValueError(
            f"run {folder.path.name} is of a recorded command or of spans, and has no champion to "
            "serve: name a run of a recipe (stagescope runs list)"
        )
    return Recipe.model_validate(told)


def _must_be_free(host: str, port: int) -> None:
    """Say so before the model is loaded. Raises ValueError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ValueError(
            f"cannot serve at {host}:{port}: {error.strerror}; name another --host or --port "
            "(--port 0 takes a free one)"
        ) from error


def _online_address(recipe: Recipe) -> str:
    if recipe.online.store == "sqlite":
        return "sqlite"
    name = recipe.online.redis_env
    if not os.environ.get(name):
        raise ValueError(f"the run's online store is on Redis: export {name}=host:port")
    return os.environ[name]


def _champion(recipe: Recipe, out: Path) -> Champion:
    try:
        champion = Tracking(recipe.tracking, out.resolve() / STORE).champion()
    except TrackingAway as away:
        raise ValueError(f"the model registry does not answer: {away}") from away
    if champion is None:
        raise ValueError(
            f"no version of {recipe.tracking.registered_model} is champion: a run whose gate says "
            "yes makes one"
        )
    return champion


def _online_state(folder: RunFolder) -> Path:
    for stage in folder.read()["stages"]:
        online = (stage.get("outputs") or {}).get("online")
        if online is not None:
            return Artifact.from_json(online).path
    raise ValueError(
        f"run {folder.path.name} has no online features: its serving stage did not run"
    )


def _announce(say: Callable[[str], None], host: str, port: int) -> None:
    body = {
        "inputs": [
            {"name": "customer_id", "datatype": "INT64", "shape": [1], "data": [1]},
            {"name": "terminal_id", "datatype": "INT64", "shape": [1], "data": [1]},
            {"name": "amount", "datatype": "FP64", "shape": [1], "data": [12.5]},
            {"name": "event_time", "datatype": "INT64", "shape": [1], "data": [_A_TIME_NS]},
        ]
    }
    say(f"serving at http://{host}:{port}, Ctrl-C ends it; try it:")
    say(f"curl http://{host}:{port}/v2/models/card-fraud/infer -d '{json.dumps(body)}'")

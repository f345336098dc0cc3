"""The HTTP server: uvicorn around the app, on a socket of its own.

``python -m serving.server --model FOLDER --store FOLDER`` serves until SIGTERM or SIGINT, then
answers what waits and ends. Its first line on stdout is JSON with the address, once it is ready.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvicorn

from features.online import OnlineFeatures
from infra.device import REQUESTS, Device, choose_device
from serving.app import App, ServerSettings
from serving.memory import ServingMemory
from serving.predictor import Counting, Model, Predictor
from telemetry.handle import NullHandle


class Server(uvicorn.Server):
    """uvicorn that says when it is ready, and ends in peace on SIGTERM and SIGINT."""

    def __init__(
        self,
        app: App,
        settings: ServerSettings,
        ready: Callable[[int], None],
        warm_up: Callable[[], None],
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                proxy_headers=False,
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                backlog=settings.max_connections,
                limit_concurrency=settings.max_connections,
                timeout_graceful_shutdown=10,
            )
        )
        self._app, self._settings, self._ready = app, settings, ready
        self._warm_up = warm_up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.open()
        # By the thread that will answer: libraries of a GPU have their state by thread.
        await self._app.batcher.call(self._warm_up)
        await super().startup(sockets)
        assert sockets is not None
        self._ready(sockets[0].getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        await self._app.batcher.close()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, without raising the signal once more after the graceful end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        both = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self.handle_exit) for number in both}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def make_server(
    predictor: Predictor,
    settings: ServerSettings,
    *,
    ready: Callable[[int], None],
    counting: Counting,
    memory: ServingMemory | None = None,
) -> tuple[Server, socket.socket]:
    """A server and its bound socket; ``server.run([socket])`` warms up, blocks and serves.

    ``ready`` is told the port. Raises OSError with the address if it cannot be bound.
    """

    def warm_up() -> None:
        predictor.warm_up()
        if memory is not None:
            memory.predict(predictor.model, settings.largest_batch_rows)

    app = App(predictor, settings, counting, memory)
    server = Server(app, settings, ready, warm_up)
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        address = (settings.host, settings.port)
        listening = socket.create_server(address, family=family, backlog=settings.max_connections)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot serve at {settings.host}:{settings.port}: {error.strerror}"
        ) from error
    return server, listening


def serve(
    model_folder: Path,
    store: Any,
    settings: ServerSettings,
    *,
    ready: Callable[[int], None],
    device: Device,
    counting: Counting | None = None,
) -> None:
    """Serve the model on the features of the Feast ``store`` until SIGTERM or SIGINT.

    Takes this process over: one torch thread, and the garbage collector frozen after warm-up.
    """
    torch.set_num_threads(1)
    counting = counting or NullHandle()
    memory = ServingMemory(device)
    model = Model.load(model_folder, device=device.torch_name)
    predictor = Predictor(model, OnlineFeatures(store), counting)

    def frozen(port: int) -> None:
        gc.collect()
        gc.freeze()
        ready(port)

    server, listening = make_server(
        predictor, settings, ready=frozen, counting=counting, memory=memory
    )
    server.run([listening])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of ``python -m serving.server``."""
    parser = argparse.ArgumentParser(prog="python -m serving.server", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of model.pt2, model.json")
    parser.add_argument("--store", type=Path, required=True, help="folder of the feature store")
    parser.add_argument(
        "--online", default="sqlite", help="sqlite, or a Redis address such as 127.0.0.1:6379"
    )
    parser.add_argument(
        "--online-env", help="the environment variable that holds the address, with its password"
    )
    parser.add_argument(
        "--device", choices=REQUESTS, default="auto", help="where the model runs (default: auto)"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free one")
    parser.add_argument("--token-env", help="the environment variable that holds the token")
    parser.add_argument("--any-time", action="store_true", help="take payments of the future")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    from features.online_views import open_online_store

    settings = ServerSettings(host=given.host, port=given.port, token_env=given.token_env)
    if given.any_time:
        settings = replace(settings, max_ahead_s=None)
    try:
        device = choose_device(given.device)
        online = given.online if given.online_env is None else _value_of(given.online_env)
    except ValueError as error:
        parser.error(str(error))
    serve(
        given.model,
        open_online_store(given.store, online_settings(online)),
        settings,
        device=device,
        ready=partial(_announce, given.host),
    )


def _value_of(name: str) -> str:
    if not os.environ.get(name):
        raise ValueError(f"the environment variable {name} is not set: it holds the Redis address")
    return os.environ[name]


def online_settings(online: str) -> dict[str, str]:
    """Feast's settings of an online store from ``sqlite`` or a Redis address."""
    if online == "sqlite":
        return {"type": "sqlite"}
    return {"type": "redis", "connection_string": online}


def _announce(host: str, port: int) -> None:
    sys.stdout.write(json.dumps({"ready": True, "host": host, "port": port}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

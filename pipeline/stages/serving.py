"""Serving: the champion answers payments from online features, under a load that grows."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from infra.process import tied
from pipeline.artifact import Artifact
from pipeline.recipe import Recipe
from pipeline.stage import RecorderHandle, RunContext, StageResult

if TYPE_CHECKING:
    from serving.stats import Reading

_READY_S = 120
_ASKED_EVERY_S = 1.0
"""How often the server is asked where its time goes: as often as counters go to disk."""
_POLLED_EVERY_S = 0.05
_STOP_S = 30
STATE = ("event_time", "customer_id", "terminal_id", "amount", "is_fraud")


@dataclass(frozen=True, kw_only=True)
class ServingStage:
    """State from the days before ``from_day``; the payments of ``days`` days after are the load."""

    name: ClassVar[str] = "serving"
    inputs: ClassVar[tuple[str, ...]] = ("clean", "champion")
    outputs: ClassVar[tuple[str, ...]] = ("online", "load")
    code: ClassVar[tuple[str, ...]] = ("serving", "features", "pipeline/stages/serving.py")

    from_day: date
    days: int
    store: Literal["sqlite", "redis"]
    redis_env: str
    device: str
    rates: tuple[float, ...]
    seconds_per_rate: float
    connections: int
    p99_limit_ms: float

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> ServingStage:
        protocol, serving = recipe.protocol, recipe.serving
        before = timedelta(days=protocol.train_days + protocol.delay_days)
        return cls(
            from_day=protocol.folds[-1] + before,
            days=protocol.test_days,
            store=recipe.online.store,
            redis_env=recipe.online.redis_env,
            **serving.model_dump(),
        )

    def run(self, context: RunContext, inputs: Mapping[str, Artifact], out: Path) -> StageResult:
        """Fill the online store, start the server beside, put load on it rate by rate."""
        clean = inputs["clean"].path
        load = out / "load"
        load.mkdir()
        # The server writes what it answers. It goes on with the files that SQLite itself wrote, the
        # artifact is their copy: a copy's pages lie in the cache in large pieces, and each small
        # write into one would count as a write of the whole piece.
        live = context.work / "online"
        shutil.rmtree(live, ignore_errors=True)
        with context.recorder.phase("load_state"):
            rows = self._load_state(clean, live)
        shutil.copytree(live, out / "online")
        payments = self._payments(clean, load)
        with self._server(inputs["champion"].path, live) as port, context.recorder.phase("load"):
            server = _Server(port, context.recorder)
            result = self._put_load(server, load / "payments.parquet", context.seed)
        shutil.rmtree(live)
        (load / "load.json").write_text(json.dumps(result, indent=1))
        context.recorder.count("requests", sum(one["answered"] for one in result["results"]))
        context.recorder.count("paced_seconds", self.seconds_per_rate * len(result["results"]))
        return StageResult(
            rows={"online": rows, "load": payments},
            rows_in=inputs["clean"].rows,
            summary={
                "device": server.memory.get("device", self.device),
                "held_per_s": result["held_per_s"],
                "rates": {f"{one['offered_per_s']:g}": _figures(one) for one in result["results"]},
                "parts": _parts(result["results"]),
                "memory": server.memory,
                "version": inputs["champion"].producer,
            },
        )

    def _load_state(self, clean: Path, online: Path) -> int:
        from features.online import TERMINAL_HORIZON_NS, OnlineFeatures
        from features.online_views import open_online_store
        from serving.server import online_settings

        seen = timedelta(microseconds=TERMINAL_HORIZON_NS // 1000)
        past = _read(clean, self.from_day - seen, self.from_day, STATE)
        store = open_online_store(online, online_settings(self._online()))
        # All labels: nobody sends any to the server later, and a window of a terminal ends where
        # they have come. So what comes in the week after is answered as offline.
        OnlineFeatures(store).load_state(past)
        return int(past.num_rows)

    def _payments(self, clean: Path, load: Path) -> int:
        import pyarrow.parquet as pq

        table = _read(clean, self.from_day, self.from_day + timedelta(days=self.days))
        pq.write_table(table, load / "payments.parquet")
        return int(table.num_rows)

    def _online(self) -> str:
        return "sqlite" if self.store == "sqlite" else os.environ[self.redis_env]

    def _where(self) -> tuple[str, str]:
        """Where the online store is: a password of Redis is for nobody to read in /proc."""
        return (
            ("--online", "sqlite") if self.store == "sqlite" else ("--online-env", self.redis_env)
        )

    @contextlib.contextmanager
    def _server(self, model: Path, store: Path) -> Iterator[int]:
        """The server in a process of its own; yields its port."""
        command = tied(
            "serving.server",
            *("--model", str(model), "--store", str(store), *self._where()),
            *("--device", self.device),
        )
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(
                    f"the server ended with {process.wait(_READY_S)} before it was ready"
                )
            yield int(json.loads(line)["port"])
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _put_load(self, server: _Server, payments: Path, seed: int) -> dict[str, Any]:
        """The load generator in a process of its own: it must not wait for the server's turn."""
        command = tied(
            "serving.load",
            *("--port", str(server.port), "--payments", str(payments), "--seed", str(seed)),
            *("--rates", ",".join(f"{rate:g}" for rate in self.rates)),
            *("--seconds", f"{self.seconds_per_rate:g}"),
            *("--connections", str(self.connections)),
            *("--p99-limit-ms", f"{self.p99_limit_ms:g}"),
            "--parts",
        )
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen(command, stdout=out, text=True)
            try:
                while process.poll() is None:
                    time.sleep(_POLLED_EVERY_S)
                    server.ask_if_due()
            finally:
                process.kill()
                process.wait()
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, command)
            server.ask_if_due(after_s=0)
            server.count_memory()
            out.seek(0)
            return dict(json.load(out))


class _Server:
    """The server as the stage sees it: where its time goes is counted for the recorder."""

    def __init__(self, port: int, recorder: RecorderHandle) -> None:
        from serving.stats import read_stats

        self.port = port
        self.memory: dict[str, Any] = {"reason": "the server did not answer when it was asked"}
        self._recorder, self._read = recorder, read_stats
        self._asked_s = time.monotonic()
        self._before: Reading | None = None

    def ask_if_due(self, after_s: float = _ASKED_EVERY_S) -> None:
        """A question that gets no answer in time is left to the next one."""
        if time.monotonic() - self._asked_s >= after_s:
            with contextlib.suppress(OSError):
                self._ask()

    def _ask(self) -> None:
        """Count what grew since the last time. Raises OSError."""
        from serving.stats import PARTS

        self._asked_s = time.monotonic()
        now = self._read("127.0.0.1", self.port)
        before, self._before = self._before, now
        for part in PARTS:
            grown = now.seconds(part) - (before.seconds(part) if before else 0)
            self._recorder.count(f"{part}_seconds", grown)
        self._recorder.count("requests_served", now.requests - (before.requests if before else 0))
        for name, copied in now.copies.items():
            self._recorder.count(name, copied - (before.copies[name] if before else 0))
        self.memory = dict(now.memory)

    def count_memory(self) -> None:
        """Tell the recorder the server's memory, as it was when it was asked last."""
        for said in ("predicted", "predicted_scored", "measured"):
            peak_bytes = self.memory.get(said, {}).get("peak_bytes")
            if peak_bytes is not None:
                self._recorder.count(f"memory_{said}_bytes", peak_bytes)


def _parts(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the time went at the highest rate that was held, else at the lowest: as it was served,
    and beside it the mean that the client saw, with what it waited outside of the server."""
    held = [one for one in results if one["kept_up"]]
    one = held[-1] if held else results[0]
    if not one["parts"]:
        return {"reason": "the server was not heard of its parts: it answered nothing, or too late"}
    outside_ms = one["mean_ms"] - one["parts"]["server"]["mean_ms"]
    return {
        "offered_per_s": one["offered_per_s"],
        **one["parts"],
        "measured_mean_ms": one["mean_ms"],
        "outside_mean_ms": outside_ms,
    }


def _figures(one: Mapping[str, Any]) -> dict[str, Any]:
    wanted = ("held_per_s", "p50_ms", "p95_ms", "p99_ms", "max_ms", "kept_up", "reason")
    return {name: one[name] for name in wanted if one[name] is not None}


def _read(clean: Path, first: date, end: date, columns: Sequence[str] | None = None) -> Any:
    """The clean rows of the days from ``first`` until before ``end``; ``columns``: these alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.data.schema import day_files, day_of

    return pa.concat_tables(
        [
            pq.read_table(path, columns=None if columns is None else list(columns))
            for path in day_files(clean)
            if first <= day_of(path) < end
        ]
    )

"""Runs a recipe: its stages in order, each in its own process, with the recorder beside them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from infra.placement import find_placement
from infra.process import Child, adopt_orphans, children, terminated_as_interrupted
from pipeline.artifact import (
    STORE,
    Artifact,
    Manifest,
    Store,
    drop_from_page_cache,
    sync_filesystem,
)
from pipeline.child import no_space
from pipeline.hypervisor import fetch_windows
from pipeline.keys import package_versions, settings_of, stage_key
from pipeline.leftovers import kill_children, recover_dead_runs
from pipeline.recipe import Recipe, telemetry_settings
from pipeline.stage import Stage
from pipeline.stage_process import Interrupts, StageProcess
from pipeline.stages import build_stages, uses_cluster
from pipeline.succession import Succession
from pipeline.tracking import Tracking, TrackingAway
from telemetry.clock import Clock, measure_offset_ns
from telemetry.finish import finish
from telemetry.recording import Recording
from telemetry.runfolder import RunFolder, new_run_id, point_latest_at
from telemetry.session import new_record

_UNSENT = "tracking away, send later with stagescope sync"


class Listener(Protocol):
    """Told what happens, to show it to people."""

    def stage_started(self, name: str) -> None: ...
    def stage_progress(self, name: str, done: int, total: int) -> None: ...
    def stage_ended(self, record: Mapping[str, Any]) -> None: ...
    def note(self, sentence: str) -> None: ...


class StageFailed(Exception):  # noqa: N818 - it is an outcome
    """A stage ended without outputs; the sentence says why."""


@dataclass(kw_only=True)
class Run:
    """One run of a recipe in the making; ``execute`` does it all."""

    recipe: Recipe
    out: Path
    listener: Listener
    fresh: bool = False
    force: frozenset[str] = frozenset()

    folder: RunFolder = field(init=False)
    record: dict[str, Any] = field(init=False)
    clock: Clock = field(init=False)
    _artifacts: dict[str, Artifact] = field(init=False, default_factory=dict)
    _interrupts: Interrupts = field(init=False, default_factory=Interrupts)
    _succession: Succession = field(init=False)
    _before: set[Child] = field(init=False)
    """Processes that were there before the run: a server that a script started, say."""
    _held: list[int] = field(init=False, default_factory=list)
    """What stages left behind and nothing could end."""
    _serve: str | None = field(init=False, default=None)
    """Why there is nothing to serve, if so."""

    def execute(self) -> RunFolder:
        """Run all stages. KeyboardInterrupt comes after cleaning up; a failed stage is a status."""
        self._before = children()
        adopt_orphans()
        self.out.mkdir(parents=True, exist_ok=True)
        self.store = Store(self.out.resolve() / STORE)
        self.tracking = Tracking(self.recipe.tracking, self.store.root)
        self._succession = Succession(
            tracking=self.tracking, lost=self._lost, note=self.listener.note
        )
        recover_dead_runs(self.out, self.store, self.listener.note)
        run_id = new_run_id()
        with self.store.locked(f"run-{run_id}"):
            self._open(run_id)
            try:
                with self._interrupts:
                    status = self._record_stages()
            except KeyboardInterrupt:
                self._close("interrupted")
                raise
            except OSError as error:
                with contextlib.suppress(OSError):  # the record, too, may find no room
                    self._close("failed")
                raise _told(error, self.store.root) from error
            self._close(status)
        return self.folder

    def _open(self, run_id: str) -> None:
        self.clock = Clock(offset_ns=measure_offset_ns())
        self.folder = RunFolder(self.out.resolve() / run_id)
        self.folder.samples.mkdir(parents=True)
        (self.folder.path / "logs").mkdir()
        record = new_record(run_id, self.recipe.name, self.clock)
        record["environment"]["packages"] = package_versions()
        self.record = {
            **record,
            "placement": asdict(find_placement()),
            "recipe": self.recipe.model_dump(mode="json"),
            "seed": self.recipe.seed,
        }
        self.folder.write(self.record)
        point_latest_at(self.out, run_id)

    def _record_stages(self) -> str:
        settings = telemetry_settings(self.recipe)
        self._send()  # so that making the tracking store, the first time, falls into no figure
        # What others wrote before, and the runner's own last lines, belong to no stage.
        sync_filesystem(self.out)
        recording = Recording(self.folder.samples, self.clock, settings)
        try:
            with recording:
                recording.watch("runner", os.getpid())
                status = self._stages(recording)
                sync_filesystem(self.out)
                return status
        finally:
            self.record["losses"] += recording.losses

    def _stages(self, recording: Recording) -> str:
        stages = build_stages(self.recipe)
        for index, stage in enumerate(stages):
            try:
                self._stage(stage, recording)
            except StageFailed:
                for later in stages[index + 1 :]:
                    self._note_stage(later, status="skipped", reason=f"{stage.name} failed")
                return "failed"
        return "finished"

    def _stage(self, stage: Stage, recording: Recording) -> None:
        if stage.name == "validation":
            self._know(self._succession.fetch())
        if stage.name == "serving" and self._serve is not None:
            self._note_stage(stage, status="skipped", reason=self._serve)
            return
        inputs = {name: self._artifacts[name] for name in stage.inputs if name in self._artifacts}
        manifest = self._reused(stage, inputs)
        if manifest is None:
            manifest = self._measured(stage, inputs, recording)
        self._artifacts |= manifest.artifacts
        if stage.name == "validation":
            self._act_on_verdict(manifest)
        self._send()

    def _reused(self, stage: Stage, inputs: Mapping[str, Artifact]) -> Manifest | None:
        if self.fresh or stage.name in self.force:
            return None
        manifest = self.store.find(stage.name, self._key(stage, inputs, known_verdict=True))
        if manifest is not None:
            self._note_stage(
                stage,
                status="reused",
                reused_from=manifest.producer,
                inputs=_as_json(inputs),
                **_said(manifest),
            )
        return manifest

    def _key(
        self, stage: Stage, inputs: Mapping[str, Artifact], *, known_verdict: bool = False
    ) -> str:
        """The key of a stage's outputs.

        A candidate that has become the champion is not compared with itself when the same run is
        asked for again: its verdict stands under the key of the champion it was compared with.
        """
        champion, candidate = self._artifacts.get("champion"), self._artifacts.get("model")
        if known_verdict and stage.name == "validation" and champion and candidate:
            known = self._succession.champion
            compared = known.compared_with if known else ""
            if champion.digest == candidate.digest and compared:
                inputs = {name: one for name, one in inputs.items() if name != "champion"}
                if compared != "none":
                    earlier = Artifact.from_json({**champion.to_json(), "digest": compared})
                    inputs = {**inputs, "champion": earlier}
        return stage_key(stage, inputs, self.recipe.seed)

    def _measured(
        self, stage: Stage, inputs: Mapping[str, Artifact], recording: Recording
    ) -> Manifest:
        key = self._key(stage, inputs)
        with self.store.locked(f"{stage.name}-{key}"):
            # Another run in this folder may have made it while this one waited for the lock.
            again = None if self.fresh or stage.name in self.force else self._reused(stage, inputs)
            if again is not None:
                return again
            if self.recipe.telemetry.page_cache == "cold":
                for artifact in inputs.values():
                    drop_from_page_cache(artifact.path)
            return self._spawn(stage, key, inputs, recording)

    def _spawn(
        self, stage: Stage, key: str, inputs: Mapping[str, Artifact], recording: Recording
    ) -> Manifest:
        order = self.folder.path / "logs" / f"{stage.name}.json"
        order.write_text(
            json.dumps(
                {
                    "run_id": self.record["run_id"],
                    "stage": stage.name,
                    "key": key,
                    "recipe": self.record["recipe"],
                    "store": str(self.store.root),
                    "inputs": _as_json(inputs),
                    "samples": str(self.folder.samples),
                    "clock_offset_ns": self.clock.offset_ns,
                    "fresh": self.fresh or stage.name in self.force,
                }
            )
        )
        self.listener.stage_started(stage.name)
        child = StageProcess(
            stage.name,
            order,
            self.folder.path / "logs" / f"{stage.name}.log",
            without=[self.recipe.vcenter.password_env],
        )
        scheduler = self.recipe.cluster.scheduler if uses_cluster(stage) else ""
        if scheduler:
            self._lost(
                f"stage {stage.name}: its work goes to the workers of {scheduler}, which this run "
                "does not watch: the figures are those of the client alone"
            )
        start_ns = self.clock.now_ns()
        entry: dict[str, Any] = {}
        try:
            with self._interrupts.held():
                child.start()
                entry = self._note_stage(
                    stage,
                    tell=False,
                    status="running",
                    start_ns=start_ns,
                    pid=child.pid,
                    key=key,
                    inputs=_as_json(inputs),
                    scheduler=scheduler or None,
                )
            recording.watch(stage.name, child.pid, orphans=True)
            child.follow(partial(self.listener.stage_progress, stage.name), recording.revive)
        except BaseException:
            entry |= {"status": "interrupted", "reason": "the run was interrupted"}
            if child.started:
                with self._interrupts.held():  # a second Ctrl-C must not leave it half stopped
                    child.stop(self.listener.note)
            raise
        finally:
            entry["end_ns"] = self.clock.now_ns()
            if child.started:
                recording.unwatch(stage.name)
                entry |= child.reap()
            self._end_leftovers(child, recording)
            for loss in child.losses:
                self._lost(loss)
            self._save()
        manifest = child.manifest
        if manifest is None:
            entry |= {"status": "failed", "reason": child.why()}
            self._ended(entry)
            raise StageFailed(child.why())
        entry |= {"status": "finished", **_said(manifest)}
        self._ended(entry)
        return manifest

    def _end_leftovers(self, child: StageProcess, recording: Recording) -> None:
        held = [child.pid] if child.is_held else []
        held += kill_children([*recording.pids(), *self._held, *held], self._before)
        if held:
            self._held += held
            pids = ", ".join(map(str, held))
            self._lost(f"{child.name}: of its processes {pids} did not end: a driver or disk holds")

    def _know(self, champion: Artifact | None) -> None:
        if champion is not None:
            self._artifacts["champion"] = champion

    def _act_on_verdict(self, validation: Manifest) -> None:
        """Register and promote, or say why serving has nothing to serve. The runner alone does."""
        verdict = json.loads((validation.artifacts["verdict"].path / "verdict.json").read_text())
        self._serve = self._succession.decide(self.folder, self._artifacts["model"], verdict)
        self._know(self._succession.artifact)

    def _send(self) -> None:
        try:
            self.tracking.sync(self.folder)
        except TrackingAway as away:
            self._lost(f"{_UNSENT}: {away}")
        else:  # with all that was not sent before
            losses = self.record["losses"]
            self.record["losses"] = [one for one in losses if not one.startswith(_UNSENT)]

    def _lost(self, sentence: str) -> None:
        if sentence not in self.record["losses"]:
            self.record["losses"].append(sentence)
            self.listener.note(sentence)

    def _note_stage(self, stage: Stage, *, tell: bool = True, **fields: Any) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "name": stage.name,
            "start_ns": None,
            "end_ns": None,
            "reused_from": None,
            "rusage": None,
            "reason": None,
            "settings": json.loads(json.dumps(settings_of(stage), default=str)),
            **fields,
        }
        self.record["stages"].append(entry)
        self._save()
        if tell:
            self.listener.stage_ended(entry)
        return entry

    def _ended(self, entry: Mapping[str, Any]) -> None:
        self._save()
        self.listener.stage_ended(entry)

    def _save(self) -> None:
        self.folder.write(self.record)

    def _close(self, status: str) -> None:
        """End the record, derive profile and report from it, and send what is not sent yet."""
        self.store.drop_scratch(self.record["run_id"])
        self.record["status"] = status
        self.record["ended_ns"] = self.clock.now_ns()
        self.record["clock"]["offset_end_ns"] = measure_offset_ns()
        self._save()
        fetch_windows(self.folder, self.listener.note, wait=status != "interrupted")
        self.record = self.folder.read()
        finish(self.folder)
        told = list(self.record["losses"])
        if status != "interrupted":  # somebody waits for its end
            self.tracking.retry()
        try:
            with terminated_as_interrupted():
                self._send()
        except KeyboardInterrupt:
            self._lost(f"{_UNSENT}: the sending was interrupted")
        self._save()
        if self.record["losses"] != told:
            finish(self.folder)  # profile and report are of the record as it stands


def _as_json(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    return {name: one.to_json() for name, one in artifacts.items()}


def _said(manifest: Manifest) -> dict[str, Any]:
    """What the record keeps of what a stage said: sizes, rows and figures."""
    result = manifest.result
    return {
        "bytes_in": result.get("bytes_in"),
        "rows_in": result.get("rows_in"),
        "bytes_out": sum(one.bytes for one in manifest.artifacts.values()),
        "rows_out": sum(result.get("rows", {}).values()) or None,
        "outputs": _as_json(manifest.artifacts),
        "summary": result.get("summary", {}),
    }


def _told(error: OSError, store: Path) -> OSError:
    if error.errno == errno.ENOSPC:
        return OSError(errno.ENOSPC, no_space(store))
    return error

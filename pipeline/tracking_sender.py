"""One run on its way to MLflow, step by step; what was sent is noted beside the run."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from infra.uri import masked
from pipeline.artifact import Artifact
from pipeline.recipe import Tracking as TrackingSettings
from telemetry.runfolder import RunFolder, Span, write_atomically

RUN_TAG, STAGE_TAG = "stagescope.run_id", "stagescope.stage"
DIGEST_TAG = "stagescope.digest"
MODEL_FOLDER = "stagescope"
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "killed": "KILLED"}
_VALUE_LIMIT = 500  # characters of a parameter that every MLflow store takes
_BATCH = 1_000  # metrics in one log_batch request: MLflow's own limit
_OWN_FIGURES = 20  # of a stage's summary; the rest of its 60 figures are the profile's
_FIRST = re.compile(
    r"steps\..+|parts\.\w+[._]mean_ms|memory\.(predicted(_scored)?|measured)\.peak_bytes|held_per_s"
)
"""Of a stage's summary: where the time of steps and requests went, and memory by both accounts."""
_PARAM_BATCH = 100  # parameters in one log_batch request: MLflow's own limit


class State:
    """What of a run MLflow has: ids and the steps that are done.

    ``generation``: how often a profile that had changed was sent anew; ``names``: of each stage the
    profile's figures that were sent, in whichever generation.
    """

    def __init__(self, folder: RunFolder, fields: dict[str, Any]) -> None:
        self._path = folder.path / "tracking.json"
        empty: dict[str, Any] = {"runs": {}, "models": {}, "done": [], "digests": {}, "names": {}}
        self.fields = {**empty, "generation": 0, **fields}

    @classmethod
    def of(cls, folder: RunFolder) -> State:
        path = folder.path / "tracking.json"
        return cls(folder, json.loads(path.read_text()) if path.is_file() else {})

    def save(self) -> None:
        write_atomically(self._path, json.dumps(self.fields, indent=1))


class Sender:
    """Brings one run to MLflow, step by step."""

    def __init__(
        self,
        client: Any,
        settings: TrackingSettings,
        experiment_id: str,
        folder: RunFolder,
        state: State,
    ) -> None:
        self._client, self._settings, self._experiment_id = client, settings, experiment_id
        self._folder, self._state = folder, state
        self._record = folder.read()
        self._sent = 0

    def send(self) -> int:
        record = self._record
        parent = self._run("", record["started_ns"], {})
        self._once("params:", lambda: self._params(parent, _flat(record.get("recipe", {}))))
        ended = record["status"] != "running"
        for stage in record["stages"]:
            if stage["status"] != "running":
                self._stage(parent, stage)
        if ended and self._folder.profile_json.is_file():
            self._telemetry(parent)
        if ended:
            self._once("end:", lambda: self._end(parent, record["status"], record["ended_ns"]))
        self._state.save()
        return self._sent

    def logged_model(self, candidate: Artifact) -> str:
        """Id of the logged model with these files; logged now where an earlier run made them."""
        for stage in self._record["stages"]:
            model = (stage.get("outputs") or {}).get("model")
            if model is not None and model["digest"] == candidate.digest:
                run = self._state.fields["runs"][stage["name"]]
                self._once(f"model:{stage['name']}", partial(self._model, run, candidate))
        return str(self._state.fields["models"][candidate.digest])

    def _stage(self, parent: str, stage: Mapping[str, Any]) -> None:
        name = stage["name"]
        start_ns = stage["start_ns"] or self._record["started_ns"]
        tags = {"mlflow.parentRunId": parent, "stagescope.status": stage["status"]}
        if stage.get("reused_from"):
            tags["stagescope.reused_from"] = stage["reused_from"]
        if stage.get("reason"):
            tags["mlflow.note.content"] = stage["reason"]
        run = self._run(name, start_ns, tags)
        self._once(f"params:{name}", lambda: self._params(run, _flat(stage.get("settings", {}))))
        self._once(f"datasets:{name}", lambda: self._datasets(run, stage))
        self._once(f"summary:{name}", lambda: self._summary(run, stage))
        model = (stage.get("outputs") or {}).get("model")
        if model is not None and not stage.get("reused_from"):
            self._once(f"model:{name}", lambda: self._model(run, Artifact.from_json(model)))
        # Nobody saw a killed stage's end: the run's is the last that is known of it.
        was_killed = stage["status"] == "killed" and stage["start_ns"]
        end_ns = stage["end_ns"] or (self._record["ended_ns"] if was_killed else None) or start_ns
        status = "finished" if stage["status"] in {"reused", "skipped"} else stage["status"]
        self._once(f"end:{name}", lambda: self._end(run, status, end_ns))

    def _run(self, stage: str, start_ns: int, tags: Mapping[str, str]) -> str:
        """The MLflow run of this stage (the parent for ''): noted, else found by tag, else made."""
        if stage not in self._state.fields["runs"]:
            run_id = self._record["run_id"]
            query = f"tags.`{RUN_TAG}` = '{run_id}' and tags.`{STAGE_TAG}` = {quoted(stage or '-')}"
            found = self._client.search_runs([self._experiment_id], query, max_results=1)
            made = found or [
                self._client.create_run(
                    self._experiment_id,
                    start_time=start_ns // 1_000_000,
                    run_name=stage or run_id,
                    tags={RUN_TAG: run_id, STAGE_TAG: stage or "-", **tags},
                )
            ]
            self._state.fields["runs"][stage] = made[0].info.run_id
            if found and stage:
                self._go_on_after(stage, found[0])
            self._state.save()
        return str(self._state.fields["runs"][stage])

    def _go_on_after(self, stage: str, found: Any) -> None:
        """What was sent and is not noted (the note is lost, or was of another server) counts."""
        names = self._profile_names(stage, found)
        if names:
            self._state.fields["names"][stage] = names
            points = self._client.get_metric_history(found.info.run_id, names[0])
            after = 1 + max(point.step for point in points)
            self._state.fields["generation"] = max(self._state.fields["generation"], after)

    def _profile_names(self, stage: str, run: Any) -> list[str]:
        """The profile's figures of a stage that MLflow has, without its own and its series."""
        own = next(_own_figures(one) for one in self._record["stages"] if one["name"] == stage)
        there = run.data.metrics
        return [name for name in there if name not in own and not name.startswith("system/")]

    def _once(self, step: str, send: Callable[[], None]) -> None:
        if step not in self._state.fields["done"]:
            send()
            self._state.fields["done"].append(step)
            self._state.save()
            self._sent += 1

    def _params(self, run: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        entities = [Param(key, masked(value)[:_VALUE_LIMIT]) for key, value in params.items()]
        for start in range(0, len(entities), _PARAM_BATCH):
            self._client.log_batch(run, params=entities[start : start + _PARAM_BATCH])

    def _datasets(self, run: str, stage: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        outputs = (stage.get("outputs") or {}).values()
        inputs = (stage.get("inputs") or {}).values()
        datasets = [
            DatasetInput(
                dataset=Dataset(
                    name=one["name"],
                    digest=one["digest"][:32],
                    source_type="local",
                    source=json.dumps({"uri": one["path"]}),
                    profile=json.dumps({"rows": one["rows"], "bytes": one["bytes"]}),
                ),
                tags=[InputTag("mlflow.data.context", context)],
            )
            for context, ones in (("input", inputs), ("output", outputs))
            for one in ones
        ]
        if datasets:
            self._client.log_inputs(run, datasets)

    def _summary(self, run: str, stage: Mapping[str, Any]) -> None:
        self._metrics(run, _own_figures(stage), stage["end_ns"] or self._record["started_ns"])

    def _model(self, run: str, artifact: Artifact) -> None:
        """Log the model in MLflow's own format, with the served files beside it.

        One that an earlier send began, and was cut off before it was noted, is gone on with.
        """
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        logged = self._begun_model(run, artifact.digest)
        if logged is None or logged.status != LoggedModelStatus.READY:
            logged = self._logged(run, artifact, logged)
        outputs = self._client.get_run(run).outputs
        noted = outputs.model_outputs if outputs else ()
        if logged.model_id not in [one.model_id for one in noted]:
            self._client.log_outputs(run, [LoggedModelOutput(logged.model_id, 0)])
        self._state.fields["models"][artifact.digest] = logged.model_id

    def _begun_model(self, run: str, digest: str) -> Any:
        """The logged model of this run with these files, whole or not; None if there is none."""
        found = self._client.search_logged_models([self._experiment_id], f"source_run_id = '{run}'")
        return next((one for one in found if one.tags.get(DIGEST_TAG) == digest), None)

    def _logged(self, run: str, artifact: Artifact, begun: Any) -> Any:
        """The logged model with all its files: ``begun``, or one that is made now."""
        from pipeline.mlflow_model import save_mlflow_model

        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / "model"
            save_mlflow_model(artifact.path, local)
            shutil.copytree(artifact.path, local / MODEL_FOLDER)
            logged = begun or self._client.create_logged_model(
                self._experiment_id,
                name=self._settings.registered_model,
                source_run_id=run,
                tags={DIGEST_TAG: artifact.digest},
            )
            self._client.log_model_artifacts(logged.model_id, str(local))
        return self._client.finalize_logged_model(logged.model_id, "READY")

    def _telemetry(self, parent: str) -> None:
        from telemetry.hypervisor import joined
        from telemetry.profile import Profile
        from telemetry.series import SeriesIndex, stage_series
        from telemetry.summary import LIMIT, summary

        text = self._folder.profile_json.read_bytes()
        files = (
            self._folder.profile_json,
            self._folder.profile_parquet,
            self._folder.report_html,
        )
        spans = self._folder.spans()
        steps = {f"{what}:{span.stage}" for what in ("profile", "series") for span in spans}
        steps |= {f"artifact:{path.name}" for path in files}
        self._forget_if_changed("profile", text, steps)
        if steps <= set(self._state.fields["done"]):
            return
        profile = Profile.from_json(json.loads(text))
        samples, _ = joined(self._folder, self._record)
        index = SeriesIndex(samples)
        own = {stage["name"]: len(_own_figures(stage)) for stage in self._record["stages"]}
        for span in spans:
            run = self._state.fields["runs"][span.stage]
            most = LIMIT - own[span.stage]
            figures = partial(summary, profile, span.stage, sys.maxsize)
            self._once(f"profile:{span.stage}", partial(self._figures, run, span, figures, most))
            series = partial(stage_series, samples, span, index)
            self._once(f"series:{span.stage}", partial(self._series, run, span, series))
        for path in files:
            self._once(
                f"artifact:{path.name}", partial(self._client.log_artifact, parent, str(path))
            )

    def _forget_if_changed(self, what: str, text: bytes, steps: Set[str]) -> None:
        """What was made anew since it was sent (windows that came late) is sent anew.

        It is noted before the first request: a send that was broken off goes on in its generation.
        """
        fields, digest = self._state.fields, hashlib.sha256(text).hexdigest()
        before = fields["digests"].get(what)
        if before == digest:
            return
        if before is not None:
            fields["done"] = [one for one in fields["done"] if one not in steps]
            fields["generation"] += 1
        fields["digests"][what] = digest
        self._state.save()

    def _figures(
        self, run: str, span: Span, figures: Callable[[], Mapping[str, float]], most: int
    ) -> None:
        """The profile's figures of a stage: ``most`` names in all generations together.

        The names that MLflow has come first, for it forgets none; one that is absent now is NaN.
        """
        found = figures()
        told: dict[str, list[str]] = self._state.fields["names"]
        if span.stage not in told and self._state.fields["generation"]:  # noted by an older version
            told[span.stage] = self._profile_names(span.stage, self._client.get_run(run))
        names = told.setdefault(span.stage, [])
        names += [name for name in found if name not in names][: max(0, most - len(names))]
        self._state.save()  # before they are sent: a kill must not forget one
        now = {name: found.get(name, math.nan) for name in names}
        self._metrics(run, now, span.end_ns, self._state.fields["generation"])

    def _metrics(
        self, run: str, figures: Mapping[str, float], ts_ns: int, generation: int = 0
    ) -> None:
        """Log figures of a stage that ended at ``ts_ns``, with their generation as the step.

        MLflow shows the greatest (step, time, value): at one step a figure could only rise.
        """
        from mlflow.entities import Metric

        ts_ms = ts_ns // 1_000_000
        self._log(run, [Metric(name, value, ts_ms, generation) for name, value in figures.items()])

    def _series(
        self,
        run: str,
        span: Span,
        series: Callable[[], Mapping[str, tuple[list[int], list[float]]]],
    ) -> None:
        """Log the series of a stage; a point's step is its time, in ms since the stage's start."""
        from mlflow.entities import Metric

        start_ms = span.start_ns // 1_000_000
        entities: list[Any] = []
        for name, (times, values) in series().items():
            # MLflow's times are in ms: of two samples in the same one the later stands.
            points = dict(zip((ts_ns // 1_000_000 for ts_ns in times), values, strict=True))
            missing = _missing(points, self._there_ms(run, name)).items()
            entities += [Metric(name, value, ts_ms, ts_ms - start_ms) for ts_ms, value in missing]
        self._log(run, entities)

    def _there_ms(self, run: str, name: str) -> list[int]:
        """Times of a series' points in MLflow, ms UTC. A first send need not ask: its own points,
        sent again after a kill, are the same rows."""
        if not self._state.fields["generation"]:
            return []
        return [point.timestamp for point in self._client.get_metric_history(run, name)]

    def _log(self, run: str, entities: list[Any]) -> None:
        for start in range(0, len(entities), _BATCH):
            self._client.log_batch(run, metrics=entities[start : start + _BATCH])

    def _end(self, run: str, status: str, end_ns: int) -> None:
        self._client.set_terminated(run, _STATUS[status], end_ns // 1_000_000)


def _missing(points: Mapping[int, float], there_ms: Collection[int]) -> Mapping[int, float]:
    """Of a series' points (ms UTC: value, ascending) those to add to the ones that MLflow has.

    A point that is there stays. One that is nearer than half the usual distance to a point that
    the series no longer has is that point: windows move by some ms when clocks are compared anew.
    """
    from telemetry.series import MAX_POINTS
    from telemetry.thin import FEWEST, thin

    if not there_ms:
        return points
    have, moved = set(there_ms), sorted(set(there_ms) - points.keys())
    distances = [after - before for before, after in pairwise(points)]
    near_ms = median(distances) / 2 if distances else 0
    new = {
        ts_ms: value
        for ts_ms, value in points.items()
        if ts_ms not in have and not _is_near(ts_ms, moved, near_ms)
    }
    # MLflow deletes nothing, so what is new gets the room that is left; samples/ has every point.
    room = MAX_POINTS - len(there_ms)
    if room < FEWEST:
        return {}
    kept_ms, values = thin(list(new), list(new.values()), room)
    return dict(zip(kept_ms.tolist(), values.tolist(), strict=True))


def _is_near(ts_ms: int, others_ms: Sequence[int], near_ms: float) -> bool:
    """Whether one of these times, which ascend, is nearer than ``near_ms``."""
    at = bisect_left(others_ms, ts_ms)
    return any(abs(one - ts_ms) < near_ms for one in others_ms[max(0, at - 1) : at + 1])


def quoted(text: str) -> str:
    """A string of MLflow's search language, which knows no escape, but both kinds of quotes."""
    return f'"{text}"' if "'" in text else f"'{text}'"


def _own_figures(stage: Mapping[str, Any]) -> dict[str, float]:
    """What a stage says of itself in numbers: ``_OWN_FIGURES`` at most; run.json has all."""
    figures = {
        name: float(value)
        for name, value in _flat(stage.get("summary") or {}, text=False).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    ordered = sorted(figures, key=lambda name: _FIRST.fullmatch(name) is None)
    return {name: figures[name] for name in ordered[:_OWN_FIGURES]}


def _flat(value: Any, prefix: str = "", *, text: bool = True) -> dict[str, Any]:
    """Nested settings as one level, keys joined by dots; lists of values as text."""
    if isinstance(value, Mapping):
        return {
            name: leaf
            for key, one in value.items()
            for name, leaf in _flat(one, f"{prefix}.{key}" if prefix else key, text=text).items()
        }
    return {prefix: str(value) if text else value}

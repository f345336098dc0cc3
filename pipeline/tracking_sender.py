"""One run on its way to MLflow, step by step; what was sent is noted beside the run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.artifact import Artifact
from pipeline.recipe import Tracking as TrackingSettings
from telemetry.runfolder import RunFolder, write_atomically

RUN_TAG, STAGE_TAG = "stagescope.run_id", "stagescope.stage"
MODEL_FOLDER = "stagescope"
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "killed": "KILLED"}
_VALUE_LIMIT = 500  # characters of a parameter that every MLflow store takes
_BATCH = 1_000  # metrics in one log_batch request: MLflow's own limit
_OWN_FIGURES = 20  # of a stage's summary; the rest of its 60 figures are the profile's
_FIRST = re.compile(
    r"steps\..+|parts\.\w+[._]mean_ms|memory\.(predicted|measured)\.peak_bytes|held_per_s"
)
"""Of a stage's summary: where the time of steps and requests went, and memory by both accounts."""
_PARAM_BATCH = 100  # parameters in one log_batch request: MLflow's own limit


class State:
    """What of a run MLflow has: ids and the steps that are done."""

    def __init__(self, folder: RunFolder, fields: dict[str, Any]) -> None:
        self._path = folder.path / "tracking.json"
        self.fields = {"runs": {}, "models": {}, "done": [], "digests": {}, **fields}

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
        end_ns = stage["end_ns"] or start_ns
        status = "finished" if stage["status"] in {"reused", "skipped"} else stage["status"]
        self._once(f"end:{name}", lambda: self._end(run, status, end_ns))

    def _run(self, stage: str, start_ns: int, tags: Mapping[str, str]) -> str:
        """The MLflow run of this stage (the parent for ''): noted, else found by tag, else made."""
        if stage not in self._state.fields["runs"]:
            run_id = self._record["run_id"]
            query = (
                f"tags.`{RUN_TAG}` = '{run_id}' and tags.`{STAGE_TAG}` = {_quoted(stage or '-')}"
            )
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
            self._state.save()
        return str(self._state.fields["runs"][stage])

    def _once(self, step: str, send: Callable[[], None]) -> None:
        if step not in self._state.fields["done"]:
            send()
            self._state.fields["done"].append(step)
            self._state.save()
            self._sent += 1

    def _params(self, run: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        entities = [Param(key, value[:_VALUE_LIMIT]) for key, value in params.items()]
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
        """Log the model in MLflow's own format, with the served files beside it."""
        from mlflow.entities import LoggedModelOutput

        from pipeline.mlflow_model import save_mlflow_model

        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / "model"
            save_mlflow_model(artifact.path, local)
            shutil.copytree(artifact.path, local / MODEL_FOLDER)
            logged = self._client.create_logged_model(
                self._experiment_id, name=self._settings.registered_model, source_run_id=run
            )
            self._client.log_model_artifacts(logged.model_id, str(local))
        self._client.finalize_logged_model(logged.model_id, "READY")
        self._client.log_outputs(run, [LoggedModelOutput(logged.model_id, 0)])
        self._state.fields["models"][artifact.digest] = logged.model_id

    def _telemetry(self, parent: str) -> None:
        from telemetry.hypervisor import joined
        from telemetry.profile import SUMMARY_LIMIT, Profile, summary
        from telemetry.series import SeriesIndex, stage_series

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
            figures = partial(summary, profile, span.stage, SUMMARY_LIMIT - own[span.stage])
            self._once(f"profile:{span.stage}", partial(self._figures, run, figures, span.end_ns))
            series = partial(stage_series, samples, span, index)
            self._once(f"series:{span.stage}", partial(self._series, run, series))
        for path in files:
            self._once(
                f"artifact:{path.name}", partial(self._client.log_artifact, parent, str(path))
            )

    def _forget_if_changed(self, what: str, text: bytes, steps: Set[str]) -> None:
        """What was made anew since it was sent (windows that came late) is sent anew."""
        digest, told = hashlib.sha256(text).hexdigest(), self._state.fields["digests"]
        if told.get(what, digest) != digest:
            done = self._state.fields["done"]
            self._state.fields["done"] = [one for one in done if one not in steps]
        told[what] = digest

    def _figures(self, run: str, figures: Callable[[], Mapping[str, float]], ts_ns: int) -> None:
        self._metrics(run, figures(), ts_ns)

    def _metrics(self, run: str, figures: Mapping[str, float], ts_ns: int) -> None:
        from mlflow.entities import Metric

        entities = [Metric(name, value, ts_ns // 1_000_000, 0) for name, value in figures.items()]
        self._log(run, entities)

    def _series(
        self, run: str, series: Callable[[], Mapping[str, tuple[list[int], list[float]]]]
    ) -> None:
        from mlflow.entities import Metric

        # MLflow's times are in ms: of two samples in the same one the later stands.
        by_ms = {
            name: dict(zip((ts_ns // 1_000_000 for ts_ns in times), values, strict=True))
            for name, (times, values) in series().items()
        }
        entities = [
            Metric(name, value, ts_ms, step)
            for name, points in by_ms.items()
            for step, (ts_ms, value) in enumerate(points.items())
        ]
        self._log(run, entities)

    def _log(self, run: str, entities: list[Any]) -> None:
        for start in range(0, len(entities), _BATCH):
            self._client.log_batch(run, metrics=entities[start : start + _BATCH])

    def _end(self, run: str, status: str, end_ns: int) -> None:
        self._client.set_terminated(run, _STATUS[status], end_ns // 1_000_000)


def _quoted(text: str) -> str:
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

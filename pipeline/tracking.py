"""MLflow: the one place that speaks to it.

``sync`` brings MLflow to the state of a run's folder. It can be called at any time and again: what
was sent is noted in ``tracking.json`` beside the run, and runs are found by their tags before they
are made, so that a server that was away, or a kill between two calls, costs nothing and doubles
nothing. All times are the original ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.artifact import Artifact, digest_tree
from pipeline.recipe import Tracking as TrackingSettings
from telemetry.runfolder import RunFolder, write_atomically

RUN_TAG, STAGE_TAG = "stagescope.run_id", "stagescope.stage"
ALIAS = "champion"
_MODEL_FOLDER = "stagescope"
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "killed": "KILLED"}
_VALUE_LIMIT = 500  # characters of a parameter that every MLflow store takes
_BATCH = 1_000  # metrics in one log_batch request: MLflow's own limit
_OWN_FIGURES = 20  # of a stage's summary; the rest of its 60 figures are the profile's
_PARAM_BATCH = 100  # parameters in one log_batch request: MLflow's own limit


class TrackingAway(Exception):  # noqa: N818 - it is a state of the world, not a fault of ours
    """The tracking server or the registry did not answer, or refused; the sentence says which."""


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The registered model that holds the alias, and its files on this machine."""

    name: str
    version: str
    artifact: Artifact
    compared_with: str
    """Digest of the champion that it was compared with, ``none`` if it was the first."""


class Tracking:
    """A connection that is opened at the first use and given up for the run once it fails."""

    def __init__(self, settings: TrackingSettings, store: Path) -> None:
        self._settings = settings
        self._store = store
        self._client: Any = None
        self._away: str | None = None

    @property
    def uri(self) -> str:
        """Where MLflow is: the recipe's server, else an SQLite file beside the runs."""
        return self._settings.uri or f"sqlite:///{self._store / 'mlflow.db'}"

    def champion(self) -> Champion | None:
        """The model that holds the alias, downloaded; None if none does. Raises TrackingAway."""
        name = self._settings.registered_model
        with self._guard() as client:
            version = _or_none(lambda: client.get_model_version_by_alias(name, ALIAS))
            if version is None:
                return None
            return self._downloaded(client, version)

    def promote(
        self, folder: RunFolder, candidate: Artifact, *, compared_with: str | None
    ) -> Champion:
        """Register the candidate's logged model and move the alias to it. Raises TrackingAway."""
        name = self._settings.registered_model
        self.sync(folder)
        with self._guard() as client:
            model_id = self._sender(client, folder).logged_model(candidate)
            _or_none(lambda: client.create_registered_model(name))
            tags = {
                "stagescope.digest": candidate.digest,
                "stagescope.compared_with": compared_with or "none",
            }
            version = client.create_model_version(
                name, source=f"models:/{model_id}", model_id=model_id, tags=tags
            )
            client.set_registered_model_alias(name, ALIAS, version.version)
            return Champion(
                name=name,
                version=str(version.version),
                artifact=_as_champion(candidate, candidate.path),
                compared_with=compared_with or "none",
            )

    def sync(self, folder: RunFolder) -> int:
        """Send what MLflow does not have of this run yet; returns the steps sent.

        Raises TrackingAway; what was sent until then stays noted.
        """
        with self._guard() as client:
            return self._sender(client, folder).send()

    def retry(self) -> None:
        """Forget that the server was away."""
        self._away = None

    def _sender(self, client: Any, folder: RunFolder) -> _Sender:
        state = _State.of(folder)
        if state.fields.get("uri") not in (None, self.uri):
            state = _State(folder, {})  # another server: it has nothing of this run
        state.fields["uri"] = self.uri
        return _Sender(client, self._settings, self._experiment(client), folder, state)

    def _experiment(self, client: Any) -> str:
        name = self._settings.experiment
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        place = None if self._settings.uri else str(self._store / "mlartifacts")
        # The tag makes MLflow's page open the experiment as model training, with its charts.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        made = _or_none(lambda: client.create_experiment(name, artifact_location=place, tags=tags))
        return str(made or client.get_experiment_by_name(name).experiment_id)

    def _downloaded(self, client: Any, version: Any) -> Champion:
        from mlflow.artifacts import download_artifacts

        digest = version.tags.get("stagescope.digest", "")
        home = self._store / "champions" / (digest or f"version-{version.version}")
        if not home.is_dir():
            home.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
                logged = client.get_logged_model(version.source.rpartition("/")[2])
                place = f"{logged.artifact_location}/{_MODEL_FOLDER}"
                got = download_artifacts(place, dst_path=scratch)
                with contextlib.suppress(OSError):  # another run was faster
                    Path(got).rename(home)
        found, size = digest_tree(home)
        if digest and found != digest:
            shutil.rmtree(home)
            raise TrackingAway(
                f"version {version.version} of {version.name} came with digest {found[:12]}, "
                f"its tag says {digest[:12]}"
            )
        artifact = Artifact(
            name="champion",
            path=home,
            digest=found,
            rows=None,
            bytes=size,
            producer=f"{version.name}:{version.version}",
        )
        return Champion(
            name=version.name,
            version=str(version.version),
            artifact=artifact,
            compared_with=version.tags.get("stagescope.compared_with", ""),
        )

    @contextlib.contextmanager
    def _guard(self) -> Iterator[Any]:
        """Hand out the client; turn whatever goes wrong with MLflow into TrackingAway."""
        if self._away is not None:
            raise TrackingAway(self._away)
        try:
            yield self._open()
        except TrackingAway as away:
            self._away = str(away)
            raise
        except Exception as error:  # the one boundary: MLflow raises its own, SQL's and HTTP's
            self._away = f"{self.uri}: {type(error).__name__}: {str(error).splitlines()[0]}"
            raise TrackingAway(self._away) from error

    def _open(self) -> Any:
        if self._client is None:
            timeout = str(max(1, round(self._settings.timeout_s)))
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = timeout  # MLflow knows no other way
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
            import mlflow

            # Its own warnings about its own dependencies: nothing that a user could mend.
            warnings.filterwarnings("ignore", module=r"mlflow\.")
            warnings.filterwarnings("ignore", message=".*loader strategy is deprecated")
            logging.getLogger("alembic").setLevel(logging.WARNING)
            logging.getLogger("mlflow").setLevel(logging.ERROR)
            # The registry looks logged models up through the global address, not the client's.
            mlflow.set_tracking_uri(self.uri)
            mlflow.set_registry_uri(self.uri)
            self._client = mlflow.MlflowClient(self.uri, self.uri)
        return self._client


class _State:
    """What of a run MLflow has: ids and the steps that are done."""

    def __init__(self, folder: RunFolder, fields: dict[str, Any]) -> None:
        self._path = folder.path / "tracking.json"
        self.fields = {"runs": {}, "models": {}, "done": [], "digests": {}, **fields}

    @classmethod
    def of(cls, folder: RunFolder) -> _State:
        path = folder.path / "tracking.json"
        return cls(folder, json.loads(path.read_text()) if path.is_file() else {})

    def save(self) -> None:
        write_atomically(self._path, json.dumps(self.fields, indent=1))


class _Sender:
    """Brings one run to MLflow, step by step."""

    def __init__(
        self,
        client: Any,
        settings: TrackingSettings,
        experiment_id: str,
        folder: RunFolder,
        state: _State,
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
            shutil.copytree(artifact.path, local / _MODEL_FOLDER)
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
    """What a stage says of itself in numbers, the first ``_OWN_FIGURES``; run.json has all."""
    figures = {
        name: float(value)
        for name, value in _flat(stage.get("summary") or {}, text=False).items()
        if isinstance(value, int | float)
    }
    return dict(list(figures.items())[:_OWN_FIGURES])


def _flat(value: Any, prefix: str = "", *, text: bool = True) -> dict[str, Any]:
    """Nested settings as one level, keys joined by dots; lists of values as text."""
    if isinstance(value, Mapping):
        return {
            name: leaf
            for key, one in value.items()
            for name, leaf in _flat(one, f"{prefix}.{key}" if prefix else key, text=text).items()
        }
    return {prefix: str(value) if text else value}


def _or_none(call: Callable[[], Any]) -> Any:
    """The call's answer, or None where MLflow says that the thing is not there (or is already)."""
    from mlflow.exceptions import MlflowException

    known = {
        "RESOURCE_DOES_NOT_EXIST",
        "RESOURCE_ALREADY_EXISTS",
        "INVALID_PARAMETER_VALUE",
    }
    try:
        return call()
    except MlflowException as error:
        if error.error_code in known:
            return None
        raise


def _as_champion(artifact: Artifact, path: Path) -> Artifact:
    return Artifact.from_json({**artifact.to_json(), "name": "champion", "path": str(path)})

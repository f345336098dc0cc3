"""MLflow: the one place that connects to it; ``tracking_sender`` sends a run through it.

``sync`` brings MLflow to the state of a run's folder. It can be called at any time and again: what
was sent is noted in ``tracking.json`` beside the run, and runs, logged models and versions are
looked for before they are made, so that a server that was away, or a kill between two calls, costs
nothing and doubles nothing. All times are the original ones; what is made anew and sent again has
the next step. User and password of an address stay in memory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.uri import HIDDEN, masked, without_secrets
from pipeline.artifact import Artifact, digest_tree
from pipeline.recipe import Tracking as TrackingSettings
from pipeline.tracking_sender import DIGEST_TAG, MODEL_FOLDER, Sender, State, quoted
from telemetry.runfolder import RunFolder

ALIAS = "champion"
_LEAVING_OUT = threading.Lock()
_OF_MLFLOW = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
"""Variables that MLflow sets to the address that it is given, for processes below this one."""


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
    """A connection that is opened at the first use and, once it fails, given up until ``retry``."""

    def __init__(self, settings: TrackingSettings, store: Path) -> None:
        self._settings = settings
        self._store = store
        self._client: Any = None
        self._away: str | None = None

    @property
    def uri(self) -> str:
        """Where MLflow is: the recipe's server, else an SQLite file beside the runs.

        With user and password: of a masked address MLFLOW_TRACKING_URI has them. Raises
        TrackingAway where it does not.
        """
        told = self._settings.uri
        return _whole(told) if told else f"sqlite:///{self._store / 'mlflow.db'}"

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
        tags = {
            DIGEST_TAG: candidate.digest,
            "stagescope.compared_with": compared_with or "none",
        }
        self.sync(folder)
        with self._guard() as client:
            version = self._newest(client, tags)
            if version is None:
                model_id = self._sender(client, folder).logged_model(candidate)
                _or_none(lambda: client.create_registered_model(name))
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
        """Forget that the server was away: the next call asks it again, and waits for it again."""
        self._away = None

    def _sender(self, client: Any, folder: RunFolder) -> Sender:
        state, uri = State.of(folder), masked(self.uri)
        if masked(state.fields.get("uri") or uri) != uri:
            state = State(folder, {})  # another server: it has nothing of this run
        state.fields["uri"] = uri
        return Sender(client, self._settings, self._experiment(client), folder, state)

    def _newest(self, client: Any, tags: Mapping[str, str]) -> Any:
        """The newest version if it is of these files and this comparison, else None.

        Then a promotion was cut off before the alias moved.
        """
        query = f"name = {quoted(self._settings.registered_model)}"
        newest = ["version_number DESC"]
        found = client.search_model_versions(query, max_results=1, order_by=newest)
        return next((one for one in found if tags.items() <= one.tags.items()), None)

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

        digest = version.tags.get(DIGEST_TAG, "")
        home = self._store / "champions" / (digest or f"version-{version.version}")
        if not home.is_dir():
            home.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
                logged = client.get_logged_model(version.source.rpartition("/")[2])
                place = f"{logged.artifact_location}/{MODEL_FOLDER}"
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
        except KeyboardInterrupt:
            self._away = f"{masked(self.uri)}: the asking was interrupted"
            raise
        except Exception as error:  # the one boundary: MLflow raises its own, SQL's and HTTP's
            self._away = self._told(error)
            raise TrackingAway(self._away) from error

    def _told(self, error: Exception) -> str:
        """Where it was, what it is, and the first line of what it says, if it says anything."""
        uri = self.uri
        said = [uri, type(error).__name__, *str(error).strip().splitlines()[:1]]
        return without_secrets(": ".join(said), uri)

    def _open(self) -> Any:
        if self._client is None:
            uri = self.uri
            timeout = str(max(1, round(self._settings.timeout_s)))
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = timeout  # MLflow knows no other way
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # with the password
            os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
            import mlflow

            # Its own warnings about its own dependencies: nothing that a user could mend.
            warnings.filterwarnings("ignore", module=r"mlflow\.")
            warnings.filterwarnings("ignore", message=".*loader strategy is deprecated")
            logging.getLogger("alembic").setLevel(logging.WARNING)
            logging.getLogger("mlflow").setLevel(logging.ERROR)
            _leave_feast_out()
            # The registry looks logged models up through the global address, not the client's.
            with _kept(_OF_MLFLOW):  # a stage has no use for the password
                mlflow.set_tracking_uri(uri)
                mlflow.set_registry_uri(uri)
            self._client = mlflow.MlflowClient(uri, uri)
        return self._client


def _whole(told: str) -> str:
    """An address with user and password: of a masked one it is what MLFLOW_TRACKING_URI holds."""
    if HIDDEN not in told:
        return told
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if HIDDEN not in given and masked(given) == masked(told):
        return given
    holds = f"holds {masked(given)}" if given else "is not set"
    raise TrackingAway(
        f"{masked(told)}: its user and password are recorded nowhere, and MLFLOW_TRACKING_URI "
        f"{holds}: set it to this address with both"
    )


def _leave_feast_out() -> None:
    """Ask Feast for no headers of requests, as MLflow does with the first one to a server.

    Feast is a plugin of MLflow for its own requests to one. For ours it has no headers, and to ask
    it imports it, and torch. Where MLflow keeps its plugins elsewhere it takes longer, no more.
    """
    with contextlib.suppress(AttributeError, ImportError), _LEAVING_OUT:
        from mlflow.utils import plugins

        given = plugins.get_entry_points

        def but_for_feast(group: str) -> list[Any]:
            return [one for one in given(group) if one.module.partition(".")[0] != "feast"]

        plugins.get_entry_points = but_for_feast
        try:
            import mlflow.tracking.request_header.registry  # noqa: F401 - it asks once, here
        finally:
            plugins.get_entry_points = given


@contextlib.contextmanager
def _kept(names: Sequence[str]) -> Iterator[None]:
    """Let these environment variables be afterwards as they were."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


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

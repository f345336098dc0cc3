"""A recipe: one TOML file that says a whole run, read and checked in whole before anything starts.

Every section is a frozen model that refuses unknown keys. All that is wrong is reported at once.
Secrets never stand in a recipe: it names the environment variable that holds them.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_serializer

from infra import toml_model
from infra.toml_model import Count, Section, override, sentence
from infra.uri import masked
from infra.vsphere.settings import VCenterSettings
from telemetry.contention import Thresholds
from telemetry.settings import TelemetrySettings

EMBEDDED = ("default", "handbook", "vsphere")


class RecipeError(ValueError):
    """Everything that is wrong with a recipe; ``problems`` has one sentence for each.

    ``rest`` is what can still be checked: the recipe without its unknown keys, its ``wrong``
    sections as the embedded default has them.
    """

    def __init__(
        self,
        source: str,
        problems: Sequence[str],
        rest: Recipe | None = None,
        wrong: frozenset[str] = frozenset(),
    ) -> None:
        self.source = source
        self.problems = [masked(problem) for problem in problems]
        self.rest, self.wrong = rest, wrong
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"the recipe {source} cannot be run:\n{lines}")


Share = Annotated[float, Field(ge=0, le=1)]


class Drift(Section):
    """Changes of the generated world that begin at a day of the data (0 is the first)."""

    new_fraud_scenario_day: int | None = Field(
        None, ge=0, description="a fraud scenario begins that no earlier day shows"
    )
    amount_shift_day: int | None = Field(None, ge=0, description="amounts move by the factor")
    amount_shift_factor: float = Field(2.0, gt=0, description="factor of that move")
    radius_shift_day: int | None = Field(
        None, ge=0, description="the radius in which customers pay moves by the factor"
    )
    radius_shift_factor: float = Field(2.0, gt=0, description="factor of that move")
    label_delay_day: int | None = Field(
        None, ge=0, description="labels begin to come after a random time"
    )
    label_delay_mean_days: float = Field(7.0, gt=0, description="mean of that time, days")


class Data(Section):
    """Where the raw transactions come from."""

    source: Literal["generator", "published", "files"] = Field(
        "generator",
        description="generator: made here; published: the Handbook's table, one Parquet file or "
        "its folder of daily pickles; files: daily Parquet or CSV files with this project's names",
    )
    path: str = Field("", description="folder or file of raw data (published, files)")
    path_env: str = Field("", description="environment variable that holds the path instead")
    start: date = Field(date(2018, 4, 1), description="first day of the data")
    days: Count = Field(80, description="days of data")
    customers: Count = Field(5_000, description="customers of the generator")
    terminals: Count = Field(10_000, description="terminals of the generator")
    drift: Drift = Drift()


class Cluster(Section):
    """Dask workers of processing and features."""

    workers: int = Field(2, ge=0, description="worker processes; 0: in the stage's own process")
    threads_per_worker: Count = Field(1, description="threads of each")
    memory_limit_gib: float = Field(4.0, gt=0, description="memory of each, GiB")
    scheduler: str = Field("", description="address of an existing Dask scheduler to use instead")


class Features(Section):
    """How the feature tables are computed."""

    device: Literal["auto", "cpu", "cuda"] = Field("cpu", description="where the kernel runs")
    rows_per_partition: Count = Field(
        8_000_000, description="rows that one task holds; beyond it they are split on disk first"
    )


class Protocol(Section):
    """Which days train, wait for their labels and test."""

    train_days: Count = Field(7, description="days of training")
    delay_days: Count = Field(7, description="days until labels are known")
    test_days: Count = Field(7, description="days of testing")
    folds: tuple[date, ...] = Field(
        min_length=1,
        description="first training day of each fold, earliest first; the last one's model is the "
        "candidate that the gate decides on",
    )


class Model(Section):
    """The model and how it is trained."""

    name: Literal["mlp"] = Field("mlp", description="which model")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA with mixed precision where there is a GPU, else the CPU"
    )
    hidden: tuple[Count, ...] = Field((128, 64), description="widths of the hidden layers")
    members: Count = Field(4, description="nets whose mean is the answer")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of hidden values dropped")
    epochs: Count = Field(12, description="most epochs")
    batch_size: Count = Field(1024, description="rows in a step")
    learning_rate: float = Field(8e-3, gt=0, description="of a step")
    weight_decay: float = Field(0.1, ge=0, description="of a step")
    average_decay: float = Field(
        0.99, ge=0, lt=1, description="share of the weights' running average that a step keeps"
    )
    patience: Count = Field(3, description="epochs without gain on the hold-out that end it")
    holdout_share: float = Field(
        0.15, gt=0, lt=1, description="last share of the training rows, by time, kept for stopping"
    )
    refit: bool = Field(True, description="train on all rows afterwards, for the epochs found best")


class Validation(Section):
    """The gate: what a new model is compared by, and by how much it may be worse."""

    metric: Literal["auc_roc", "average_precision", "card_precision_100"] = Field(
        "average_precision", description="the metric that decides"
    )
    margin: float = Field(0.01, ge=0, description="by how much a candidate may be worse")
    floor: Share = Field(0.0, description="least value that a first champion needs")
    bootstrap_samples: int = Field(200, ge=0, description="resamples behind each interval")


class Online(Section):
    """The online feature store."""

    store: Literal["sqlite", "redis"] = Field("sqlite", description="which store")
    redis_env: str = Field(
        "STAGESCOPE_REDIS", description="environment variable with host:port[,password=...]"
    )


class Serving(Section):
    """The served model and the load that is put on it."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the model runs; auto: CUDA where there is a GPU, else the CPU"
    )
    rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (100, 200, 400, 800, 1600), description="offered requests per second, one after another"
    )
    seconds_per_rate: float = Field(4.0, gt=0, description="how long each rate is offered")
    connections: Count = Field(32, description="connections of the load generator")
    p99_limit_ms: float = Field(
        250.0, gt=0, description="a rate with a slower 99th percentile counts as not held"
    )


class Telemetry(Section):
    """What is sampled, how often, and when it is written."""

    guest_hz: float = Field(10.0, gt=0, le=100, description="samples of the guest per second")
    gpu_hz: float = Field(10.0, gt=0, le=100, description="samples of each GPU per second")
    flush_s: float = Field(1.0, gt=0, le=60, description="seconds of samples that a kill can cost")
    page_cache: Literal["warm", "cold"] = Field(
        "warm", description="cold: each stage's inputs are dropped from the page cache before it"
    )


NotNegative = Annotated[float, Field(ge=0)]
_FLAGGED = Thresholds()


class Contention(Section):
    """Figures of the hypervisor above which a stage is flagged (docs/profile.md: their sources)."""

    cpu_ready_percent: NotNegative = Field(
        _FLAGGED.cpu_ready_percent, description="ready time per vCPU, mean of a stage"
    )
    cpu_costop_percent: NotNegative = Field(
        _FLAGGED.cpu_costop_percent, description="co-stop per vCPU, mean of a stage"
    )
    cpu_latency_percent: NotNegative = Field(
        _FLAGGED.cpu_latency_percent, description="CPU latency, mean of a stage"
    )
    mem_ballooned_bytes: NotNegative = Field(
        _FLAGGED.mem_ballooned_bytes, description="ballooned memory, largest"
    )
    mem_swap_in_bytes_per_s: NotNegative = Field(
        _FLAGGED.mem_swap_in_bytes_per_s, description="swapping in, largest"
    )
    mem_latency_percent: NotNegative = Field(
        _FLAGGED.mem_latency_percent, description="memory latency, mean of a stage"
    )
    disk_latency_ms: NotNegative = Field(
        _FLAGGED.disk_latency_ms, description="disk latency, mean of a stage"
    )
    net_dropped_packets_per_s: NotNegative = Field(
        _FLAGGED.net_dropped_packets_per_s, description="dropped packets, largest"
    )


class VCenter(Section):
    """The vCenter whose counters are read beside the guest's; without a host there is none."""

    host: str = Field("", description="name or address of the vCenter; empty: see host_env")
    host_env: str = Field(
        "STAGESCOPE_VCENTER",
        description="environment variable that holds it instead; not set: no vCenter is asked",
    )
    port: int = Field(443, ge=1, le=65535, description="its TCP port")
    user_env: str = Field(
        "STAGESCOPE_VCENTER_USER", description="environment variable that holds the user"
    )
    password_env: str = Field(
        "STAGESCOPE_VCENTER_PASSWORD", description="environment variable that holds the password"
    )
    password_file: str = Field("", description="file that holds the password instead")
    ca_file: str = Field(
        "", description="PEM file of the CA that signed its certificate; empty: those of the system"
    )
    thumbprint: str = Field(
        "", description="SHA-256 of its certificate: this one is trusted, and no other"
    )
    insecure: bool = Field(
        False, description="no verification of its certificate; the report names it"
    )
    timeout_s: float = Field(30.0, gt=0, description="longest wait for one answer")
    query_period_s: float = Field(300.0, gt=0, description="between two query rounds of a run")
    backfill_deadline_s: float = Field(
        120.0, ge=0, description="how long the end of a run waits for late samples"
    )
    vm: str = Field("", description="UUID or name of this VM, where its DMI UUID does not tell")
    other_vms: tuple[str, ...] = Field((), description="further VMs of the run, by name or UUID")
    clock_limit_s: float = Field(
        2.0, gt=0, description="error of the clocks beyond which nothing is attributed to a stage"
    )
    contention: Contention = Contention()

    def settings(self) -> VCenterSettings | None:
        """As the rooms below take it; None without a host. Raises ValueError for what cannot be."""
        if not self.host:
            return None
        names = {one.name for one in fields(VCenterSettings)}
        return VCenterSettings(**self.model_dump(include=names))


class Tracking(Section):
    """Where MLflow is. User and password in its address are recorded as `***`."""

    uri: str = Field(
        "",
        description="tracking server; empty: embedded, on SQLite beside the runs; with `***` for "
        "user and password: MLFLOW_TRACKING_URI is the whole of it",
    )
    experiment: str = Field("stagescope", description="experiment of the runs")
    registered_model: str = Field("card-fraud", description="name in the model registry")
    timeout_s: float = Field(10.0, gt=0, description="longest wait for one answer")

    @field_serializer("uri")
    def _recorded(self, uri: str) -> str:
        """Whatever is written of a recipe has no password; a connection takes the field itself."""
        return masked(uri)


class Recipe(Section):
    """A whole run."""

    name: str = Field(min_length=1, description="name of the recipe")
    seed: int = Field(42, ge=0, description="seed of data, training and load")
    data: Data = Data()
    cluster: Cluster = Cluster()
    features: Features = Features()
    protocol: Protocol
    model: Model = Model()
    validation: Validation = Validation()
    online: Online = Online()
    serving: Serving = Serving()
    telemetry: Telemetry = Telemetry()
    vcenter: VCenter = VCenter()
    tracking: Tracking = Tracking()


def telemetry_settings(recipe: Recipe) -> TelemetrySettings:
    """How a run of this recipe is sampled, as the recorder takes it."""
    told = recipe.telemetry
    return TelemetrySettings(
        guest_hz=told.guest_hz,
        gpu_hz=told.gpu_hz,
        flush_s=told.flush_s,
        vcenter=recipe.vcenter.settings(),
    )


def read_recipe(source: str = "default", overrides: Sequence[str] = ()) -> Recipe:
    """Read an embedded recipe or a TOML file and apply ``a.b=value`` overrides.

    Raises RecipeError with everything that is wrong, unknown keys with the nearest known one.
    """
    text = _text(source)
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(source, [f"not valid TOML: {error}"]) from error
    problems = list(override(given, overrides))
    try:
        recipe = Recipe.model_validate(given)
    except ValidationError as error:
        errors = _errors(error)
        said = [*problems, *(sentence(one, Recipe) for one in errors)]
        raise RecipeError(source, said, *_rest(given, errors)) from error
    recipe = _with_vcenter(recipe)
    if problems:
        raise RecipeError(source, problems, recipe)
    return recipe


def _with_vcenter(recipe: Recipe) -> Recipe:
    """The recipe with the vCenter that the environment names, so that the run's record has it."""
    host = os.environ.get(recipe.vcenter.host_env, "").strip()
    if recipe.vcenter.host or not host:
        return recipe
    return recipe.model_copy(update={"vcenter": recipe.vcenter.model_copy(update={"host": host})})


def _text(source: str) -> str:
    if source in EMBEDDED:
        return (resources.files("pipeline") / "recipes" / f"{source}.toml").read_text()
    path = Path(source)
    if path.is_file():
        return path.read_text()
    near = difflib.get_close_matches(source, EMBEDDED, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise RecipeError(
        source, [f"no such file, and the embedded recipes are {', '.join(EMBEDDED)}{hint}"]
    )


def _errors(error: ValidationError) -> list[Mapping[str, Any]]:
    return list(error.errors(include_url=False))


def _rest(
    fields: dict[str, Any], errors: Sequence[Mapping[str, Any]]
) -> tuple[Recipe, frozenset[str]]:
    """What is left of a recipe without its errors, and the sections that had wrong values."""
    wrong = {str(error["loc"][0]) for error in errors if error["type"] != "extra_forbidden"}
    for error in errors:
        if error["type"] == "extra_forbidden":
            section = fields
            for key in error["loc"][:-1]:
                section = section[key]
            del section[error["loc"][-1]]
    right = {key: value for key, value in fields.items() if key not in wrong}
    return Recipe.model_validate({**tomllib.loads(_text("default")), **right}), frozenset(wrong)


def known_keys(location: Sequence[Any]) -> list[str]:
    """Keys that the section at this place of a recipe knows."""
    return toml_model.known_keys(Recipe, location)

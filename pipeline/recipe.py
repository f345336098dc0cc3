"""A recipe: one TOML file that says a whole run, read and checked in whole before anything starts.

Every section is a frozen model that refuses unknown keys. All that is wrong is reported at once.
Secrets never stand in a recipe: it names the environment variable that holds them.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

EMBEDDED = ("default", "handbook")


class RecipeError(ValueError):
    """Everything that is wrong with a recipe; ``problems`` has one sentence for each."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = list(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"the recipe {source} cannot be run:\n{lines}")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Drift(_Section):
    """Changes of the generated world that begin at a day of the data (0 is the first)."""

    new_fraud_scenario_day: int | None = Field(None, ge=0)
    amount_shift_day: int | None = Field(None, ge=0)
    amount_shift_factor: float = Field(2.0, gt=0)
    radius_shift_day: int | None = Field(None, ge=0)
    radius_shift_factor: float = Field(2.0, gt=0)
    label_delay_day: int | None = Field(None, ge=0)
    label_delay_mean_days: float = Field(7.0, gt=0)


class Data(_Section):
    """Where the raw transactions come from."""

    source: Literal["generator", "published", "files"] = "generator"
    path: str = Field("", description="folder or file of raw data (published, files)")
    path_env: str = Field("", description="environment variable that holds the path")
    start: date = date(2018, 4, 1)
    days: Count = 80
    customers: Count = 5_000
    terminals: Count = 10_000
    drift: Drift = Drift()


class Cluster(_Section):
    """Dask workers for processing and features."""

    workers: int = Field(2, ge=0, description="0: in the stage's own process")
    threads_per_worker: Count = 1
    memory_limit_gib: float = Field(4.0, gt=0, description="per worker")
    scheduler: str = Field("", description="address of an existing Dask scheduler")


class Features(_Section):
    """How the feature tables are computed."""

    device: Literal["auto", "cpu", "cuda"] = "cpu"
    rows_per_partition: Count = 8_000_000


class Protocol(_Section):
    """Which days train, wait for their labels and test; a fold per start, the last one is gated."""

    train_days: Count = 7
    delay_days: Count = 7
    test_days: Count = 7
    folds: tuple[date, ...] = Field(min_length=1, description="first training day of each fold")


class Model(_Section):
    """The model and how it is trained."""

    name: Literal["mlp"] = "mlp"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    hidden: tuple[Count, ...] = (64, 64)
    members: Count = 4
    dropout: float = Field(0.1, ge=0, lt=1)
    epochs: Count = 12
    batch_size: Count = 512
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    patience: Count = 4
    holdout_share: float = Field(0.2, gt=0, lt=1)


class Validation(_Section):
    """The gate: what a new model is compared by, and by how much it may be worse."""

    metric: Literal["auc_roc", "average_precision", "card_precision_100"] = "average_precision"
    margin: float = Field(0.01, ge=0)
    floor: Share = Field(0.0, description="least value that a first champion needs")
    bootstrap_samples: int = Field(200, ge=0)


class Online(_Section):
    """The online feature store."""

    store: Literal["sqlite", "redis"] = "sqlite"
    redis_env: str = Field(
        "STAGESCOPE_REDIS", description="environment variable with host:port[,password=...]"
    )


class Serving(_Section):
    """The served model and the load that is put on it."""

    rates: tuple[Annotated[float, Field(gt=0)], ...] = (100, 200, 400, 800, 1600)
    seconds_per_rate: float = Field(4.0, gt=0)
    connections: Count = 32
    p99_limit_ms: float = Field(250.0, gt=0)


class Telemetry(_Section):
    """What is sampled, how often, and when it is written."""

    guest_hz: float = Field(10.0, gt=0, le=100)
    gpu_hz: float = Field(10.0, gt=0, le=100)
    flush_s: float = Field(1.0, gt=0, le=60)
    page_cache: Literal["warm", "cold"] = Field(
        "warm", description="cold: each stage's inputs are dropped from the page cache before it"
    )


class Tracking(_Section):
    """Where MLflow is. Empty: embedded, on SQLite beside the runs."""

    uri: str = ""
    experiment: str = "stagescope"
    registered_model: str = "card-fraud"
    timeout_s: float = Field(10.0, gt=0)


class Recipe(_Section):
    """A whole run."""

    name: str = Field(min_length=1)
    seed: int = Field(42, ge=0)
    data: Data = Data()
    cluster: Cluster = Cluster()
    features: Features = Features()
    protocol: Protocol
    model: Model = Model()
    validation: Validation = Validation()
    online: Online = Online()
    serving: Serving = Serving()
    telemetry: Telemetry = Telemetry()
    tracking: Tracking = Tracking()


def read_recipe(source: str = "default", overrides: Sequence[str] = ()) -> Recipe:
    """Read an embedded recipe or a TOML file and apply ``a.b=value`` overrides.

    Raises RecipeError with everything that is wrong, unknown keys with the nearest known one.
    """
    text = _text(source)
    try:
        fields = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(source, [f"not valid TOML: {error}"]) from error
    problems = list(_override(fields, overrides))
    try:
        recipe = Recipe.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(source, [*problems, *map(_sentence, _errors(error))]) from error
    if problems:
        raise RecipeError(source, problems)
    return recipe


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


def _override(fields: dict[str, Any], overrides: Sequence[str]) -> Iterator[str]:
    """Write each ``a.b=value`` into ``fields``; yield a sentence for each that cannot be."""
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            yield f"--set {override!r}: write it as section.key=value, for example data.days=30"
            continue
        section = fields
        for key in keys[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                yield f"--set {override!r}: {key!r} is a value, not a section"
                break
        else:
            section[keys[-1]] = _value(text.strip())


def _value(text: str) -> Any:
    """A TOML value, or the bare text where it is none (so that names need no quotes)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _errors(error: ValidationError) -> list[Mapping[str, Any]]:
    return list(error.errors(include_url=False))


def _sentence(error: Mapping[str, Any]) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = known_keys(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{location}: unknown key; {hint}known here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{location}: missing"
    return f"{location} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def known_keys(location: Sequence[Any]) -> list[str]:
    """Keys that the section at this place of a recipe knows."""
    model: type[BaseModel] = Recipe
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next(one for one in candidates if isinstance(one, type))
    return sorted(model.model_fields)

"""Reference pages written from the code: ``python -m pipeline.reference`` renews them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pipeline.recipe import Recipe
from telemetry.collectors import metric_tables
from telemetry.samples import Metric

DOCS = Path(__file__).resolve().parent.parent / "docs"


def recipe_page() -> str:
    """Every key of a recipe with its type, default and meaning, as Markdown."""
    lines = [
        "# The recipe",
        "",
        "A recipe is one TOML file that says a whole run. `stagescope plan RECIPE` says everything",
        "that is wrong with it at once; `--set section.key=value` overrides one key.",
        "Secrets never stand in it: a key that ends in `_env` names an environment variable.",
        "`default`, `handbook` and `vsphere` come with StageScope (`pipeline/recipes/`).",
        "",
    ]
    return "\n".join([*lines, *_section(Recipe, "")]) + "\n"


def _section(model: type[BaseModel], path: str) -> Iterator[str]:
    yield f"## {'`[' + path + ']`' if path else 'At the top'}"
    yield ""
    yield (model.__doc__ or "").strip()
    yield ""
    nested = []
    rows = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            nested.append((f"{path}.{name}" if path else name, kind))
            continue
        default = field.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else f"`{_toml(default)}`"
        rows.append(f"| `{name}` | {shown} | {field.description} |")
    if rows:
        yield from ("| key | default | meaning |", "|---|---|---|", *rows, "")
    for place, kind in nested:
        yield from _section(kind, place)


def _toml(value: object) -> str:
    if value is None:
        return "off"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value)


def metrics_page() -> str:
    """Every metric with its unit, kind, meaning and source, as Markdown."""
    lines = [
        "# The metrics",
        "",
        "What each collector can deliver. What a machine does not have is in the profile with a",
        "reason in place of a number; `stagescope telemetry probe` says it for this machine.",
        "A *gauge* is a level, a *counter* only grows and is differenced, a *window* is a mean",
        "over a time that its source chose. docs/profile.md says how a stage's numbers come about.",
        "",
    ]
    for collector, metrics in metric_tables().items():
        lines += [f"## {collector}", "", "| metric | unit | kind | meaning | source |"]
        lines += ["|---|---|---|---|---|", *map(_metric, metrics), ""]
    return "\n".join(lines)


def _metric(metric: Metric) -> str:
    return (
        f"| `{metric.name}` | {metric.unit} | {metric.kind} | {metric.meaning} | {metric.source} |"
    )


PAGES = {"recipe.md": recipe_page, "metrics.md": metrics_page}


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())


if __name__ == "__main__":
    main()

"""The report's head: which run this is, on what machine, with what, and what was lost."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from telemetry.report_html import NOTHING, Html, exactly, flat, human, seconds, short, tag, when
from telemetry.report_hypervisor import header_facts, warnings
from telemetry.report_hypervisor_view import HypervisorView
from telemetry.report_series import RunSeries
from telemetry.report_timeline import is_end_known
from telemetry.report_view import UNENDED, StageView, status_mark


def header(run: Mapping[str, Any], extent: tuple[int, int], seen: HypervisorView) -> Html:
    status = str(run.get("status") or "unknown")
    shown = StageView(place=0, record={"status": status, "name": ""}, rows=())
    facts = [
        ("Run", run.get("run_id")),
        ("Started", when(run.get("started_ns"))),
        ("Took", _took(run, extent)),
        ("Recipe", _recipe_digest(run)),
        ("Lost on the way", "nothing" if not run.get("losses") else "see below"),
        ("Machine", _machine(run)),
        ("GPU", _gpus(run)),
        *(header_facts(seen) if seen.configured else [("Hypervisor", _hypervisor_word(run))]),
    ]
    return tag(
        "header",
        tag(
            "h1",
            run.get("name") or "Run without a name",
            " ",
            status_mark(shown),
            tag("small", "StageScope run report", class_="kicker"),
        ),
        tag(
            "dl", [tag("div", tag("dt", key), tag("dd", value or NOTHING)) for key, value in facts]
        ),
        warnings(seen),
        _losses(run),
    )


def _took(run: Mapping[str, Any], extent: tuple[int, int]) -> str | Html:
    long_ns = extent[1] - extent[0]
    long = seconds(long_ns / 1e9)
    if is_end_known(run):
        return long
    if long_ns <= 1:  # nothing is known but the start
        return f"not known: {UNENDED}"
    known = f"the last thing known is of {when(extent[1])}"
    return tag("span", f"at least {long}: {UNENDED}", title=known)


def _losses(run: Mapping[str, Any]) -> Html:
    losses = run.get("losses") or []
    if not losses:
        return Html("")
    return tag(
        "div",
        tag("strong", "Lost on the way:"),
        tag("ul", [tag("li", str(loss)) for loss in losses]),
        class_="losses",
        role="note",
    )


def about(run: Mapping[str, Any], extent: tuple[int, int]) -> list[tuple[str, Any]]:
    """What else identifies a run, for the section on its environment."""
    ended = when(run["ended_ns"]) if is_end_known(run) else f"not known: {UNENDED}"
    return [("Ended", ended), ("Versions", _versions(run)), ("Clock", _clock(run, extent))]


def _machine(run: Mapping[str, Any]) -> str:
    """Host, CPU and memory, as the record of the environment names them."""
    facts = dict(flat(run.get("environment") or {}))
    model = _first(facts, "cpu_model", "cpu.model", "cpu.name", "cpu.model_name", "processor")
    cores = _first(
        facts, "cpus", "cpu_count", "cpu.count", "cpu.cpus", "cpu.logical", "logical_cpus"
    )
    memory = _first(
        facts, "memory_total_bytes", "mem_total_bytes", "memory_bytes", "memory.total_bytes"
    )
    size = human(memory, "B") if isinstance(memory, (int, float)) else None
    parts = (run.get("host"), model, f"{cores} CPUs" if cores else None, size)
    return " · ".join(str(part) for part in parts if part)


def _first(facts: Mapping[str, Any], *names: str) -> Any:
    return next((facts[name] for name in names if facts.get(name) is not None), None)


def why_no_gpu(run: Mapping[str, Any], index: RunSeries) -> str:
    """Why there are no GPU figures, from the record of the environment or from the collector."""
    reason = ((run.get("environment") or {}).get("gpu") or {}).get("reason")
    reasons = [str(reason)] if reason else index.reasons("gpu.*")[:2]
    return "; ".join(reasons) if reasons else "no GPU collector told of a GPU in this run"


def _gpus(run: Mapping[str, Any]) -> str:
    environment = run.get("environment") or {}
    gpu = environment.get("gpu") or {}
    names = Counter(_gpu_name(one) for one in gpu.get("gpus") or environment.get("gpus") or ())
    told = [f"{count} × {name}" if count > 1 else name for name, count in names.items()]
    return "; ".join(told) if told else "not measured"


def _gpu_name(gpu: Any) -> str:
    if not isinstance(gpu, Mapping):
        return str(gpu)
    memory = gpu.get("memory_total_bytes")
    told = [gpu.get("name") or "GPU of unknown name"]
    if memory:
        told.append(human(memory, "B"))
    if gpu.get("virtualization"):
        told.append(str(gpu["virtualization"]))
    return ", ".join(told)


def _hypervisor_word(run: Mapping[str, Any]) -> str:
    """Its place in a word; why it was not measured is said once, below the overview."""
    told = hypervisor(run)
    return "not measured" if told.startswith("not measured") else told


def hypervisor(run: Mapping[str, Any]) -> str:
    placement = run.get("placement") or {}
    absent = placement.get("absent") or {}
    host, vm = placement.get("esxi_host"), placement.get("vm")
    system = placement.get("system")
    if host or vm:
        return ", ".join(str(one) for one in (system, host, vm) if one)
    why = absent.get("esxi_host") or absent.get("vm") or "nothing in this run asked for it"
    machine = f" (machine by {system})" if system else ""
    return f"not measured: {why}{machine}"


def _versions(run: Mapping[str, Any]) -> str:
    environment = run.get("environment") or {}
    packages = environment.get("packages") or environment.get("versions") or {}
    facts = dict(flat(environment))
    python = _first(facts, "python", "python_version", "versions.python")
    main = ("stagescope", "torch", "dask", "feast", "mlflow", "pyarrow")
    told = [f"Python {python}"] if python else []
    return ", ".join(told + [f"{name} {packages[name]}" for name in main if name in packages])


def _recipe_digest(run: Mapping[str, Any]) -> Any:
    recipe = run.get("recipe")
    if not recipe:
        return "none: recorded without a recipe"
    whole = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(whole.encode()).hexdigest()
    seed = f", seed {run['seed']}" if run.get("seed") is not None else ""
    return [tag("code", digest[:12], title=f"sha256 of the recipe as JSON: {digest}"), seed]


def _clock(run: Mapping[str, Any], extent: tuple[int, int]) -> Any:
    clock = run.get("clock") or {}
    start, end = clock.get("offset_start_ns"), clock.get("offset_end_ns")
    if start is None or end is None:
        return "drift not known: it was not read again at the end"
    drift_ms, long = (end - start) / 1e6, (extent[1] - extent[0]) / 1e9
    shown = f"moved {drift_ms:+.3f} ms from UTC in {seconds(long)}"
    return tag(
        "span", shown, title=f"{exactly(end - start)} ns, {short(1e3 * drift_ms / long)} ppm"
    )

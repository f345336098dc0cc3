"""A stage in a process of its own: started by the runner, tied to its life.

It reads what to do from a JSON file, tells its progress and its end as JSON lines on a pipe, and
publishes its outputs itself, so that syncing and digesting them belong to the stage's span.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.artifact import Artifact, Manifest, Store
from pipeline.recipe import Recipe
from pipeline.stage import RunContext
from pipeline.stages import build_stages, cluster_settings
from telemetry.clock import Clock
from telemetry.handle import Handle, not_all_written


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text())
    reports = int(sys.argv[2])
    os.set_inheritable(reports, False)
    report = _Report(reports)
    try:
        manifest = _run(order, report)
    except Exception as error:  # noqa: BLE001 - the one boundary: a failure becomes the runner's data
        traceback.print_exc()
        report.send(error=_sentence(error, order), kind=type(error).__name__)
        code = 1
    else:
        report.send(manifest=manifest.to_json())
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what is left is only the teardown of big libraries


class _Report:
    """JSON lines to the runner; a runner that went away is no reason to fail."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._last = -1

    def send(self, **fields: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._handle, json.dumps(fields).encode() + b"\n")

    def progress(self, done: int, total: int) -> None:
        """At most a hundred lines a piece of work."""
        percent = 100 * done // max(total, 1)
        if percent != self._last:
            self._last = percent
            self.send(done=done, total=total)


def _run(order: Mapping[str, Any], report: _Report) -> Manifest:
    recipe = Recipe.model_validate(order["recipe"])
    store = Store(Path(order["store"]))
    name, key, run_id = order["stage"], order["key"], order["run_id"]
    stage = next(one for one in build_stages(recipe) if one.name == name)
    inputs = {key: Artifact.from_json(one) for key, one in order["inputs"].items()}
    work = store.work(name, key)
    if order["fresh"]:
        shutil.rmtree(work)
        work.mkdir()
    made = store.scratch(run_id, name)
    clock = Clock(offset_ns=order["clock_offset_ns"])
    handle = Handle(Path(order["samples"]), name, clock)
    context = RunContext(
        run_id=run_id,
        seed=recipe.seed,
        device=recipe.model.device,
        cluster=cluster_settings(recipe),
        recorder=handle,
        progress=report.progress,
        work=work,
    )
    try:
        with handle.phase("run"):
            result = stage.run(context, inputs, made)
        result = replace(
            result,
            bytes_in=result.bytes_in
            if result.bytes_in is not None
            else sum(one.bytes for one in inputs.values()),
        )
        missing = [output for output in stage.outputs if not (made / output).is_dir()]
        assert not missing, f"stage {name} left no {missing}"
        with handle.phase("publish"):
            return store.publish(stage=name, key=key, run_id=run_id, made=made, result=vars(result))
    finally:
        try:
            handle.close()
        except OSError as error:
            report.send(loss=not_all_written(name, error))


def _sentence(error: BaseException, order: Mapping[str, Any]) -> str:
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return no_space(Path(order["store"]))
    return f"{type(error).__name__}: {error}"


def no_space(store: Path) -> str:
    """What to say when the disk is full."""
    free = shutil.disk_usage(store).free / 2**20
    return (
        f"no space left on the disk of {store} ({free:.0f} MiB free): free some "
        "(stagescope runs prune), or give another folder with --out; what is finished is kept"
    )


if __name__ == "__main__":
    main()

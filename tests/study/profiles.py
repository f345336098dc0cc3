"""The published profiles of docs/profiles: made by the commands that anybody would use.

``python -m tests.study.profiles default``: the default recipe on this machine, which should have
nothing else to do. ``python -m tests.study.profiles gpu``: the small recipe of the study of
reproduce on a GPU; without one on the C library of the tests, and then the name says so.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from infra import nvml
from telemetry.runfolder import list_runs
from tests.nvml.build import build, environment

PROFILES = Path(__file__).resolve().parents[2] / "docs" / "profiles"
SMALL = Path(__file__).with_name("reproduce.toml")
SCENARIO = (
    "gpus=1;power_w=160;power_swing_w=60;power_period_s=4;temperature=52;util_rests=1;"
    "process_util=self:30:10"
)
NO_GPU = "no GPU: NVML is a library of the tests, its values are made up"


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS)
    told.add_argument("which", choices=("default", "gpu"))
    told.add_argument("--runs", type=int, default=5)
    asked = told.parse_args()
    if asked.which == "default":
        make("default", "default, 2 CPUs", "default", asked.runs, os.environ)
        return
    if nvml.start() is None:
        nvml.stop()
        make(str(SMALL), "gpu", "gpu", asked.runs, os.environ)
        return
    with tempfile.TemporaryDirectory() as folder:
        made_up = environment(build(Path(folder)), SCENARIO)
        make(str(SMALL), NO_GPU, "no-gpu", asked.runs, made_up)


def make(recipe: str, name: str, file: str, runs: int, env: Mapping[str, str]) -> None:
    """Runs in a folder of their own, the first to warm up, and the profile of the others."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".study-") as out:
        for number in range(runs + 1):
            stagescope(env, "run", recipe, "--fresh", "--out", out)
            print(f"{name}: run {number} of {runs}", flush=True)
        counted = [str(folder.path) for folder in list_runs(Path(out))[-runs:]]
        target = PROFILES / f"{file}.profile.json"
        stagescope(env, "profile", "publish", *counted, "--name", name, "--file", str(target))


def stagescope(env: Mapping[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    subprocess.run(command, check=True, env=dict(env))


if __name__ == "__main__":
    main()

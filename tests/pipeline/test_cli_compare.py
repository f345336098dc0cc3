"""Publish, compare, reproduce: on real runs of ``record``, as it is and made slower."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from pipeline.cli_compare import COMMANDS
from pipeline.cli_options import SentenceGroup
from pipeline.cli_profile import profile
from tests.telemetry.reference_runs import RECIPE, made_run

WORK = """
import os, time
time.sleep(0.8 * float(os.environ.get("STAGESCOPE_TEST_FACTOR", "1")))
"""
RUNS = 5
SET = "telemetry.flush_s=0.2"


@click.group(cls=SentenceGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The commands of this file's tests."""


for command in (profile, *COMMANDS):
    main.add_command(command)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def record(folder: Path, script: str, runs: int, *prefix: str, **env: str) -> str:
    """Record a script so many times; the runs joined by commas, as ``compare`` takes them."""
    out = folder / "runs"
    before = set(out.glob("2*"))
    arguments = ["record", "--name", "work", "--out", str(out), "--set", SET]
    for _ in range(runs):
        subprocess.run(
            [*prefix, sys.executable, "-m", "pipeline.cli", *arguments, "--", "python3", script],
            check=True,
            capture_output=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **env},
        )
    return ",".join(sorted(str(one) for one in set(out.glob("2*")) - before))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a quiet piece of work and five runs of it."""
    made = tmp_path_factory.mktemp("compare")
    (made / "work.py").write_text(WORK)
    (made / "as_it_is").write_text(record(made, "work.py", RUNS))
    before = Path.cwd()
    os.chdir(made)
    yield made
    os.chdir(before)


@pytest.fixture
def published(folder: Path) -> Path:
    runs = (folder / "as_it_is").read_text().split(",")
    done = call("profile", "publish", *runs, "--name", "quiet", "--file", "quiet.json")
    assert done.exit_code == 0, done.output
    return folder / "quiet.json"


def test_an_injected_slowdown_is_found_on_real_runs(folder: Path, published: Path) -> None:
    """Twice as slow, because a shared machine's runs vary: the study shows 5 % on quiet ones."""
    slow = record(folder, "work.py", RUNS, STAGESCOPE_TEST_FACTOR="2")
    done = call("compare", str(published), slow, "--json", "--html", "page.html")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["outcome"] == "differs"
    (time,) = found["times"]
    assert time["verdict"] == "slower"
    assert time["change_low"] > 0.3
    assert "slower" in (folder / "page.html").read_text()


def test_reproduce_runs_what_was_recorded_and_ends_with_its_outcome(
    folder: Path, published: Path
) -> None:
    command = [sys.executable, "-c", "from tests.pipeline.test_cli_compare import main; main()"]
    outcomes = {}
    for factor in ("1", "2"):
        done = subprocess.run(
            [*command, "reproduce", str(published), "--out", f"again{factor}"],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "STAGESCOPE_TEST_FACTOR": factor,
            },
        )
        (told,) = re.findall(r"^outcome: (same|differs|could not tell)", done.stdout, re.M)
        # What unchanged work comes to is the machine's: that it is told rightly is ours.
        assert done.returncode == {"same": 0, "differs": 1, "could not tell": 2}[told], done.stdout
        outcomes[factor] = told
    assert outcomes["2"] == "differs"


def made(out: Path, runs: int = 3, **more: object) -> list[str]:
    return [str(made_run(out, i, {"training": 5 + i / 100}, **more).path) for i in range(runs)]


def test_profile_of_a_run_is_printed_as_before(tmp_path: Path) -> None:
    (run,) = made(tmp_path, 1)
    for arguments in (("profile", run), ("profile", "show", run), ("profile", "--json", run)):
        done = call(*arguments)
        assert done.exit_code == 0, done.output
        assert "training" in done.stdout
    assert "publish" in call("profile", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("profile", "publish", "{0}", "{1}", "--name", "x"), "at least 3"),
        (("profile", "publish", "{0}", "{1}", "{2}", "--name", "a/b"), "must not hold a slash"),
        (("compare", "{0}", "{other}"), "say nothing of each other: seed"),
        (("compare", "{0}", "{0}/profile.json"), "name the run's folder instead"),
        (("compare", "{0}", "nothing"), "no run 'nothing'"),
        (("reproduce", "{0}/none.json"), "none.json"),
        (("reproduce", "{file}", "--set", "seed=3"), "reproduced as it is"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    runs = made(tmp_path / "a")
    (other,) = made(tmp_path / "b", 1, recipe={**RECIPE, "seed": 8})
    file = tmp_path / "x.json"
    assert call("profile", "publish", *runs, "--name", "x", "--file", str(file)).exit_code == 0
    done = call(*(one.format(*runs, other=other, file=file) for one in arguments))
    assert done.exit_code == 2, done.output
    assert sentence in done.output
    assert "Traceback" not in done.output


def test_every_command_has_an_example() -> None:
    for one in (profile, *profile.commands.values(), *COMMANDS):
        assert (one.epilog or "").startswith("Example: stagescope ")

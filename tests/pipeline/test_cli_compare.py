"""Publish, compare, reproduce: on real runs of ``record``, as it is and made slower."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.cli_compare import SCHEMA as SAID
from pipeline.reproduce import foreign, published_defaults, ready
from telemetry.compare import SCHEMA
from telemetry.publish import reference_of
from telemetry.published_recipe import is_same_recipe
from telemetry.reference import read_reference
from tests.telemetry.reference_runs import RECIPE, made_run

WORK = """
import os, time
time.sleep(0.8 * float(os.environ.get("STAGESCOPE_TEST_FACTOR", "1")))
"""
PROFILES = sorted((Path(__file__).parents[2] / "docs/profiles").glob("*.profile.json"))
MAIN = [sys.executable, "-m", "pipeline.cli"]
RUNS = 5
SET = "telemetry.flush_s=0.2"


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
    assert "note: all made in one sitting" in done.stdout
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
    outcomes = {}
    for factor in ("1", "2"):
        done = subprocess.run(
            [*MAIN, "reproduce", str(published), "--out", f"again{factor}"],
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


def again(
    profile: Path, out: Path, *more: str, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """``reproduce`` in a process of its own, as its signals and exit codes are."""
    return subprocess.run(
        [*MAIN, "reproduce", str(profile), "--out", str(out), *more],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=profile.parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_what_is_there_already_is_gone_on_with(published: Path, tmp_path: Path) -> None:
    first = again(published, tmp_path, "--runs", "1", "--warm-up", "0")
    assert "command of work, run in this folder: python3 work.py" in first.stderr
    (have,) = (path.name for path in tmp_path.glob("2*"))
    done = again(published, tmp_path, "--runs", "2", "--have", have, "--json")
    assert "1 run, 1 there already" in done.stderr
    assert "warm-up" not in done.stderr
    assert len(list(tmp_path.glob("2*"))) == 2
    assert json.loads(done.stdout)["b"]["runs"] == 2


def test_runs_that_fail_are_no_difference_and_what_was_done_is_told(
    folder: Path, tmp_path: Path
) -> None:
    """The third run fails: 2, with how to go on, and JSON for who asked for it."""
    (tmp_path / "work.py").write_text(WORK)
    runs = [str(one) for one in (folder / "as_it_is").read_text().split(",")]
    file = tmp_path / "quiet.json"
    assert call("profile", "publish", *runs, "--name", "q", "--file", str(file)).exit_code == 0
    (tmp_path / "work.py").write_text(
        "import pathlib, sys\n"
        "seen = pathlib.Path('seen')\n"
        "seen.write_text(seen.read_text() + 'x' if seen.exists() else 'x')\n"
        "sys.exit(3 if len(seen.read_text()) > 2 else 0)\n"
    )
    done = again(file, tmp_path / "runs", "--warm-up", "0", "--json")
    assert done.returncode == 2, done.stderr
    said = json.loads(done.stdout)
    assert said["outcome"] == "unsure"
    assert "work failed, exit code 3" in said["open"][0]
    kept = re.search(r"2 runs are whole and kept\. Go on with them: .* --have (\S+)", done.stderr)
    assert kept
    assert all((tmp_path / "runs" / name).is_dir() for name in kept[1].split(","))


def elsewhere(folder: Path, at: Path, script: str) -> Path:
    """The quiet work's profile, in a folder where another script has its name."""
    runs = (folder / "as_it_is").read_text().split(",")
    file = at / "quiet.json"
    assert call("profile", "publish", *runs, "--name", "q", "--file", str(file)).exit_code == 0
    (at / "work.py").write_text(script)
    return file


def test_what_a_recorded_command_prints_is_no_part_of_the_answer(
    folder: Path, tmp_path: Path
) -> None:
    profile_ = elsewhere(folder, tmp_path, "print('epoch 1: loss 0.5')\n")
    done = again(profile_, tmp_path / "runs", "--runs", "1", "--warm-up", "0", "--json")
    assert json.loads(done.stdout)["b"]["runs"] == 1, done.stderr
    assert "epoch 1: loss 0.5" in done.stderr


CUT = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
seen = pathlib.Path("seen")
first = not seen.exists()
seen.write_text("once" if first else "twice")
for _ in range(10 if first else 1200):  # one long sleep begins in spite of a signal just before it
    time.sleep(0.05)
"""


def test_a_run_that_was_cut_short_is_not_counted_however_well_it_ended(
    folder: Path, tmp_path: Path
) -> None:
    """The second run's command ends with 0 at Ctrl-C, as one that saves its state does."""
    profile_ = elsewhere(folder, tmp_path, CUT)
    more = ["--warm-up", "0", "--tolerance", "5", "--json"]
    process = subprocess.Popen(
        [*MAIN, "reproduce", str(profile_), "--out", "my runs", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    deadline_s = time.monotonic() + 60
    seen = tmp_path / "seen"
    while not seen.exists() or seen.read_text() != "twice":
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    answer, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    said = json.loads(answer)
    assert (said["outcome"], said["open"]) == ("unsure", ["interrupted"])
    first, second = sorted((tmp_path / "my runs").glob("2*"))
    records = [json.loads((one / "run.json").read_text()) for one in (first, second)]
    assert [one["status"] for one in records] == ["finished", "interrupted"]
    assert records[1]["stages"][0]["exit_code"] == 0
    kept = " ".join(told.split())
    assert (
        f"1 run is whole and kept. Go on with them: stagescope reproduce {profile_} "
        f"--out 'my runs' --runs 5 --tolerance 5 --json --have {first.name}"
    ) in kept


def test_a_page_that_cannot_be_written_loses_no_outcome(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("telemetry.compare_page.render", full)
    done = call("reproduce", str(published), "--out", str(tmp_path), "--runs", "2", "--warm-up",
                "0", "--html", str(tmp_path / "x.html"), "--json")  # fmt: skip
    said = json.loads(done.stdout)
    assert done.exit_code == {"same": 0, "differs": 1, "unsure": 2}[said["outcome"]]
    assert said["b"]["runs"] == 2
    assert "x.html was not written: No space left on device" in done.stderr


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_reader_that_leaves_loses_neither_outcome_nor_page(
    published: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    page, out = tmp_path / "x.html", tmp_path / "runs"
    options = "--runs", "2", "--warm-up", "0", "--html", str(page), *more
    reader, writer = os.pipe()
    os.close(reader)
    done = again(published, out, *options, stdout=writer)
    os.close(writer)
    assert page.is_file(), done.stderr
    assert "Error" not in done.stderr
    assert "not written" not in done.stderr
    runs = ",".join(sorted(str(one) for one in out.glob("2*")))
    outcome = json.loads(call("compare", str(published), runs, "--json").stdout)["outcome"]
    assert done.returncode == {"same": 0, "differs": 1, "unsure": 2}[outcome]


@pytest.mark.parametrize("error", [OSError("no space left"), RuntimeError("a bug")])
def test_whatever_goes_wrong_is_never_taken_for_a_difference(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.recording.record_stage", broken)
    done = call("reproduce", str(published), "--out", str(tmp_path))
    assert done.exit_code == 2
    assert "outcome: could not tell" in done.output


def test_a_module_that_cannot_be_loaded_is_never_taken_for_a_difference(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "telemetry.compare", None)
    done = call("reproduce", str(published), "--out", str(tmp_path), "--json")
    assert done.exit_code == 2
    assert "outcome: could not tell: a fault of stagescope itself" in done.stderr
    said = json.loads(done.stdout)
    assert said["schema"] == SAID == SCHEMA
    assert said["outcome"] == "unsure"
    assert said["open"][0].startswith("a fault of stagescope itself: ModuleNotFoundError")


def test_a_command_that_is_not_told_in_whole_is_not_run(published: Path, tmp_path: Path) -> None:
    reference = replace(
        read_reference(published), recipe={"recorded": {"work": ["curl", "<url-1>"]}}
    )
    with pytest.raises(ValueError, match=r"not told in whole \(curl '<url-1>'\)"):
        ready(reference, (), tmp_path, print)


def test_a_command_that_names_this_machine_is_not_run_to_be_refused(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.node", lambda: "work")
    with pytest.raises(ValueError, match=r"published as another one \(python3 '<machine-1>\.py'\)"):
        ready(read_reference(published), (), tmp_path, print)


def test_bad_input_is_refused_before_any_run(folder: Path, published: Path, tmp_path: Path) -> None:
    one = (folder / "as_it_is").read_text().split(",")[0]
    for more, told in (
        (("--have", f"{one},{one}"), "is named twice"),
        (("--tolerance", "nan"), "nan is no number"),
        (("--tolerance", "inf"), "inf is not in the range"),
    ):
        done = call("reproduce", str(published), "--out", str(tmp_path), *more)
        assert done.exit_code == 2
        assert told in done.output
    assert not list(tmp_path.iterdir())


def test_many_runs_are_no_name_that_is_too_long(published: Path) -> None:
    done = call("compare", str(published), ",".join(f"2026112{i}-000000-abcdef" for i in range(20)))
    assert done.exit_code == 2
    assert "no run '20261120-000000-abcdef'" in done.output


def test_publishing_says_where_the_runs_vary_too_much(tmp_path: Path) -> None:
    file = str(tmp_path / "x.json")
    for spread, told in ((0.001, False), (0.2, True)):
        out = tmp_path / str(spread)
        runs = [str(made_run(out, i, {"training": 5 + 5 * spread * i}).path) for i in range(4)]
        done = call("profile", "publish", *runs, "--name", "x", "--file", file)
        assert done.exit_code == 0, done.output
        assert ("even the same again could not be told" in done.output) is told


def test_a_key_of_a_newer_version_is_no_difference_at_its_default_alone() -> None:
    new = published_defaults()
    assert new["model"]["epochs"]
    old = json.loads(json.dumps(new))
    del old["model"]["epochs"]
    assert is_same_recipe(old, new, "0.1", "0.2", new) is None
    assert is_same_recipe(new, old, "0.2", "0.1", new) is None
    other = {**new, "model": {**new["model"], "epochs": 99}}
    assert "model.epochs is absent and 99" in (is_same_recipe(old, other, "0.1", "0.2", new) or "")
    assert is_same_recipe(old, new, "0.2", "0.2", new)
    gone = {**new, "model": {**new["model"], "removed": 1}}
    assert is_same_recipe(gone, new, "0.1", "0.2", new)


def test_a_champion_of_another_recipe_is_told_of(tmp_path: Path) -> None:
    made(tmp_path / "a", 1, recipe={**RECIPE, "seed": 8})
    runs = [made_run(tmp_path / "b", i, {"training": 5.0}) for i in range(3)]
    reference = reference_of("x", runs)
    told = foreign(reference, tmp_path / "a")
    assert told
    assert "champion" in told
    assert foreign(reference, tmp_path / "b") is None
    assert foreign(reference, tmp_path / "none") is None


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.name)
def test_a_published_profile_can_be_reproduced_here(file: Path, tmp_path: Path) -> None:
    """Its recipe is read as it was: one with a key too few could not even be compared with."""
    assert callable(ready(read_reference(file), (), tmp_path, print))


def made(out: Path, runs: int = 3, **more: object) -> list[str]:
    return [str(made_run(out, i, {"training": 5 + i / 100}, **more).path) for i in range(runs)]


def test_profile_of_a_run_is_printed_as_before(tmp_path: Path) -> None:
    (run,) = made(tmp_path, 1)
    for arguments in (("profile", run), ("profile", "show", run), ("profile", "--json", run)):
        done = call(*arguments)
        assert done.exit_code == 0, done.output
        assert "training" in done.stdout
    assert "publish" in call("profile", "--help").stdout


def test_both_statistics_are_named_and_where_they_disagree_it_is_told(tmp_path: Path) -> None:
    times_s = {"a": [10.0] * 15, "b": [10.2] * 8 + [6.0] * 7}
    sides = [
        ",".join(
            str(made_run(tmp_path / name, i, {"training": took}).path)
            for i, took in enumerate(of_side, 1)
        )
        for name, of_side in times_s.items()
    ]
    shown = call("compare", *sides).stdout
    assert "A, median" in shown
    assert "B less A, of means" in shown
    assert "A, B: medians of the runs" in shown
    assert "training: medians say otherwise: some runs lie far off" in shown
    assert "medians say otherwise" not in call("compare", sides[0], sides[0]).stdout


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "latin-1"}])
def test_what_the_locale_has_no_character_for_loses_no_answer(
    tmp_path: Path, locale: dict[str, str]
) -> None:
    runs, file = made(tmp_path / "runs"), tmp_path / "x.json"
    named = call("profile", "publish", *runs, "--name", "größer →", "--file", str(file))
    assert named.exit_code == 0, named.output
    for more in ([], ["--json"]):
        done = subprocess.run(
            [*MAIN, "compare", str(file), ",".join(runs), *more],
            capture_output=True,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "PYTHONUTF8": "0",
                "PYTHONCOERCECLOCALE": "0",
                **locale,
            },
        )
        assert done.returncode == 0, done.stderr
        told = done.stdout.decode("latin-1")
        if more:
            assert json.loads(told)["a"]["name"] == "größer →"
        else:
            assert "er \\u2192 (3 runs)" in told
            assert "outcome: " in told


def test_runs_on_both_sides_are_told_of(tmp_path: Path) -> None:
    runs = made(tmp_path, 5)
    sides, page = (",".join(runs[:3]), ",".join(runs[2:])), tmp_path / "x.html"
    (note,) = json.loads(call("compare", *sides, "--json").stdout)["notes"]
    assert note.startswith("1 run is on both sides")
    assert f"note: {note}" in call("compare", *sides, "--html", str(page)).stdout
    assert f"Note: {note}." in page.read_text()
    assert "note: 3 runs are on both sides" in call("compare", sides[0], sides[0]).stdout
    assert json.loads(call("compare", runs[0], runs[1], "--json").stdout)["notes"] == []


def test_another_verdict_is_told_with_the_comparison(tmp_path: Path) -> None:
    sides = [
        ",".join(made(tmp_path / name, verdict=verdict))
        for name, verdict in (("a", "CPU-bound"), ("b", "disk-bound"))
    ]
    done = call("compare", *sides)
    assert "training: its verdict is disk-bound in B, and CPU-bound in A" in done.stdout
    assert "its verdict is" not in call("compare", sides[0], sides[0]).stdout
    published = tmp_path / "x.profile.json"
    done = call("profile", "publish", *sides[0].split(","), "--name", "x", "--file", str(published))
    assert "CPU-bound" in done.stdout
    assert "sitting" not in done.stdout  # they were made hours apart


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("profile", "publish", "{0}", "{1}", "--name", "x"), "at least 3"),
        (("profile", "publish", "{0}", "{1}", "{2}", "--name", "a/b"), "must not hold a slash"),
        (("compare", "{0}", "{other}"), "say nothing of each other: seed"),
        (("compare", "{0}", "{0}/profile.json"), "stagescope profile publish RUN"),
        (("compare", "{0}", "nothing"), "no run 'nothing'"),
        (("reproduce", "{0}/none.json"), "none.json is not there: name a published profile"),
        (("reproduce", "{0}/run.json"), "run.json is not read: the profile has schema '1'"),
        (("reproduce", "{file}", "--have", "{other}"), "is of another recipe than x: seed"),
        (("reproduce", "{file}"), "the recipe in it cannot be run:\n  - protocol: missing"),
        (("reproduce", "{file}", "--set", "seed=3"), "reproduced as it is"),
        (("reproduce", "{file}", "--html", "no/x.html"), "there is no folder no; make it first"),
        (("compare", "{0}", "{1}", "--html", "no/x.html"), "there is no folder no; make it first"),
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

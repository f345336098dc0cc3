"""The command line teaches: examples in every help, a sentence for every mistake, exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import pipeline.cli
from pipeline.artifact import STORE, Store
from pipeline.cli import main
from telemetry.contention import Thresholds
from telemetry.runfolder import RUN_SCHEMA, RunFolder, last_sample_ns, point_latest_at
from tests.pipeline.test_handbook import published_day
from tests.telemetry.test_report import chart_data

HEAVY = (
    "torch",
    "mlflow",
    "feast",
    "dask",
    "distributed",
    "pandas",
    "pyarrow",
    "sklearn",
    "polars",
)
ROOT = Path(__file__).parents[2]
TOKEN_NAME = "STAGESCOPE_TEST_NO_SUCH_TOKEN"
NS = 1_000_000_000


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, with nothing configured from outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("STAGESCOPE_HANDBOOK", "MLFLOW_TRACKING_URI", "STAGESCOPE_REDIS"):
        monkeypatch.delenv(name, raising=False)


def call(line: str) -> Result:
    """Run a command line in this process; what it prints is kept apart from its errors."""
    return CliRunner().invoke(main, shlex.split(line))


def process(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The same as a process, as people start it."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *shlex.split(line)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
    )


def commands(group: click.Group = main, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in sorted(group.commands.items()):
        here = f"{path} {name}".strip()
        yield here, command
        if isinstance(command, click.Group):
            yield from commands(command, here)


COMMANDS = dict(commands())


# Help, version, completion


@pytest.mark.parametrize("path", COMMANDS)
def test_every_help_has_an_example_that_is_true_and_explains_every_option(path: str) -> None:
    shown = call(f"{path} --help")
    assert shown.exit_code == 0
    assert call(f"{path} -h").output == shown.output
    command = COMMANDS[path]
    example = re.search(r"Example: (.+)", shown.output)
    assert example, "no example"
    words = shlex.split(example[1].replace("$(", " ").replace(")", " ").replace('"', " "))
    words = words[words.index("stagescope") + 1 :]
    assert words[: len(path.split())] == path.split()
    if not isinstance(command, click.Group):
        given = words[len(path.split()) :]
        context = command.make_context(path, list(given), resilient_parsing=True)
        known = {name for one in command.params for name in one.opts}
        before_command = given[: given.index("--")] if "--" in given else given
        assert {word for word in before_command if word.startswith("--")} <= known
        assert context.command is command
        assert len((command.help or "").split()) >= 4
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{option.opts} has no help"


def test_the_first_help_names_every_command_in_whole_sentences() -> None:
    shown = call("--help").output
    for path in COMMANDS:
        if " " not in path:
            assert re.search(rf"^  {path}  +\S", shown, re.MULTILINE)
    assert "..." not in shown.split("Commands:")[1], "a description is cut off"
    assert "stagescope run" in shown
    assert "stagescope record --name" in shown


def test_version() -> None:
    assert re.fullmatch(r"stagescope, version \d+\.\d+\.\d+\n", call("--version").output)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_the_shell_takes(shell: str) -> None:
    done = call(f"completion {shell}")
    assert done.exit_code == 0
    assert "_STAGESCOPE_COMPLETE" in done.output
    if shutil.which(shell):
        checked = subprocess.run(
            [shell, "-n"], input=done.output, text=True, capture_output=True, check=False
        )
        assert checked.returncode == 0, checked.stderr


def test_completion_completes() -> None:
    code = "from pipeline.cli import main; main(prog_name='stagescope')"
    asked = {"COMP_WORDS": "stagescope re", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "_STAGESCOPE_COMPLETE": "bash_complete", **asked},
    )
    assert {line.partition(",")[2] for line in done.stdout.split()} == {
        "record",
        "replay",
        "report",
        "reproduce",
    }


def test_help_starts_without_any_heavy_package() -> None:
    code = "import sys, pipeline.cli; print(*(n for n in sys.argv[1:] if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, *HEAVY],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout.split() == []


# Mistakes


def say_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


taken_port = pytest.fixture(say_port)

MISTAKES: list[tuple[str, tuple[str, ...]]] = [
    ("pln", ("'pln'", "plan")),
    ("plan defualt", ("defualt", "default, handbook", "did you mean 'default'")),
    ("plan nowhere.toml", ("nowhere.toml", "no such file")),
    ("plan --set data.dys=3", ("data.dys", "did you mean 'days'", "customers")),
    ("plan --set daat.days=3", ("daat", "did you mean 'data'")),
    ("plan --set data.days", ("data.days", "section.key=value")),
    ("plan --set data.days=many", ("data.days = 'many'", "integer")),
    ("plan --set model.epochs=0", ("model.epochs = 0", "greater than or equal to 1")),
    ("plan --set seed.x=1", ("seed.x=1", "'seed' is a value")),
    ("plan --set protocol.folds=[2018-01-01]", ("2018-01-01", "start on 2018-04-01")),
    ("plan --set protocol.folds=[2018-08-01]", ("2018-08-01", "last possible start is 2018-05-30")),
    ("plan --set data.drift.amount_shift_day=99", ("amount_shift_day = 99", "0 to 79")),
    ("plan --set online.store=redis", ("online.store", "export STAGESCOPE_REDIS=host:port")),
    ("plan --set cluster.scheduler=tcp://127.0.0.1:9", ("tcp://127.0.0.1:9", "nothing answers")),
    ("plan --set data.customers=4000000000", ("GiB are needed", "free")),
    ("plan handbook", ("data.path", "export STAGESCOPE_HANDBOOK=PATH", "--set data.path=PATH")),
    ("plan handbook --set data.path=missing", ("data.path", "missing does not exist")),
    ("plan handbook --set data.path=empty", ("data.path", "empty is an empty folder")),
    ("plan --out a-file/runs", ("--out", "a-file is a file", "another folder")),
    ("run --out a-file", ("--out", "a-file", "is a file")),
    ("run --out a-file/runs", ("--out", "a-file is a file", "another folder")),
    ("run handbook", ("data.path", "export STAGESCOPE_HANDBOOK=PATH")),
    ("run --force trainng", ("--force trainng", "features, training, validation")),
    ("run --frsh", ("--frsh", "--fresh")),
    ("record", ("COMMAND", "Example: stagescope record --name train -- python train.py")),
    ("record --name x", ("COMMAND", "Example: stagescope record --name train -- ")),
    ("record -- true", ("--name", "Example: stagescope record --name train -- ")),
    ("record --name x -- no-such-program", ("'no-such-program'", "PATH")),
    ("record --name x --set data.days=3 -- true", ("data.days=3", "telemetry.*", "tracking.*")),
    ("record --name x --set telemetry.hz=3 -- true", ("telemetry.hz", "guest_hz")),
    ("record --name x --set telemetry.page_cache=cold -- true", ("page_cache=cold", "recipe's")),
    ("record --nme x true", ("--nme", "--name")),
    ("profile", ("RUN", "Example: stagescope profile latest")),
    ("profile latest", ("'latest'", "no runs there yet")),
    ("profile nope --out some", ("'nope'", "20260101-000000-aaaaaa", "'latest'")),
    ("profile 2026 --out some", ("'2026' is ambiguous", "aaaaaa", "bbbbbb")),
    ("profile latest --out some --stage trainin", ("--stage trainin", "training, serving")),
    ("profile latest --out some --json --stage training", ("--stage", "--json", "whole")),
    ("report nope", ("'nope'", "runs")),
    ("sync nope", ("'nope'", "runs")),
    ("report latest --out broken", ("run.json", "not valid JSON")),
    ("serve", ("RUN", "Example: stagescope serve latest")),
    ("serve latest", ("'latest'", "no runs there yet")),
    (f"serve latest --token-env {TOKEN_NAME} --out some", (TOKEN_NAME, "not set")),
    ("serve latest --port 99999 --out some", ("--port", "99999")),
    ("serve latest --port 0 --out some", ("recorded command", "stagescope runs list")),
    (
        "serve latest --host 203.0.113.7 --out some",
        ("203.0.113.7:8080", "another --host or --port"),
    ),
    ("data generate a-folder", ("a-folder", "not empty", "new folder")),
    ("data generate new --start 2018-13-01", ("--start 2018-13-01", "YYYY-MM-DD")),
    ("data generate new --days 0", ("--days", "0 is not in the range")),
    ("data import missing new", ("missing", "does not exist")),
    ("data import empty new", ("empty", "no pickles", "one Parquet file")),
    ("data import a-folder a-folder", ("a-folder", "not empty", "new folder")),
    ("runs prune --keep -1", ("--keep", "-1")),
    ("completion tcsh", ("tcsh", "bash")),
]


@pytest.mark.parametrize(("line", "says"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_told_with_the_thing_the_value_and_the_way_out(
    line: str, says: tuple[str, ...]
) -> None:
    lay_out_a_folder()
    before = sorted(str(path) for path in Path().rglob("*"))
    done = call(line)
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit), "it must end by itself, not by an exception"
    for word in says:
        assert word in done.output
    assert done.stdout == "" or line.startswith("plan"), "a script reads stdout"
    assert "Traceback" not in done.output
    assert "Errno" not in done.output
    assert sorted(str(path) for path in Path().rglob("*")) == before, "it left something"


def lay_out_a_folder() -> None:
    Path("empty").mkdir()
    Path("a-file").write_text("")
    Path("a-folder").mkdir()
    Path("a-folder/something").write_text("")
    for run_id in ("20260101-000000-aaaaaa", "20260102-000000-bbbbbb"):
        make_run(Path("some"), run_id)
    broken = make_run(Path("broken"), "20260101-000000-cccccc")
    broken.run_json.write_text("{")


def make_run(out: Path, run_id: str, status: str = "finished") -> RunFolder:
    """A run with two stages and no samples, as far as the command line looks at it."""
    from telemetry.finish import finish

    folder = RunFolder((out / run_id).resolve())
    folder.samples.mkdir(parents=True)
    second = 1_000_000_000
    stages = [
        {"name": name, "status": "finished", "start_ns": at * second, "end_ns": (at + 1) * second}
        for at, name in ((1, "training"), (3, "serving"))
    ]
    folder.write(
        {
            "schema": RUN_SCHEMA,
            "run_id": run_id,
            "name": "default",
            "status": status,
            "started_ns": second,
            "ended_ns": None if status == "running" else 9 * second,
            "recipe": {},
            "losses": [],
            "stages": stages,
        }
    )
    if status != "running":
        finish(folder)
    point_latest_at(out, run_id)
    return folder


def test_a_taken_port_is_told_before_the_model_is_loaded(taken_port: int) -> None:
    make_run(Path("some"), "20260101-000000-aaaaaa")
    done = call(f"serve latest --out some --port {taken_port}")
    assert done.exit_code == 2
    for word in (f"127.0.0.1:{taken_port}", "in use", "--port 0 takes a free one"):
        assert word in done.output


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_folder_that_is_not_writable_is_told(command: str) -> None:
    """A read-only mount in a namespace of its own: root may write everywhere else."""
    Path("closed").mkdir()
    inner = f"'{sys.executable}' -m pipeline.cli {command} --out closed/runs"
    script = f"mount -t tmpfs -o ro none closed && {inner}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "--out closed/runs: " in said
    assert "closed is not writable; name another folder" in said
    assert "Traceback" not in said


def test_plan_says_all_problems_at_once() -> None:
    line = (
        "plan --set data.source=files --set data.path=missing --set protocol.folds=[2018-08-01] "
        "--set online.store=redis --set cluster.scheduler=tcp://127.0.0.1:9"
    )
    done = call(line)
    assert done.exit_code == 2
    said = [text for text in done.output.splitlines() if text.startswith("problem: ")]
    assert [text.split()[1].rstrip(":") for text in said] == [
        "data.path",
        "protocol.folds",
        "online.store",
        "cluster.scheduler",
    ]
    as_json = json.loads(call(f"{line} --json").stdout)
    assert [f"problem: {problem}" for problem in as_json["problems"]] == said
    assert as_json["stages"] == []
    refused = call(line.replace("plan", "run", 1))
    assert refused.exit_code == 2
    for text in said:
        assert text.removeprefix("problem: ") in refused.output


def test_plan_says_wrong_keys_and_what_is_not_there_at_once() -> None:
    done = call(
        "plan --set model.epochz=3 --set serving.rates=[0] --set data.source=files "
        "--set data.path=missing --set online.store=redis --json"
    )
    assert done.exit_code == 2
    problems = " ".join(json.loads(done.stdout)["problems"])
    for word in ("model.epochz", "serving.rates.0", "missing does not exist", "STAGESCOPE_REDIS"):
        assert word in problems


# Exit codes


def test_the_exit_codes_stand_in_the_docstring() -> None:
    told = pipeline.cli.__doc__ or ""
    codes = pipeline.cli.FAILED, pipeline.cli.USAGE, pipeline.cli.INTERRUPTED, pipeline.cli.CUT_OFF
    meanings = "failed", "wrong usage", "interrupted", "nobody reads"
    for code, meaning in [(0, "done"), *zip(codes, meanings, strict=True)]:
        assert re.search(rf"\b{code} [^·]*{meaning}", told), told
    assert codes == (1, 2, 130, 141)


@pytest.mark.parametrize("command", ["plan", "plan --json", "run"])
def test_a_process_ends_with_the_code_and_without_a_traceback(command: str) -> None:
    done = process(f"{command} --set data.dys=3")
    assert done.returncode == 2
    assert "data.dys" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["runs list", "plan", "plan --json", "telemetry probe"])
def test_a_view_that_nobody_reads_is_neither_an_answer_nor_an_error(command: str) -> None:
    done = unread(command, "stdout")
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("more", ["", "--json", "--html page.html"])
def test_a_comparison_is_made_whoever_reads_it(more: str) -> None:
    published = ROOT / "docs/profiles/default.profile.json"
    done = unread(f"compare {published} {published} {more}", "stdout")
    assert (done.returncode, done.stderr) == (0, b"")
    assert Path("page.html").is_file() == ("html" in more)


@pytest.mark.parametrize("more", ["", "--json"])
def test_work_that_nobody_reads_of_is_done(more: str) -> None:
    done = unread(f"record {more} --name mine --out runs -- sh -c 'exit 7'", "stderr")
    assert done.returncode == 7
    assert json.loads(Path("runs/latest/run.json").read_text())["stages"][0]["exit_code"] == 7


def unread(line: str, stream: str) -> subprocess.CompletedProcess[bytes]:
    """A command whose output goes into a pipe that nobody reads (any more)."""
    reader, writer = os.pipe()
    os.close(reader)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer}
    command = [sys.executable, "-m", "pipeline.cli", *shlex.split(line)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        return subprocess.run(command, check=False, timeout=120, env=env, **pipes)
    finally:
        os.close(writer)


@pytest.mark.parametrize(
    ("script", "code", "noted"), [("exit 0", 0, 0), ("exit 7", 7, 7), ("kill -TERM $$", 143, -15)]
)
def test_record_ends_with_the_code_of_the_command(script: str, code: int, noted: int) -> None:
    done = process(f"record --name mine --out runs -- sh -c 'echo said; {script}'")
    assert done.returncode == code
    assert done.stdout == "said\n", "the output is the command's own"
    assert "report.html" in done.stderr
    record = json.loads(Path("runs/latest/run.json").read_text())
    assert record["stages"][0]["exit_code"] == noted
    assert record["stages"][0]["status"] == ("finished" if code == 0 else "failed")


def test_record_in_json_keeps_to_stderr_so_that_the_command_keeps_stdout() -> None:
    done = process("record --name mine --json -- echo said")
    assert done.stdout == "said\n"
    assert json.loads(done.stderr)["stages"][0]["name"] == "mine"


# What scripts read


def test_json_parses_wherever_it_is_offered() -> None:
    make_run(Path("runs"), "20260101-000000-aaaaaa")
    plan = json.loads(call("plan --set data.days=80 --json").stdout)
    assert plan["problems"] == []
    assert [stage["name"] for stage in plan["stages"]][:2] == ["ingest", "processing"]
    assert [run["run_id"] for run in json.loads(call("runs list --json").stdout)] == [
        "20260101-000000-aaaaaa"
    ]
    assert json.loads(call("profile latest --json").stdout)["schema"] == "stagescope.profile/1"
    probed = json.loads(call("telemetry probe --json").stdout)
    assert {row["available"] for row in probed} == {True, False}
    assert all(row["reason"] for row in probed if not row["available"])
    offered = {
        path
        for path, command in COMMANDS.items()
        if any("--json" in one.opts for one in command.params)
    }
    # What asks a vCenter is driven against one in test_cli_vms.py and tests/infra.
    mine = {path for path in offered if not path.startswith("infra ")}
    elsewhere = {
        "compare",
        "reproduce",
        "replay",
        "watch",
    }  # test_cli_compare.py, test_cli_watch.py
    assert mine - elsewhere == {
        "plan", "run", "record", "runs list", "profile show", "telemetry probe"
    }  # fmt: skip


def test_the_probe_says_what_is_there_and_why_the_rest_is_not() -> None:
    shown = call("telemetry probe").output
    assert "can be measured here" in shown
    assert "cpu_user_seconds" in shown
    assert re.search(r"not here: .*\n", shown)


# Runs


def test_a_recording_that_was_killed_is_ended_by_whoever_looks_at_it() -> None:
    words = [sys.executable, "-m", "pipeline.cli", "record", "--name", "nap", "--", "sleep", "60"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    one = subprocess.Popen(words, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
    record: dict[str, Any] = {"stages": []}
    deadline_s = time.monotonic() + 60
    while not record["stages"]:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
        if Path("runs/latest/run.json").is_file():
            record = json.loads(Path("runs/latest/run.json").read_text())
    going = call("profile latest")
    assert going.exit_code == 2
    assert "is still running" in going.output
    samples, began_ns = Path("runs/latest/samples"), record["stages"][0]["start_ns"]
    while (last_sample_ns(samples) or 0) < began_ns + 2 * NS:
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    os.killpg(one.pid, signal.SIGKILL)
    one.wait()
    looked = call("profile latest")
    assert looked.exit_code == 0, looked.output
    assert "was killed" in looked.stderr
    record = json.loads(Path("runs/latest/run.json").read_text())
    assert record["status"] == record["stages"][0]["status"] == "killed"
    assert record["ended_ns"] >= began_ns + 2 * NS
    page = Path("runs/latest/report.html").read_text()
    data = chart_data(page)
    (nap,) = data["stages"]
    assert not nap["ended"]
    assert data["durationMs"] == nap["to"] >= nap["from"] + 2000
    shown = next(chart for chart in data["charts"] if chart["series"])
    assert sum(shown["series"][0]["t"]) >= 1900, "the chart reaches over the time that was sampled"
    assert "no end was recorded" in page
    assert "outside of the stages" not in page
    assert "at least" in call("runs list").output


def test_runs_are_listed_and_pruned() -> None:
    assert "no runs in runs yet: start one with stagescope run" in call("runs list").output
    ids = [f"2026010{day}-000000-aaaaaa" for day in range(1, 5)]
    for run_id in ids[:3]:
        make_run(Path("runs"), run_id)
    make_run(Path("runs"), ids[3], status="running")
    shown = call("runs list").output
    assert [line for line in ids if line in shown] == ids
    assert "running" in shown
    asked = CliRunner().invoke(main, ["runs", "prune", "--keep", "1"], input="n\n")
    assert asked.exit_code == 1
    assert "delete 2 runs in runs?" in asked.output
    assert len(list(Path("runs").glob("2026*"))) == 4
    done = call("runs prune --keep 1 --yes")
    assert done.output == "2 runs deleted, 0.0 MiB of outputs freed\n"
    assert sorted(path.name for path in Path("runs").glob("2026*")) == ids[2:]
    assert call("runs prune --keep 0 --yes").output.startswith("1 runs deleted")
    assert [path.name for path in Path("runs").glob("2026*")] == [ids[3]], "it is going on"


def test_a_running_run_has_no_profile_yet() -> None:
    make_run(Path("runs"), "20260101-000000-aaaaaa", status="running")
    for command in ("profile", "report", "serve"):
        done = call(f"{command} latest")
        assert done.exit_code == 2
        assert "still running; its profile comes at its end" in done.output
    assert "still running, left alone" in call("sync").output


def test_a_killed_run_of_a_recipe_is_no_running_one() -> None:
    folder = make_run(Path("runs"), "20260101-000000-aaaaaa", status="running")
    with Store(Path("runs").resolve() / STORE).locked(f"run-{folder.path.name}"):
        assert "is still running" in call("profile latest").output
    for command in ("profile", "report", "serve", "replay"):
        done = call(f"{command} latest")
        assert done.exit_code == 2
        assert "was killed, and the next `stagescope run --out" in done.output
    assert "was killed" in call("sync").output


def test_what_follows_a_recorded_command_is_its_own() -> None:
    done = process("record --name say --out mine echo --out theirs --name x -h")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "--out theirs --name x -h\n"
    assert not Path("theirs").exists()
    assert json.loads(Path("mine/latest/run.json").read_text())["name"] == "say"


def test_thresholds_that_a_recording_was_given_are_its_own() -> None:
    set_ = "--set telemetry.flush_s=0.2 --set vcenter.contention.cpu_ready_percent=1.5"
    done = process(f"record --name nap {set_} -- true")
    assert done.returncode == 0, done.stderr
    told = json.loads(Path("runs/latest/run.json").read_text())["contention"]
    assert told["cpu_ready_percent"] == 1.5
    assert told == asdict(Thresholds(cpu_ready_percent=1.5))


def test_a_run_is_found_by_id_start_folder_and_latest() -> None:
    folder = make_run(Path("runs"), "20260101-000000-aaaaaa")
    for name in (folder.path.name, "20260101", str(folder.path), "runs/latest", "latest"):
        done = call(f"report {name}")
        assert done.output.strip() == str(folder.report_html)


def test_sync_of_an_empty_folder_says_so() -> None:
    done = call("sync")
    assert done.exit_code == 0
    assert done.output == "no runs in runs: nothing to send\n"


def test_a_recording_without_a_server_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = make_run(Path("runs"), "20260101-000000-aaaaaa")
    record = folder.read()
    del record["recipe"]
    folder.write(record)
    done = call("sync latest")
    assert done.exit_code == 0
    assert "recorded without a server, left alone: export MLFLOW_TRACKING_URI=" in done.output
    assert not Path("runs", STORE).exists(), "and into no file beside the runs"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    assert "records sent" in call("sync latest").output
    assert Path("elsewhere.db").is_file()
    assert "complete" in call("sync latest").output


def test_sync_to_a_server_that_is_away_is_a_failure_with_its_address() -> None:
    folder = make_run(Path("runs"), "20260101-000000-aaaaaa")
    away = {"uri": "http://127.0.0.1:9", "timeout_s": 1}
    folder.write({**folder.read(), "recipe": {"tracking": away}})
    done = process("sync")
    assert done.returncode == 1
    assert "20260101-000000-aaaaaa: not sent" in done.stderr
    assert "127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


# Data


def test_data_is_generated_the_same_each_time() -> None:
    said = []
    for name in ("one", "two"):
        done = call(
            f"data generate {name} --customers 40 --terminals 30 --days 3 --seed 5 --workers 0 "
            "--start 2020-02-28"
        )
        assert done.exit_code == 0, done.output
        said.append(done.stdout)
    assert said[0] == said[1]
    told = re.fullmatch(r"([\d,]+) rows \(\d+ frauds\) in 3 files, .*digest \w{16}\n", said[0])
    assert told
    days = [f"2020-02-{day}" for day in (28, 29)] + ["2020-03-01"]
    assert sorted(path.stem for path in Path("one").iterdir()) == days
    rows = sum(pq.read_metadata(path).num_rows for path in Path("one").iterdir())
    assert rows == int(told[1].replace(",", "")) > 0
    again = call("data generate one --days 1")
    assert again.exit_code == 2
    assert "not empty" in again.output


@pytest.mark.parametrize("single", [False, True])
def test_a_folder_of_daily_pickles_is_imported(single: bool) -> None:
    Path("pickles").mkdir()
    for day in range(3):
        published_day(day).to_pickle(f"pickles/2018-04-0{day + 1}.pkl")
    name = "one.parquet" if single else "raw"
    done = call(f"data import pickles {name}" + " --single" * single)
    assert done.exit_code == 0, done.output
    assert re.fullmatch(rf"150 rows \(\d+ frauds\) in {name}\n", done.stdout)
    files = [Path("one.parquet")] if single else sorted(Path("raw").iterdir())
    assert sum(pq.read_metadata(path).num_rows for path in files) == 150
    column = "TRANSACTION_ID" if single else "transaction_id"
    assert column in pq.read_schema(files[0]).names
    assert [path.name for path in files] == (
        ["one.parquet"] if single else [f"2018-04-0{day}.parquet" for day in (1, 2, 3)]
    )
    end = "--set data.days=3 --set protocol.folds=[2018-04-01]"
    short = " ".join(f"--set protocol.{name}_days=1" for name in ("train", "delay", "test"))
    planned = call(f"plan handbook --set data.path={name} {end} {short}")
    assert planned.exit_code == 0, planned.output


def test_a_hostile_pickle_ends_the_import_with_a_sentence() -> None:
    Path("pickles").mkdir()
    Path("pickles/2018-04-01.pkl").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    done = call("data import pickles raw")
    assert done.exit_code == 2
    assert "2018-04-01.pkl" in done.output
    assert not Path("owned").exists()
    assert "Traceback" not in done.output

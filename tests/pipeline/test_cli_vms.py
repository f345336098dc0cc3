"""``infra plan``, ``apply`` and ``destroy`` as people call them, against a real vCenter API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from tests.vcsim_server import Vcsim

pytestmark = pytest.mark.needs("go")

TEXT = """
name = "stagescope"
[vcenter]
host = "127.0.0.1"
port = {port}
ca_file = "{ca_file}"
[defaults]
cluster = "DC0_C0"
datastore = "LocalDS_0"
cpus = 1
memory_gib = 1
[vms.worker]
count = 2
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Vcsim]:
    with Vcsim() as vcsim:
        yield vcsim


@pytest.fixture
def plan(server: Vcsim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in server.environ().items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "vms.toml"
    path.write_text(TEXT.format(port=server.port, ca_file=server.ca_file))
    return path


def call(*words: str | Path, answer: str = "") -> Result:
    return CliRunner().invoke(main, ["infra", *map(str, words)], input=answer)


def said(result: Result) -> Any:
    return json.loads(result.stdout)


def test_from_plan_to_destroy(server, plan):
    planned = call("plan", plan)
    assert planned.exit_code == 0, planned.output
    assert "worker-1" in planned.stdout
    assert "new, empty, on DC0_C0" in planned.stdout
    assert {one["vm"] for one in said(call("plan", plan, "--json"))["changes"]} == {
        "worker-1",
        "worker-2",
    }
    asked = call("apply", plan, answer="n\n")
    assert asked.exit_code == 1
    assert "apply this? [y/N]" in asked.output
    applied = call("apply", plan, "--yes", "--json")
    assert applied.exit_code == 0, applied.output
    assert said(applied)["failed"] == []
    assert "nothing to change" in call("plan", plan).stdout
    assert "nothing was changed" in call("apply", plan, "--yes").stdout

    refused = call("apply", plan, "--yes", "--set", "vms.worker.cpus=2")
    assert refused.exit_code == 1
    assert "allow it with --power-off" in refused.stdout.replace("\n", " ")
    allowed = call("apply", plan, "--yes", "--power-off", "--set", "vms.worker.cpus=2")
    assert allowed.exit_code == 0, allowed.output

    kept = call("destroy", plan, answer="n\n")
    assert kept.exit_code == 1
    assert "delete 2 VMs with their disks?" in kept.output
    gone = call("destroy", plan, "--yes", "--json")
    assert gone.exit_code == 0
    assert said(gone) == {"removed": ["worker-1", "worker-2"], "left": [], "failed": []}
    assert "no VM of its making" in call("destroy", plan).stdout
    assert server.counts["sessions"] == 0


def test_a_bad_plan_says_all_of_it_the_vcenters_part_too(plan):
    bad = ("--set", "vms.worker.cpu=1", "--set", "defaults.datastore=LocalDS_9")
    result = call("plan", plan, *bad)
    assert result.exit_code == 2
    assert "did you mean 'cpus'?" in result.stdout
    assert "datastore 'LocalDS_9': there is none" in result.stdout.replace("\n", " ")
    assert "password" not in result.output.lower()
    problems = said(call("plan", plan, "--json", *bad))["problems"]
    assert len(problems) == 3
    applied = call("apply", plan, "--yes", *bad[2:])
    assert applied.exit_code == 2
    assert "datastore 'LocalDS_9'" in applied.output


@pytest.mark.parametrize(
    "slip", ["nam=other", "name", "vcenter.prot=8443", "vms.worker.cpu=1", "name="]
)
def test_destroy_takes_no_slip_for_the_plan(plan, slip):
    assert call("apply", plan, "--yes").exit_code == 0
    refused = call("destroy", plan, "--yes", "--set", slip)
    assert refused.exit_code == 2
    assert slip.partition("=")[0] in refused.output
    assert "nothing to change" in call("plan", plan).stdout


def test_destroy_removes_what_a_plan_made_that_has_gone_wrong_since(plan):
    assert call("apply", plan, "--yes").exit_code == 0
    plan.write_text(plan.read_text() + "cpu = 4\n")
    assert call("destroy", plan, "--yes").exit_code == 0
    assert "cannot be applied" in call("apply", plan, "--yes").output


def test_wrong_usage(plan, tmp_path):
    missing = call("plan", tmp_path / "none.toml")
    assert missing.exit_code == 2
    assert "no such file" in missing.stdout
    assert call("apply").exit_code == 2
    assert "give --yes as well" in call("apply", plan, "--json").output
    closed = call("plan", plan, "--set", "vcenter.port=1")
    assert closed.exit_code == 1
    assert "cannot be reached" in closed.output

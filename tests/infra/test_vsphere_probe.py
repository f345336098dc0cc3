"""``stagescope infra probe`` against the simulated vCenter: what it says, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pyVmomi import vim

from infra.vsphere.session import VCenter
from pipeline.cli import main
from tests.infra.between import Between, fault
from tests.vcsim_server import PASSWORD, READER, READER_PASSWORD, USER, Vcsim

VM = "DC0_C0_RP0_VM0"


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    cleared = {"STAGESCOPE_VCENTER": None, "STAGESCOPE_VCENTER_USER": None}
    return CliRunner().invoke(main, ["infra", "probe", *arguments], env={**cleared, **(env or {})})


def probe(vcsim: Vcsim, *arguments: str, reader: bool = False, vm: str | None = VM) -> Result:
    where = ("--host", vcsim.address, "--port", str(vcsim.port), "--ca-file", vcsim.ca_file)
    named = () if vm is None else ("--vm", vm)
    result = run(*where, *named, *arguments, env=vcsim.environ(reader=reader))
    assert PASSWORD not in result.output
    assert READER_PASSWORD not in result.output
    assert vcsim.counts["sessions"] == 0
    return result


def report(result: Result) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(result.output)
    return parsed


@pytest.mark.needs("go")
def test_all_is_well(vcsim: Vcsim) -> None:
    result = probe(vcsim, reader=True)
    assert result.exit_code == 0, result.output
    for said in (
        "VMware vCenter Server",
        "TLS: verified by ca_file",
        f"logged in as {READER}",
        VM,
        "esxi:DC0_C0_H",
        "cpu.ready.summation",
        "nothing is missing",
    ):
        assert said in result.output


@pytest.mark.needs("go")
def test_says_it_as_json(vcsim: Vcsim) -> None:
    result = probe(vcsim, "--json")
    assert result.exit_code == 0, result.output
    said = report(result)
    assert said["user"] == USER
    assert said["vm"]["vm"] == VM
    assert {row["granted"] for row in said["rights"]} == {True}
    assert next(clock["source"] for clock in said["clocks"]) == "vcenter"
    assert all(clock["reason"] is None for clock in said["clocks"])
    ready = next(row for row in said["counters"] if row["counter"] == "cpu.ready.summation")
    assert (ready["of"], ready["level"], ready["available"]) == ("vm", 1, True)
    assert said["problems"] == []
    assert isinstance(said["max_query_metrics"], int)


@pytest.mark.needs("go")
def test_finds_this_vm_by_its_dmi_uuid(vcsim: Vcsim, monkeypatch: pytest.MonkeyPatch) -> None:
    from infra import placement

    with VCenter(vcsim.settings(), environ=vcsim.environ()) as vcenter:
        known = vcenter.retrieve(vim.VirtualMachine, ["name", "config.uuid"])
    uuid = next(one["config.uuid"] for _, one in known if one["name"] == VM)
    read = placement._read

    def as_this_vm(path: Path, name: str, absent: dict[str, str]) -> str | None:
        return uuid if name == "product_uuid" else read(path, name, absent)

    monkeypatch.setattr(placement, "_read", as_this_vm)
    assert report(probe(vcsim, "--json", vm=None))["vm"]["vm"] == VM


@pytest.mark.needs("go")
def test_a_vm_that_is_not_there_is_missing(vcsim: Vcsim) -> None:
    result = probe(vcsim, "--json", "--set", 'vcenter.other_vms=["DC0_C0_RP0_VM1", "x"]', vm="y")
    assert result.exit_code == 1
    said = report(result)
    assert said["vm"] is None
    assert "no VM named y" in said["problems"][0]
    assert "no VM named x" in said["problems"][1]
    assert {row["reason"] for row in said["counters"] if row["of"] == "vm"} == {"no VM was found"}


@pytest.mark.needs("go")
def test_a_missing_right_is_named_with_how_to_grant_it(vcsim: Vcsim) -> None:
    lacking = {"password": READER_PASSWORD, "only": ["System.Anonymous", "System.View"]}
    vcsim.control(users={READER: lacking})
    result = probe(vcsim, "--json", reader=True)
    assert result.exit_code == 1
    missing = [one for one in report(result)["problems"] if one.startswith("System.Read")]
    assert any("is missing on vCenter" in one and "Read-only" in one for one in missing)


@pytest.mark.needs("go")
def test_the_rights_to_make_vms_are_asked_for_on_request(vcsim: Vcsim) -> None:
    assert probe(vcsim, "--manage").exit_code == 0
    result = probe(vcsim, "--manage", "--json", reader=True)
    assert result.exit_code == 1
    lacking = {row["privilege"] for row in report(result)["rights"] if not row["granted"]}
    assert {
        "VirtualMachine.Inventory.CreateFromExisting",
        "VirtualMachine.Config.AddRemoveDevice",
        "Resource.AssignVMToPool",
        "Datastore.AllocateSpace",
        "Network.Assign",
    } <= lacking


@pytest.mark.needs("go")
def test_a_wrong_clock_is_missing(vcsim: Vcsim) -> None:
    vcsim.control(vcenter_skew_s=-30)
    result = probe(vcsim)
    assert result.exit_code == 1
    assert "the clock of vcenter is 30.0 s behind this machine's" in result.output


@pytest.mark.needs("go")
def test_a_host_whose_date_may_not_be_read_is_missing(vcsim: Vcsim) -> None:
    vcsim.control(host_date_forbidden=True)
    result = probe(vcsim)
    assert result.exit_code == 1
    assert "missing: clock of esxi:DC0_C0_H" in result.output


@pytest.mark.needs("go")
def test_counters_that_are_not_there_have_their_reason(vcsim: Vcsim) -> None:
    vcsim.control(
        hidden_counters=["mem.latency.average"], missing_counters=["cpu.costop.summation"]
    )
    rows = {row["counter"]: row for row in report(probe(vcsim, "--json"))["counters"]}
    assert rows["mem.latency.average"]["reason"] == "not offered here in realtime"
    assert "knows no counter" in rows["cpu.costop.summation"]["reason"]
    assert rows["cpu.costop.summation"]["level"] is None


@pytest.mark.needs("go")
def test_a_gpu_that_the_host_shares_has_counters(own_vcsim: Vcsim) -> None:
    host = report(probe(own_vcsim, "--json"))["vm"]["esxi_host"]
    gpu = {"pci": "0000:3b:00.0", "name": "A100", "graphics": "sharedDirect", "memory_gib": 40}
    own_vcsim.control(hosts=[{"name": host, "gpus": [gpu]}])
    rows = report(probe(own_vcsim, "--json"))["counters"]
    assert {row["available"] for row in rows if row["of"] == "gpu"} == {True}


@pytest.mark.needs("go")
@pytest.mark.parametrize(
    "method",
    [
        "FindAllByUuid",
        "RetrievePropertiesEx",
        "HasPrivilegeOnEntities",
        "CurrentTime",
        "QueryDateTime",
        "QueryOptions",
        "QueryAvailablePerfMetric",
        "Fetch",
    ],
)
def test_what_the_server_refuses_is_said_and_the_rest_stays(vcsim: Vcsim, method: str) -> None:
    with Between(vcsim) as between:
        between.spoil[method] = fault("NoPermissionFault")
        where = ("--host", vcsim.address, "--port", str(between.port), "--ca-file", vcsim.ca_file)
        uuid = "564d1234-aaaa-bbbb-cccc-0123456789ab"
        named = uuid if method == "FindAllByUuid" else VM
        result = run(*where, "--vm", named, "--json", env=vcsim.environ())
    assert method in between.seen
    assert result.exit_code == (0 if method == "QueryOptions" else 1), result.output
    assert method == "QueryOptions" or "lacks" in result.output
    assert report(result)["user"] == USER
    assert vcsim.counts["sessions"] == 0


@pytest.mark.needs("go")
def test_an_unverified_server_is_named(vcsim: Vcsim) -> None:
    where = ("--host", vcsim.address, "--port", str(vcsim.port), "--insecure", "--vm", VM)
    result = run(*where, env=vcsim.environ())
    assert "TLS: NOT VERIFIED (insecure)" in result.output
    assert "anybody in between can read the password" in result.output


@pytest.mark.needs("go")
def test_nobody_can_log_in(vcsim: Vcsim, tmp_path: Path) -> None:
    wrong = tmp_path / "password"
    wrong.write_text("wrong")
    result = probe(vcsim, "--password-file", str(wrong))
    assert result.exit_code == 2
    assert "wrong user or password" in result.output
    assert report(probe(vcsim, "--json", "--password-file", str(wrong)))["refused"]
    untrusted = run("--host", vcsim.address, "--port", str(vcsim.port), env=vcsim.environ())
    assert untrusted.exit_code == 2
    assert "is not verified" in untrusted.output
    assert "no user for vCenter vc" in run("--host", "vc").output


@pytest.mark.needs("go")
def test_a_file_and_the_environment_name_the_vcenter_too(vcsim: Vcsim, tmp_path: Path) -> None:
    path = tmp_path / "vms.toml"
    path.write_text(f'name = "x"\n[vcenter]\nhost = "nowhere"\nca_file = "{vcsim.ca_file}"\n')
    result = run(
        "--recipe",
        str(path),
        "--set",
        f"vcenter.host={vcsim.address}",
        "--set",
        "vcenter.port=1",
        *("--port", str(vcsim.port), "--vm", VM),
        env=vcsim.environ(),
    )
    assert f"logged in as {USER}" in result.output
    named = {**vcsim.environ(), "STAGESCOPE_VCENTER": vcsim.address}
    result = run("--port", str(vcsim.port), "--ca-file", vcsim.ca_file, "--vm", VM, env=named)
    assert f"logged in as {USER}" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no vCenter is named: give --host, set STAGESCOPE_VCENTER"),
        (("--recipe", "none.toml"), "no such file"),
        (("--host", "https://vc"), "without https://"),
        (("--host", "vc", "--set", "vcenter.prot=1"), "did you mean 'port'?"),
        (("--host", "vc", "--set", "vcenter.timeout_s=soon"), "vcenter.timeout_s = 'soon'"),
        (("--host", "vc", "--set", "port"), "write it as section.key=value"),
        (("--host", "vc", "--thumbprint", "ab"), "SHA-256"),
    ],
)
def test_wrong_usage_is_said_with_the_way_out(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.split())


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    for text, said in (("vcenter = 3", "is a value"), ("vcenter =", "not valid TOML")):
        path.write_text(text)
        result = run("--recipe", str(path))
        assert result.exit_code == 2
        assert said in " ".join(result.output.split())


def test_help_has_an_example() -> None:
    assert "Example: stagescope infra probe" in run("--help").output

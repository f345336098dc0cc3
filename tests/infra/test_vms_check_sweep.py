"""The linter against the simulated vCenter: what a sweep reads, and the command on top of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pyVmomi import vim

from infra.vms.apply import apply
from infra.vms.check import check
from infra.vms.destroy import destroy, find_doomed
from infra.vms.diff import plan_changes
from infra.vms.finding import Finding
from infra.vms.spec import MMIO_SIZE_GIB, STEAL_CLOCK, USE_64BIT_MMIO, VmPlan, read_plan
from infra.vsphere.session import VCenter
from tests.vcsim_server import Vcsim

pytestmark = pytest.mark.needs("go")

VM, BESIDE = "DC0_C0_RP0_VM0", "DC0_C0_RP0_VM1"
HOSTS = ("DC0_C0_H0", "DC0_C0_H1")
PROFILES = ["grid_a100-40c", "grid_a100-20c", "grid_a100-10c"]
PLAN = """
name = "lab"
[vcenter]
host = "127.0.0.1"
port = {port}
ca_file = "{ca_file}"
[defaults]
cluster = "DC0_C0"
datastore = "LocalDS_0"
cpus = 8
memory_gib = 32
networks = ["VM Network"]
[vms.trainer]
count = 2
gpus = [{{ kind = "vgpu", profile = "grid_a100-40c" }}]
"""


def gpu(slot: int, **fields: Any) -> dict[str, Any]:
    said = {
        "pci": f"0000:{0x3B + slot:02x}:00.0",
        "name": "NVIDIA A100-PCIE-40GB",
        "device_id": 0x20F1,
        "memory_gib": 39.6,
        "graphics": "sharedDirect",
        "profiles": PROFILES,
        "numa_node": slot % 2,
    }
    return {**said, **fields}


def equip(server: Vcsim, *gpus: dict[str, Any], names: tuple[str, ...] = HOSTS) -> None:
    size = {"cores": 64, "mhz": 2500, "memory_gib": 512, "numa_nodes": 2}
    server.control(hosts=[{"name": name, **size, "gpus": list(gpus)} for name in names])


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Vcsim]:
    with Vcsim(clusters=1, hosts=2, machines=2, standalone=0) as own:
        yield own


@pytest.fixture
def server(shared_server: Vcsim) -> Vcsim:
    equip(shared_server, gpu(0))
    return shared_server


@pytest.fixture
def vcenter(server: Vcsim) -> Iterator[VCenter]:
    with VCenter(server.settings(), environ=server.environ()) as session:
        yield session


@pytest.fixture
def plan(server: Vcsim, tmp_path: Path) -> Path:
    path = tmp_path / "vms.toml"
    path.write_text(PLAN.format(port=server.port, ca_file=server.ca_file))
    return path


def wait(task: Any) -> None:
    while task.info.state in {"running", "queued"}:
        time.sleep(0.01)
    assert task.info.state == "success", task.info.error


def named(vcenter: VCenter, name: str) -> Any:
    rows = vcenter.retrieve(vim.VirtualMachine, ["name"])
    return next(ref for ref, row in rows if row["name"] == name)


def off(vcenter: VCenter, name: str) -> Any:
    ref = named(vcenter, name)
    if ref.runtime.powerState == "poweredOn":
        wait(ref.PowerOffVM_Task())
    return ref


def give(vcenter: VCenter, name: str, backing: Any, **fields: Any) -> None:
    """Change a VM by hand, as somebody would who knows none of the rules."""
    ref = off(vcenter, name)
    operation = vim.vm.device.VirtualDeviceSpec.Operation
    old = [
        vim.vm.device.VirtualDeviceSpec(operation=operation.remove, device=one)
        for one in ref.config.hardware.device
        if isinstance(one, vim.vm.device.VirtualPCIPassthrough)
    ]
    device = vim.vm.device.VirtualPCIPassthrough(key=-1, backing=backing)
    new = vim.vm.device.VirtualDeviceSpec(operation=operation.add, device=device)
    bare = [option(key, "") for key in (USE_64BIT_MMIO, MMIO_SIZE_GIB)]
    spec = vim.vm.ConfigSpec(deviceChange=[*old, new], extraConfig=bare, **fields)
    wait(ref.ReconfigVM_Task(spec))


def vgpu(profile: str) -> Any:
    return vim.vm.device.VirtualPCIPassthrough.VmiopBackingInfo(vgpu=profile)


def rules(found: list[Finding]) -> dict[str, Finding]:
    return {one.rule: one for one in found}


def option(key: str, value: str) -> Any:
    return vim.option.OptionValue(key=key, value=value)


def test_a_vm_made_by_hand_and_put_right(vcenter: VCenter) -> None:
    give(vcenter, VM, vgpu("grid_a100-10c"), firmware="bios", numCPUs=8, memoryMB=32768)
    found = rules(check(vcenter, None, [VM]))
    assert {"firmware", "memory-reservation", "mmio-64bit", "mmio-size"} <= set(found)
    assert (found["steal-clock"].value, found["steal-clock"].severity) == ("not set", "note")
    assert found["memory-reservation"].value == "false, 0 MB reserved"
    assert found["mmio-size"].wanted == "128"  # the host's GPU has 40 GiB, its share 10
    wait(
        named(vcenter, VM).ReconfigVM_Task(
            vim.vm.ConfigSpec(
                firmware="efi",
                memoryReservationLockedToMax=True,
                memoryAllocation=vim.ResourceAllocationInfo(reservation=32768),
                extraConfig=[
                    option(USE_64BIT_MMIO, "TRUE"),
                    option(MMIO_SIZE_GIB, "128"),
                    option(STEAL_CLOCK, "TRUE"),
                ],
            )
        )
    )
    left = rules(check(vcenter, None, [VM]))
    assert set(left) <= {"graphics-mode", "numa-gpu", "stranded"}
    assert {one.severity for one in left.values()} == {"note"}


def test_the_sweep_reads_the_hosts_gpus_and_nodes(server: Vcsim, vcenter: VCenter) -> None:
    equip(server, gpu(0, graphics="shared", numa_node=1))
    give(vcenter, VM, vgpu("grid_a100-40c"))
    found = rules(check(vcenter, None, [VM]))
    assert found["graphics-mode"].value == "0000:3b:00.0: shared"
    assert found["numa-gpu"].wanted == "1"
    give(vcenter, VM, vgpu("grid_a100-7c"))
    found = rules(check(vcenter, None, [VM]))
    assert found["profile-offered"].value == ", ".join(PROFILES)


def test_a_gpu_that_others_use_has_no_room(server: Vcsim, vcenter: VCenter) -> None:
    give(vcenter, BESIDE, vgpu("grid_a100-10c"))
    wait(named(vcenter, BESIDE).PowerOnVM_Task())
    equip(server, gpu(0, in_use_by=[BESIDE]))
    give(vcenter, VM, vgpu("grid_a100-40c"))
    one = rules(check(vcenter, None, [VM]))["capacity"]
    assert "0000:3b:00.0 is taken by vGPUs of grid_a100-10c" in one.value
    off(vcenter, BESIDE)
    equip(server, gpu(0))
    assert "capacity" not in rules(check(vcenter, None, [VM]))


def test_a_passed_through_device_has_to_be_active(server: Vcsim, vcenter: VCenter) -> None:
    backing = vim.vm.device.VirtualPCIPassthrough.DeviceBackingInfo(
        id="0000:3b:00.0", deviceId="20f1", systemId="x", vendorId=0x10DE
    )
    give(vcenter, VM, backing)
    one = rules(check(vcenter, None, [VM]))["capacity"]
    assert "0000:3b:00.0 is not active for passthrough" in one.value
    equip(server, gpu(0, graphics="direct", passthrough=True))
    found = rules(check(vcenter, None, [VM]))
    assert "capacity" not in found
    assert found["mmio-size"].wanted == "128"


def test_latency_sensitivity_high_by_hand(vcenter: VCenter) -> None:
    ref = off(vcenter, BESIDE)
    wait(
        ref.ReconfigVM_Task(
            vim.vm.ConfigSpec(numCPUs=4, latencySensitivity=vim.LatencySensitivity(level="high"))
        )
    )
    found = rules(check(vcenter, None, [BESIDE]))
    assert found["latency-cpu"].wanted == "10000 MHz (4 x 2500)"


def test_vms_that_are_not_there_are_checked_as_planned(
    server: Vcsim, vcenter: VCenter, plan: Path
) -> None:
    wanted = read_plan(plan)
    found = check(vcenter, wanted)
    assert {one.severity for one in found} <= {"note"}
    equip(server, gpu(0), names=HOSTS[:1])
    equip(server, names=HOSTS[1:])
    (one,) = [one for one in check(vcenter, wanted) if one.rule == "profile-offered"]
    assert one.vm == "trainer-1" or one.vm == "trainer-2"
    assert one.host == HOSTS[1]


def test_applied_vms_have_no_fault_and_a_spoilt_one_is_mended_as_said(
    vcenter: VCenter, plan: Path
) -> None:
    wanted = read_plan(plan)
    apply(vcenter, wanted)
    try:
        assert {one.severity for one in check(vcenter, wanted)} <= {"note"}
        spoil(vcenter)
        found = [one for one in check(vcenter, wanted) if one.severity == "error"]
        assert {one.rule for one in found} == {"memory-reservation", "mmio-64bit", "mmio-size"}
        changes = {
            f"{one.attribute} = {one.wanted}" for one in plan_changes(vcenter, wanted).changes
        }
        for one in found:
            assert one.fix.partition(", with the VM off")[0].removeprefix("apply sets ") in changes
    finally:
        destroy(vcenter, find_doomed(vcenter, wanted))


def spoil(vcenter: VCenter) -> None:
    ref = off(vcenter, "trainer-1")
    wait(
        ref.ReconfigVM_Task(
            vim.vm.ConfigSpec(
                memoryReservationLockedToMax=False,
                memoryAllocation=vim.ResourceAllocationInfo(reservation=0),
                extraConfig=[option(USE_64BIT_MMIO, ""), option(MMIO_SIZE_GIB, "64")],
            )
        )
    )


def invoke(server: Vcsim, *arguments: str) -> Any:
    from pipeline.cli import main

    return CliRunner(env=server.environ()).invoke(main, ["infra", "check", *arguments])


def test_the_command_and_its_exit_codes(server: Vcsim, vcenter: VCenter, plan: Path) -> None:
    give(vcenter, VM, vgpu("grid_a100-40c"), firmware="bios")
    where = ("--host", "127.0.0.1", "--port", str(server.port), "--ca-file", server.ca_file)
    done = invoke(server, "--vm", VM, *where)
    assert done.exit_code == 1
    assert f"error {VM} on " in done.output
    assert "wanted efi" in " ".join(done.output.split())
    assert "apply does it in a plan that has the VM" in " ".join(done.output.split())
    said = json.loads(invoke(server, "--vm", VM, *where, "--json").output)["findings"]
    assert said[0]["severity"] == "error"
    assert {"vm", "host", "rule", "setting", "value", "wanted", "why", "fix", "source"} <= set(
        said[0]
    )
    ignored = [word for rule in {one["rule"] for one in said} for word in ("--ignore", rule)]
    done = invoke(server, "--vm", VM, *where, *ignored)
    assert (done.exit_code, done.output) == (0, "nothing found\n")
    done = invoke(server, str(plan))
    found = json.loads(invoke(server, str(plan), "--json").output)["findings"]
    assert {one["severity"] for one in found} == {"note"}
    assert done.exit_code == 0, done.output  # notes alone are nothing to mend


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name a PLAN, or a VM with --vm"),
        (["--vm", "no-such-vm"], "no-such-vm"),
        (["--vm", VM, "--ignore", "firmwear"], "--ignore firmwear: no such rule"),
        (["no-such-plan.toml"], "--ca-file: with PLAN the vCenter is the plan's"),
    ],
)
def test_wrong_usage_is_two(server: Vcsim, arguments: list[str], said: str) -> None:
    where = ("--host", "127.0.0.1", "--port", str(server.port), "--ca-file", server.ca_file)
    done = invoke(server, *arguments, *where)
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_no_such_plan_and_no_such_vcenter_are_two(server: Vcsim, plan: Path) -> None:
    assert "no such file" in invoke(server, "no-such-plan.toml").output
    away = invoke(server, str(plan), "--set", "vcenter.port=1")
    assert away.exit_code == 2, away.output


def test_the_list_of_rules_needs_no_vcenter(server: Vcsim) -> None:
    done = invoke(server, "--rules", "--json")
    assert done.exit_code == 0
    assert {"rule": "stranded"}.items() <= json.loads(done.output)[-1].items()
    assert "numa-fit" in invoke(server, "--rules").output


def test_nothing_is_left_on_the_server(server: Vcsim) -> None:
    before = server.counts.get("views_left", 0)
    with VCenter(server.settings(), environ=server.environ()) as session:
        check(session, None, [VM])
    counts = server.counts
    assert (counts.get("sessions", 0), counts.get("views", 0)) == (0, 0)
    assert counts.get("views_left", 0) == before
    assert counts.get("tasks", 0) == server.counts.get("tasks", 0)


def test_a_reader_may_check(server: Vcsim, plan: Path) -> None:
    wanted: VmPlan = read_plan(plan)
    with VCenter(server.settings(), environ=server.environ(reader=True)) as session:
        assert check(session, wanted, [VM])

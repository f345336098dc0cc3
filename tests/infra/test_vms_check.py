"""The linter for GPU VMs: each rule on plain facts, then whole sweeps of a simulated vCenter."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.vms.boards import belongs_to, board_memory_gib, nominal_gib, profile_board
from infra.vms.capacity import Refused, claim, fill, room
from infra.vms.check import Checked, lint
from infra.vms.facts import HostFacts, HostGpu, NumaNode, VmFacts, VmGpu, planned_vm
from infra.vms.finding import Finding
from infra.vms.rules import RULE_NAMES, RULES, host_findings, stranded_findings, vm_findings
from infra.vms.spec import (
    MMIO_SIZE_GIB,
    STEAL_CLOCK,
    USE_64BIT_MMIO,
    Disk,
    Gpu,
    Guest,
    Machine,
    Numa,
    VmSpec,
    read_plan,
)

GIB = 1024
PROFILES = ("grid_a100-40c", "grid_a100-20c", "grid_a100-10c", "grid_a100-3-20c", "grid_a100-1-5c")


def a100(slot: int = 0, **fields: Any) -> HostGpu:
    said = {
        "address": f"0000:{0x3B + slot:02x}:00.0",
        "name": "NVIDIA A100-PCIE-40GB",
        "device_id": "10de:20f1",
        "memory_gib": 39.6,  # what the driver reports of 40
        "mode": "sharedDirect",
        "numa_node": slot % 2,
    }
    return HostGpu(**{**said, **fields})


def host(**fields: Any) -> HostFacts:
    said = {
        "name": "esx1",
        "cluster": "C0",
        "cores": 64,
        "mhz": 2500,
        "memory_mib": 512 * GIB,
        "nodes": tuple(NumaNode(node=one, cores=32, memory_mib=256 * GIB) for one in (0, 1)),
        "default_graphics": "sharedDirect",
        "assignment_policy": "performance",
        "profiles": PROFILES,
        "gpus": (a100(0), a100(1)),
    }
    return HostFacts(**{**said, **fields})


def vgpu(profile: str = "grid_a100-40c") -> VmGpu:
    return VmGpu(kind="vgpu", profile=profile)


def vm(**fields: Any) -> VmFacts:
    """A GPU VM without fault; whatever its ``extra_config``, it has the steal clock."""
    said = {
        "name": "trainer",
        "cpus": 16,
        "memory_mib": 128 * GIB,
        "memory_reserved_mib": 128 * GIB,
        "memory_locked": True,
        "extra_config": {
            USE_64BIT_MMIO: "TRUE",
            MMIO_SIZE_GIB: "128",
            "numa.nodeAffinity": "0",
        },
        "gpus": (vgpu(),),
    }
    made = VmFacts(**{**said, **fields})
    return replace(made, extra_config={STEAL_CLOCK: "TRUE", **made.extra_config})


def said(found: list[Finding]) -> list[tuple[str, str]]:
    return [(one.rule, one.severity) for one in found]


def of(found: list[Finding], rule: str) -> Finding:
    (one,) = [one for one in found if one.rule == rule]
    return one


def test_a_vm_without_fault_has_no_finding() -> None:
    assert vm_findings(vm()) == []
    assert host_findings(vm(), host()) == []


def test_a_vm_without_gpus_is_not_held_to_their_rules() -> None:
    plain = vm(gpus=(), firmware="bios", memory_locked=False, extra_config={})
    assert vm_findings(plain) == []
    assert host_findings(plain, host()) == []


def test_gpus_need_efi() -> None:
    (one,) = vm_findings(vm(firmware="bios"))
    assert (one.rule, one.setting, one.value, one.wanted) == ("firmware", "firmware", "bios", "efi")
    assert one.severity == "error"
    assert one.source.startswith("https://")


@pytest.mark.parametrize(
    ("reserved", "severity"), [(0, "error"), (64 * GIB, "error"), (128 * GIB, "warning")]
)
def test_all_memory_is_reserved_and_stays_so(reserved: int, severity: str) -> None:
    (one,) = vm_findings(vm(memory_locked=False, memory_reserved_mib=reserved))
    assert (one.rule, one.severity) == ("memory-reservation", severity)
    assert one.setting == "memoryReservationLockedToMax"


def test_the_fix_is_what_apply_would_make_for_a_vm_of_a_plan() -> None:
    broken = vm(firmware="bios")
    assert "in a plan that has the VM" in vm_findings(broken)[0].fix
    (one,) = vm_findings(replace(broken, kind="trainer"))
    assert one.fix == "apply sets firmware = efi, with the VM off"


@pytest.mark.parametrize("value", [None, "FALSE", "0"])
def test_64_bit_mmio_is_switched_on(value: str | None) -> None:
    config = {MMIO_SIZE_GIB: "128"} | ({USE_64BIT_MMIO: value} if value else {})
    (one,) = vm_findings(vm(extra_config=config))
    assert (one.setting, one.wanted, one.severity) == (USE_64BIT_MMIO, "TRUE", "error")


def test_64_bit_mmio_of_a_small_gpu_is_a_warning() -> None:
    small = VmGpu(kind="passthrough", ids=("10de:1eb8",), memory_gib=16)
    (one,) = vm_findings(vm(extra_config={}, gpus=(small,)))
    assert one.severity == "warning"


@pytest.mark.parametrize(
    ("name", "memory_gib", "gpus", "wanted"),
    [
        # NVIDIA's table of the MMIO space that a GPU needs (AI Enterprise release notes).
        ("NVIDIA H200", 140.4, 1, 512),
        ("NVIDIA H100 PCIe", 79.6, 1, 256),
        ("NVIDIA A100-SXM4-80GB", 80, 1, 256),
        ("NVIDIA A100-PCIE-40GB", 39.6, 1, 128),
        ("NVIDIA L40", 45, 1, 128),
        ("NVIDIA A40", 45, 1, 128),
        ("NVIDIA L4", 22.5, 1, 64),
        ("NVIDIA A30", 24, 1, 64),
        ("NVIDIA A10", 22.5, 1, 64),
        ("Tesla V100 32GB", 32, 1, 64),
        # ... for each of several.
        ("NVIDIA A100-PCIE-40GB", 39.6, 3, 384),
        ("NVIDIA H100 PCIe", 79.6, 8, 2048),
    ],
)
def test_mmio_size_is_the_next_power_of_two_doubled_for_each_gpu(
    name: str, memory_gib: float, gpus: int, wanted: int
) -> None:
    device = a100(0, name=name, memory_gib=memory_gib, device_id="10de:ffff", mode="direct")
    of_vm = (VmGpu(kind="passthrough", ids=("10de:ffff",)),) * gpus
    there = host(gpus=(replace(device, passthrough=True),), nodes=())
    broken = vm(gpus=of_vm, extra_config={USE_64BIT_MMIO: "TRUE"})
    one = of(host_findings(broken, there), "mmio-size")
    assert (one.wanted, one.severity) == (str(wanted), "error")
    assert one.value == "not set (32 by default)"
    enough = replace(broken, extra_config={USE_64BIT_MMIO: "TRUE", MMIO_SIZE_GIB: str(wanted)})
    assert "mmio-size" not in [one.rule for one in host_findings(enough, there)]
    less = replace(broken, extra_config={USE_64BIT_MMIO: "TRUE", MMIO_SIZE_GIB: str(wanted // 2)})
    assert of(host_findings(less, there), "mmio-size").value == str(wanted // 2)


def test_mmio_size_follows_the_gpu_and_not_the_share_of_it() -> None:
    broken = vm(gpus=(vgpu("grid_a100-10c"),), extra_config={USE_64BIT_MMIO: "TRUE"})
    assert of(host_findings(broken, host()), "mmio-size").wanted == "128"


def test_mmio_size_that_the_default_covers_is_a_note() -> None:
    t4 = a100(0, name="Tesla T4", memory_gib=15, device_id="10de:1eb8")
    small = vm(
        gpus=(VmGpu(kind="dynamic", ids=("10de:1eb8",)),), extra_config={USE_64BIT_MMIO: "TRUE"}
    )
    one = of(host_findings(small, host(gpus=(replace(t4, passthrough=True),))), "mmio-size")
    assert (one.wanted, one.severity) == ("32", "note")


def test_latency_sensitivity_high_needs_all_memory_and_cpu() -> None:
    high = vm(latency="high", gpus=(), memory_locked=False, memory_reserved_mib=0)
    assert said(vm_findings(high)) == [("latency-memory", "error")]
    one = of(host_findings(high, host()), "latency-cpu")
    assert (one.value, one.wanted) == ("0 MHz", "40000 MHz (16 x 2500)")
    assert one.fix.startswith("cpu_reservation_mhz = 40000: apply")
    reserved = replace(high, memory_locked=True, cpu_reserved_mhz=40000)
    assert vm_findings(reserved) == []
    assert host_findings(reserved, host()) == []


@pytest.mark.parametrize(("value", "shown"), [(None, "not set"), ("FALSE", "FALSE")])
def test_a_vm_counts_what_was_stolen_from_it(value: str | None, shown: str) -> None:
    config = {} if value is None else {STEAL_CLOCK: value}
    (one,) = vm_findings(replace(vm(gpus=()), extra_config=config))
    assert (one.rule, one.setting, one.severity) == ("steal-clock", STEAL_CLOCK, "note")
    assert (one.value, one.wanted) == (shown, "TRUE")
    assert f'extra_config = {{ "{STEAL_CLOCK}" = "TRUE" }}, then apply --power-off' in one.fix
    assert "powered off and on" in one.fix
    assert vm_findings(replace(vm(gpus=()), extra_config={STEAL_CLOCK: "true"})) == []


def test_a_planned_vm_has_the_steal_clock_unless_its_plan_says_no() -> None:
    for config, rules in (({}, []), ({STEAL_CLOCK: "FALSE"}, ["steal-clock"])):
        spec = VmSpec(extra_config=config)
        planned = planned_vm(Machine(name="a", key="a", index=0, spec=spec))
        assert [one.rule for one in vm_findings(planned)] == rules


def test_virtual_hyperthreads_need_half_of_the_cores() -> None:
    shared = vm(latency="high", threads_per_core=2, cpu_reserved_mhz=20000)
    assert host_findings(shared, host()) == []
    assert said(host_findings(replace(shared, cpu_reserved_mhz=19999), host())) == [
        ("latency-cpu", "error")
    ]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"cpus": 32}, None),  # just one node
        ({"cpus": 48, "memory_mib": 300 * GIB}, None),  # ESXi makes two nodes of 24 by itself
        ({"cpus": 33}, "a multiple of 2, or within 32 cores, 256 GiB"),
        ({"cpus": 16, "memory_mib": 300 * GIB}, "8"),  # the cores fit one node, the memory not
        ({"cpus": 48, "cores_per_numa_node": 48}, "24"),
        ({"cpus": 48, "cores_per_numa_node": 24}, None),
        ({"cpus": 16, "memory_mib": 300 * GIB, "cores_per_numa_node": 8}, None),
    ],
)
def test_numa_fit(fields: dict[str, Any], wanted: str | None) -> None:
    plain = vm(gpus=(), memory_locked=False, memory_reserved_mib=0, extra_config={}, **fields)
    found = host_findings(plain, host())
    if wanted is None:
        assert found == []
    else:
        assert (of(found, "numa-fit").wanted, len(found)) == (wanted, 1)


@pytest.mark.parametrize(
    ("affinity", "severity"), [("1", None), ("", "note"), ("0,1", "note"), ("0", "warning")]
)
def test_a_vm_belongs_on_the_node_of_its_gpu(affinity: str, severity: str | None) -> None:
    device = a100(1, passthrough=True, mode="direct")
    config = {USE_64BIT_MMIO: "TRUE", MMIO_SIZE_GIB: "128", "numa.nodeAffinity": affinity}
    passed = vm(
        gpus=(VmGpu(kind="passthrough", address=device.address),),
        extra_config={key: value for key, value in config.items() if value},
    )
    found = host_findings(passed, host(gpus=(device,)))
    assert said(found) == ([] if severity is None else [("numa-gpu", severity)])


def test_gpus_of_two_nodes_are_far_from_a_vm_within_one() -> None:
    devices = (a100(0, passthrough=True), a100(1, passthrough=True))
    gpus = tuple(VmGpu(kind="passthrough", address=one.address) for one in devices)
    config = {USE_64BIT_MMIO: "TRUE", MMIO_SIZE_GIB: "256"}
    found = host_findings(vm(gpus=gpus, extra_config=config), host(gpus=devices))
    assert said(found) == [("numa-gpu", "note")]
    assert "nodes 0, 1" in found[0].value
    advised = vm(gpus=gpus, extra_config=config, cores_per_numa_node=4)
    assert advised.cpus > 4
    assert host_findings(advised, host(gpus=devices)) == []


def test_vgpus_need_shared_direct() -> None:
    there = host(gpus=(a100(0, mode="shared"), a100(1, mode="shared")), default_graphics="shared")
    (one,) = host_findings(vm(), there)  # and nothing of capacity on top
    assert (one.rule, one.severity, one.wanted) == ("graphics-mode", "error", "sharedDirect")
    assert "0000:3b:00.0: shared" in one.value
    assert "esx1" in one.fix


def test_a_default_of_shared_is_a_note_where_the_gpus_are_right() -> None:
    (one,) = host_findings(vm(), host(default_graphics="shared"))
    assert (one.setting, one.severity) == ("graphicsConfig.hostDefaultGraphicsType", "note")


def test_gpus_without_a_mode_of_their_own_have_the_default() -> None:
    there = host(gpus=(a100(0, mode=None),), default_graphics="shared")
    assert of(host_findings(vm(), there), "graphics-mode").severity == "error"


def test_a_profile_that_the_host_does_not_offer() -> None:
    (one,) = host_findings(vm(gpus=(vgpu("grid_a100-8c"),)), host())
    assert (one.rule, one.wanted) == ("profile-offered", "grid_a100-8c")
    assert one.value == ", ".join(PROFILES)


def test_sizes_mixed_on_one_gpu() -> None:
    mixed = a100(0, profiles=("grid_a100-20c", "grid_a100-10c"))
    mine = vm(gpus=(vgpu("grid_a100-20c"),))
    there = host(gpus=(mixed,), vms=(mine,))
    one = of(host_findings(mine, there), "profile-mix")
    assert one.severity == "error"
    allowed = host(gpus=(replace(mixed, vgpu_mode="mixedSize"),), vms=(mine,))
    assert "profile-mix" not in [one.rule for one in host_findings(mine, allowed)]


def test_a_gpu_is_locked_to_the_size_of_its_first_vgpu() -> None:
    locked = a100(0, profiles=("grid_a100-10c",))
    assert room(locked, "grid_a100-10c") == 3
    assert room(locked, "grid_a100-20c") == 0
    assert room(replace(locked, vgpu_mode="mixedSize"), "grid_a100-20c") == 1
    one = of(host_findings(vm(gpus=(vgpu("grid_a100-20c"),)), host(gpus=(locked,))), "capacity")
    assert "taken by vGPUs of grid_a100-10c" in one.value
    assert one.severity == "error"


@pytest.mark.parametrize(
    ("taken", "profile", "left"),
    [
        ((), "grid_a100-1-5c", 7),
        ((), "grid_a100-2-10c", 3),
        ((), "grid_a100-3-20c", 2),  # by memory slices: 4 of 8 each
        ((), "grid_a100-4-20c", 1),
        ((), "grid_a100-7-40c", 1),
        (("grid_a100-3-20c",), "grid_a100-1-5c", 4),
        (("grid_a100-3-20c",), "grid_a100-4-20c", 1),
        (("grid_a100-4-20c",), "grid_a100-4-20c", 0),
        (("grid_a100-3-20c", "grid_a100-2-10c"), "grid_a100-1-5c", 2),
        (("grid_a100-7-40c",), "grid_a100-1-5c", 0),
        (("grid_a100-1-5c",) * 7, "grid_a100-1-5c", 0),  # one memory slice stays unused
        (("grid_a100-10c",), "grid_a100-1-5c", 0),  # time-sliced
        (("grid_a100-1-5c",), "grid_a100-10c", 0),
    ],
)
def test_mig_is_counted_in_slices(taken: tuple[str, ...], profile: str, left: int) -> None:
    assert room(a100(0, profiles=taken), profile) == left


def test_mig_mode_of_an_empty_gpu_decides() -> None:
    assert room(a100(0, vgpu_mode="multiInstanceGpu"), "grid_a100-40c") == 0
    assert room(a100(0, vgpu_mode="sameSize"), "grid_a100-1-5c") == 0
    there = host(gpus=(a100(0, vgpu_mode="multiInstanceGpu"),))
    assert "nvidia-smi -mig 0" in of(host_findings(vm(), there), "capacity").why


def test_an_a30_has_four_slices() -> None:
    a30 = a100(0, name="NVIDIA A30", memory_gib=24)
    assert room(a30, "grid_a30-1-6c") == 4
    assert room(a30, "grid_a30-2-12c") == 2
    assert room(replace(a30, profiles=("grid_a30-2-12c",)), "grid_a30-1-6c") == 2


def test_vgpus_are_spread_or_consolidated_as_the_host_is_set() -> None:
    half = vm(name="one", gpus=(vgpu("grid_a100-20c"),))
    for policy, expected in (("performance", [1, 1]), ("consolidation", [2, 0])):
        there = host(assignment_policy=policy)
        for name in ("one", "two"):
            taken = claim(there, replace(half, name=name))
            assert isinstance(taken, HostFacts)
            there = taken
        assert [len(gpu.profiles) for gpu in there.gpus] == expected


def test_capacity_names_what_is_missing() -> None:
    def missing(mine: VmFacts, there: HostFacts) -> tuple[str, str]:
        refused = claim(there, mine)
        assert isinstance(refused, Refused)
        return refused.what, refused.value

    full = host(gpus=(a100(0, profiles=("grid_a100-40c",)),))
    assert missing(vm(), full) == ("GPU", "0000:3b:00.0 has 0 GiB free")
    assert missing(vm(memory_mib=600 * GIB), host()) == ("memory", "512 GiB unreserved")
    busy = host(vms=(vm(name="other", cpus=60, gpus=()),))
    assert missing(vm(), busy) == ("cores", "4 of 64")
    assert of(host_findings(vm(), busy), "capacity").severity == "warning"
    passed = VmGpu(kind="passthrough", address="0000:3b:00.0")
    assert missing(vm(gpus=(passed,)), host())[1] == "0000:3b:00.0 is not active for passthrough"
    given = host(gpus=(a100(0, passthrough=True, passed_to="other"),))
    assert "passed through to other" in missing(vm(gpus=(passed,)), given)[1]
    assert missing(vm(gpus=(replace(passed, address="0000:ff:00.0"),)), host())[1] == (
        "no such device"
    )


def test_a_running_vm_is_not_asked_for_room() -> None:
    mine = vm(powered_on=True)
    there = host(gpus=(a100(0, profiles=("grid_a100-40c",)),), vms=(mine,))
    assert host_findings(mine, there) == []


def test_a_dynamic_gpu_needs_a_free_device_with_its_label() -> None:
    devices = tuple(a100(slot, passthrough=True, label=f"rack{slot}") for slot in (0, 1))
    wanted = VmGpu(kind="dynamic", ids=("10de:20f1",), label="rack1")
    taken = claim(host(gpus=devices), vm(gpus=(wanted,)))
    assert isinstance(taken, HostFacts)
    assert [gpu.passed_to for gpu in taken.gpus] == [None, "trainer"]
    again = claim(taken, vm(name="second", gpus=(wanted,)))
    assert isinstance(again, Refused)
    assert "passed through to trainer" in again.value


def test_stranded_frame_buffer_is_counted() -> None:
    # Two GPUs of 40 GiB and VMs with 40c and 40 cores: the second GPU finds no cores.
    (one,) = stranded_findings(host(), [vm(cpus=40)])
    assert one.rule == "stranded"
    assert one.severity == "warning"
    assert one.value == ("40 GiB of frame buffer (1 whole GPUs), 24 cores, 384 GiB of memory")
    assert "after 1 further VMs" in one.why
    assert "cores run out" in one.why


def test_stranded_by_memory() -> None:
    (one,) = stranded_findings(host(), [vm(cpus=8, memory_mib=300 * GIB)])
    assert one.value == "40 GiB of frame buffer (1 whole GPUs), 56 cores, 212 GiB of memory"
    assert "memory runs out" in one.why


def test_a_gpu_locked_to_another_size_is_stranded() -> None:
    there = host(gpus=(a100(0, profiles=("grid_a100-10c",)),))
    (one,) = stranded_findings(there, [vm(gpus=(vgpu("grid_a100-20c"),))])
    assert one.value.startswith("30 GiB of frame buffer (0 whole GPUs)")
    assert (one.severity, "no GPU takes one" in one.why) == ("note", True)


def test_cores_and_memory_without_a_gpu_are_stranded() -> None:
    (one,) = stranded_findings(host(), [vm(cpus=4, memory_mib=32 * GIB)])
    assert one.setting == "stranded cores and memory of esx1"
    assert one.value == "0 GiB of frame buffer (0 whole GPUs), 56 cores, 448 GiB of memory"
    assert one.severity == "note"


def test_nothing_is_stranded_where_all_divides() -> None:
    assert stranded_findings(host(), [vm(cpus=32, memory_mib=256 * GIB)]) == []
    assert stranded_findings(host(gpus=()), [vm()]) == []
    assert stranded_findings(host(), [vm(gpus=())]) == []


def test_several_kinds_are_filled_in_the_largest_first() -> None:
    small = vm(name="small", kind="small", cpus=4, memory_mib=8 * GIB, gpus=(vgpu(PROFILES[2]),))
    left = fill(host(), [small, vm(cpus=40)])
    assert left.further == 5  # one of 40c, and four of 10c on the other GPU
    assert (left.frame_buffer_gib, left.cores) == (0, 8)


def test_planned_vms_take_from_each_other() -> None:
    hosts = {name: host(name=name, gpus=(a100(0),), nodes=()) for name in ("esx1", "esx2")}
    planned = [vm(name=f"trainer-{one}", kind="trainer", planned=True) for one in (1, 2, 3)]
    found = lint([Checked(vm=one, hosts=tuple(hosts)) for one in planned], hosts)
    (one,) = [one for one in found if one.rule == "capacity"]
    assert one.vm == "trainer-3"
    assert "has 0 GiB free" in one.value


def test_the_gravest_come_first() -> None:
    found = lint(
        [Checked(vm=vm(firmware="bios", memory_locked=False), hosts=("esx1",))],
        {"esx1": host(default_graphics="shared")},
    )
    assert [one.severity for one in found] == sorted(
        (one.severity for one in found), key=["error", "warning", "note"].index
    )


def test_what_is_the_same_of_several_vms_is_said_once() -> None:
    there = {"esx1": host(default_graphics="shared", gpus=(a100(0), a100(1)))}
    planned = [vm(name=name, kind="trainer", planned=True) for name in ("one", "two")]
    found = lint([Checked(vm=one, hosts=("esx1",)) for one in planned], there)
    (note,) = [one for one in found if one.rule == "graphics-mode"]
    assert note.vm == "one, two"


def test_every_rule_has_a_source_and_a_name_of_its_own() -> None:
    assert len(set(RULE_NAMES)) == len(RULE_NAMES) == len(RULES) + 1
    assert all(rule.source.startswith("https://") for rule in RULES)
    assert all((rule.vm is None) != (rule.host is None) for rule in RULES)


@pytest.mark.parametrize(
    ("profile", "board", "memory_gib"),
    [
        ("grid_a100-40c", "a100", 40),
        ("grid_a100d-3-40c", "a100d", 80),
        ("grid_a100-1-5cme", "a100", 40),
        ("grid_rtx8000-12q", "rtx8000", 48),
        ("nvidia_h100xm-80c", "h100xm", 80),
        ("grid_t4-16q", "t4", 16),
        ("something else", None, None),
    ],
)
def test_the_board_is_in_the_profiles_name(
    profile: str, board: str | None, memory_gib: float | None
) -> None:
    assert profile_board(profile) == board
    assert board_memory_gib(profile) == memory_gib


def test_boards_and_devices_are_joined_by_name() -> None:
    assert belongs_to("grid_a100-40c", "NVIDIA A100-PCIE-40GB")
    assert belongs_to("grid_l40s-48c", "NVIDIA L40S")
    assert belongs_to("grid_t4-16q", "NVIDIA A100-PCIE-40GB") is False
    assert belongs_to("grid_a10-24c", "NVIDIA A100-PCIE-40GB") is False
    assert belongs_to("grid_a100-40c", "") is None
    assert [nominal_gib(one) for one in (39.6, 22.5, 79.6, 15.0, 12.0, 94.0)] == [
        *(40, 24, 80, 16, 12, 94),
    ]


PAGE = Path(__file__).parents[2] / "docs/vms.md"


def test_the_page_tells_of_every_rule_and_every_key() -> None:
    text = PAGE.read_text()
    rules = re.findall(r"^\| `([a-z0-9-]+)` \|", text.partition("## The linter")[2], re.MULTILINE)
    assert tuple(rules) == RULE_NAMES
    sections = (VmSpec, Disk, Numa, Gpu, Guest)
    told = re.findall(r"^\| `(\w+)` \|", text.partition("## The linter")[0], re.MULTILINE)
    assert sorted(told) == sorted(key for one in sections for key in one.model_fields)


def test_the_plan_of_the_page_is_one(tmp_path: Path) -> None:
    (code,) = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    path = tmp_path / "vms.toml"
    path.write_text(code)
    assert [one.name for one in read_plan(path).machines()] == ["head", "trainer-1", "trainer-2"]

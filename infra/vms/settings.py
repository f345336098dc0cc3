"""The attributes of a VM that its configuration has as values, in one table.

How each is read, what a plan wants of it, how it is written, and whether a running VM has to be
powered off for it. Attributes are named as the plan names them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from infra.vms.estate import MIB_PER_GIB, NUMA_KEY, EsxiHost, VmState
from infra.vms.spec import Machine


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the table's functions look at: a VM of the plan and where it is or will be."""

    machine: Machine
    hosts: tuple[EsxiHost, ...]
    """The one that it is on, else those that it may come to."""
    vm: VmState | None

    @property
    def mhz(self) -> int:
        """Nominal frequency of its host; of hosts that differ, one that all can give."""
        return min(host.mhz for host in self.hosts)

    @property
    def numa_cores(self) -> int:
        nodes = self.machine.spec.numa.nodes
        return self.machine.spec.cpus // nodes if nodes else 0

    @property
    def memory_reserved(self) -> tuple[bool, int]:
        """Locked to all of the memory, and how much that is, MiB."""
        spec = self.machine.spec
        if spec.memory_locked:
            return True, spec.memory_gib * MIB_PER_GIB
        assert isinstance(spec.memory_reservation_gib, int)
        return False, spec.memory_reservation_gib * MIB_PER_GIB

    @property
    def cpu_reserved(self) -> int:
        spec = self.machine.spec
        if spec.cpu_reserved_in_full:
            return spec.cpus * self.mhz
        assert isinstance(spec.cpu_reservation_mhz, int)
        return spec.cpu_reservation_mhz


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One attribute of a VM that a configuration has as a value."""

    name: str
    now: Callable[[VmState], Any]
    wanted: Callable[[Target], Any]
    """None: the plan does not ask for it."""
    write: Callable[[Any, Any, VmState], None]
    says: Callable[[Any], str] = str
    power_off: bool = True
    follows: Callable[[Target, VmState], bool] = lambda _to, _vm: False
    """Whether it waits for another attribute that needs the VM powered off."""

    def needs_off(self, to: Target, vm: VmState) -> bool:
        """Whether a running VM takes it only when it is powered off."""
        return vm.power == "on" and (self.power_off or self.follows(to, vm))


def _put(name: str) -> Callable[[Any, Any, VmState], None]:
    return lambda spec, value, _: setattr(spec, name, value)


def _put_memory(spec: Any, value: tuple[bool, int], _: VmState) -> None:
    spec.memoryReservationLockedToMax, reserved_mib = value
    spec.memoryAllocation = vim.ResourceAllocationInfo(reservation=reserved_mib)


def _put_cpu(spec: Any, value: int, _: VmState) -> None:
    spec.cpuAllocation = vim.ResourceAllocationInfo(reservation=value)


def _put_latency(spec: Any, value: str, _: VmState) -> None:
    spec.latencySensitivity = vim.LatencySensitivity(level=value)


def _put_numa(spec: Any, value: int, vm: VmState) -> None:
    if vm.numa_setting:
        spec.virtualNuma = vim.vm.VirtualNuma(coresPerNumaNode=value)
    else:
        put_extra(spec, NUMA_KEY, str(value) if value else "")


def put_extra(spec: Any, key: str, value: str) -> None:
    spec.extraConfig = [*spec.extraConfig, vim.option.OptionValue(key=key, value=value)]


def _says_reserved(value: tuple[bool, int]) -> str:
    return f"{value[1] / MIB_PER_GIB:g}{' (full, locked)' if value[0] else ''}"


def _says_numa(value: int) -> str:
    return f"{value} vCPUs a node" if value else "the hypervisor decides"


SETTINGS = (
    Setting(
        name="name",
        now=lambda vm: vm.name,
        wanted=lambda to: to.machine.name,
        write=_put("name"),
        power_off=False,
    ),
    Setting(
        name="cpus",
        now=lambda vm: vm.cpus,
        wanted=lambda to: to.machine.spec.cpus,
        write=_put("numCPUs"),
    ),
    Setting(
        name="cores_per_socket",
        now=lambda vm: vm.cores_per_socket,
        wanted=lambda to: to.machine.spec.cores_per_socket,
        write=_put("numCoresPerSocket"),
    ),
    Setting(
        name="memory_gib",
        now=lambda vm: vm.memory_mib,
        wanted=lambda to: to.machine.spec.memory_gib * MIB_PER_GIB,
        write=_put("memoryMB"),
        says=lambda mib: f"{mib / MIB_PER_GIB:g}",
    ),
    Setting(
        name="memory_reservation_gib",
        now=lambda vm: (vm.memory_locked, vm.memory_reservation_mib),
        wanted=lambda to: to.memory_reserved,
        write=_put_memory,
        says=_says_reserved,
        power_off=False,
        follows=lambda to, vm: to.machine.spec.memory_gib * MIB_PER_GIB != vm.memory_mib,
    ),
    Setting(
        name="cpu_reservation_mhz",
        now=lambda vm: vm.cpu_reservation_mhz,
        wanted=lambda to: to.cpu_reserved,
        write=_put_cpu,
        power_off=False,
        follows=lambda to, vm: (
            to.machine.spec.cpu_reserved_in_full and to.machine.spec.cpus != vm.cpus
        ),
    ),
    Setting(
        name="latency_sensitivity",
        now=lambda vm: vm.latency_sensitivity,
        wanted=lambda to: to.machine.spec.latency_sensitivity,
        write=_put_latency,
    ),
    Setting(
        name="firmware",
        now=lambda vm: vm.firmware,
        wanted=lambda to: to.machine.spec.firmware,
        write=_put("firmware"),
    ),
    Setting(
        name="numa.nodes",
        now=lambda vm: vm.cores_per_numa_node,
        wanted=lambda to: to.numa_cores,
        write=_put_numa,
        says=_says_numa,
    ),
)

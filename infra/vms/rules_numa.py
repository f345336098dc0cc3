"""Rules about NUMA: a VM within one node of its host, and on the node of its GPU."""

from __future__ import annotations

from collections.abc import Iterator

from infra.vms.capacity import matches
from infra.vms.facts import HostFacts, HostGpu, NumaNode, VmFacts, VmGpu
from infra.vms.finding import Said

NODE_AFFINITY = "numa.nodeAffinity"


def numa_fit(vm: VmFacts, host: HostFacts) -> Iterator[Said]:
    """A VM lies within one NUMA node, or in even parts on as few as possible."""
    if not host.nodes or vm.cores > host.cores or vm.memory_mib > host.memory_mib:
        return  # capacity has its own rule
    parts = _parts(vm, host.nodes)
    if parts is None or parts == 1:
        return
    one = f"{_cores(host.nodes)} cores, {_memory_gib(host.nodes)} GiB"
    said = f"{vm.cpus} vCPUs, {vm.memory_mib // 1024} GiB"
    why = f"a NUMA node of {host.name} has {one}; what does not fit is reached over the link"
    if vm.cpus % parts:
        yield Said(
            setting="hardware.numCPU",
            value=said,
            wanted=f"a multiple of {parts}, or within {one}",
            why=f"{why}, and {vm.cpus} vCPUs cannot be shared out evenly to {parts} nodes",
            severity="warning",
            fix=f"change cpus or memory_gib in the plan, with numa = {{ nodes = {parts} }}",
        )
    elif vm.cores_per_numa_node != vm.cpus // parts and not _splits_itself(vm, host, parts):
        yield Said(
            setting="numaInfo.coresPerNumaNode",
            value=f"{vm.cores_per_numa_node or 'automatic'} ({said})",
            wanted=vm.cpus // parts,
            why=f"{why}: the guest should see {parts} nodes and keep to them",
            severity="warning",
            fix=f"in the plan: numa = {{ nodes = {parts} }}, or fewer cpus and memory_gib",
        )


def _parts(vm: VmFacts, nodes: tuple[NumaNode, ...]) -> int | None:
    """On how many nodes the VM has to lie; None: not even on all of them."""
    for parts in range(1, len(nodes) + 1):
        if -(-vm.cores // parts) <= _cores(nodes) and vm.memory_mib / parts <= _memory(nodes):
            return parts
    return None


def _splits_itself(vm: VmFacts, host: HostFacts, parts: int) -> bool:
    """Left alone, ESXi makes as many virtual nodes as the cores need (not the memory)."""
    return vm.cores_per_numa_node is None and -(-vm.cores // _cores(host.nodes)) == parts


def _cores(nodes: tuple[NumaNode, ...]) -> int:
    return max(1, min(node.cores for node in nodes))


def _memory(nodes: tuple[NumaNode, ...]) -> int:
    return min(node.memory_mib for node in nodes)


def _memory_gib(nodes: tuple[NumaNode, ...]) -> int:
    return _memory(nodes) // 1024


def numa_gpu(vm: VmFacts, host: HostFacts) -> Iterator[Said]:
    """A VM of one NUMA node belongs on the node of its GPU."""
    near = _gpu_nodes(vm, host)
    if not near or len(host.nodes) < 2 or _parts(vm, host.nodes) != 1:
        return
    if vm.cores_per_numa_node is not None and vm.cores_per_numa_node < vm.cpus:
        return  # meant to lie on several nodes: none of them is the one to be on
    pinned = vm.extra_config.get(NODE_AFFINITY, "")
    allowed = {int(one) for one in pinned.split(",") if one.strip().isdigit()}
    if len(near) > 1:
        yield Said(
            setting="numa",
            value=f"GPUs on nodes {', '.join(map(str, sorted(near)))}, the VM within one",
            wanted="GPUs of one node, or a VM of as many nodes",
            why="one of the GPUs is always reached over the link between the nodes",
            severity="note",
            fix=f"in the plan: GPUs of one node, or numa = {{ nodes = {len(near)} }}",
        )
    elif allowed != near:
        node = min(near)
        yield Said(
            setting=NODE_AFFINITY,
            value=pinned or "not set",
            wanted=node,
            why=f"the GPU is on NUMA node {node} of {host.name}, and the VM "
            + ("is kept away from it" if allowed and node not in allowed else "may run elsewhere"),
            severity="warning" if allowed and node not in allowed else "note",
            fix=f'in the plan: extra_config = {{ "{NODE_AFFINITY}" = "{node}" }}; apply sets it',
        )


def _gpu_nodes(vm: VmFacts, host: HostFacts) -> set[int]:
    """NUMA nodes of the VM's GPUs; empty where one of them is not known."""
    nodes: set[int] = set()
    for gpu in vm.gpus:
        may_be = {one.numa_node for one in _candidates(gpu, host)}
        if len(may_be) != 1 or None in may_be:
            return set()
        nodes |= {one for one in may_be if one is not None}
    return nodes


def _candidates(gpu: VmGpu, host: HostFacts) -> tuple[HostGpu, ...]:
    if gpu.kind == "vgpu" and not gpu.address:
        return host.gpus_for(gpu.profile)
    return tuple(one for one in host.gpus if matches(one, gpu))

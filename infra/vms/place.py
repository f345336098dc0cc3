"""Where each VM of a plan goes: names of the plan resolved to what the vCenter has.

All that does not resolve is said at once, with the nearest name that is there.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from infra.vms.estate import Cluster, Estate, EsxiHost, LibraryItem, Net, Ref, Store, VmState
from infra.vms.spec import Machine

Named = TypeVar("Named", Cluster, Store, Net, VmState)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one VM goes."""

    cluster: Cluster
    hosts: tuple[EsxiHost, ...]
    """That can take it: the pinned one, or those of the cluster that see its stores and nets."""
    pinned: EsxiHost | None
    store: Store
    pool: Ref = field(repr=False, compare=False)
    folder: Ref = field(repr=False, compare=False)
    template: VmState | None
    networks: tuple[Net, ...]
    disk_stores: tuple[Store, ...]
    item: LibraryItem | None = None
    """OVF that it is deployed from; one that is a VM template is ``template``."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The rest of a sentence about an unknown name: the nearest known one, and all of them."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, 1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known here: {', '.join(names) or 'none'}"


@dataclass(frozen=True, kw_only=True)
class Found:
    """The VM's place, or what is in the way of it."""

    place: Place | None
    problems: tuple[str, ...]
    hosts: tuple[EsxiHost, ...]
    """Hosts that it may come to, whatever else is wrong."""
    where: str
    """What people call these."""


def find_place(estate: Estate, machine: Machine, item: LibraryItem | str | None = None) -> Found:
    """Look up all names that the plan has for a VM; ``item``: what its library has, or lacks."""
    search = _Search(estate, machine, item)
    place = search.run()
    return Found(
        place=None if search.problems else place,
        problems=tuple(search.problems),
        hosts=tuple(search.hosts),
        where=machine.spec.host or f"any host of {machine.spec.cluster}",
    )


class _Search:
    def __init__(self, estate: Estate, machine: Machine, item: LibraryItem | str | None) -> None:
        self.estate, self.spec = estate, machine.spec
        self.item = None if isinstance(item, str) else item
        self.problems = [item] if isinstance(item, str) else list[str]()
        self.hosts: list[EsxiHost] = []

    def run(self) -> Place | None:
        cluster = self._cluster()
        template = self._template(cluster.datacenter if cluster else self.spec.datacenter)
        if cluster is None:
            return None
        pinned = self._pinned(cluster)
        hosts = self._able([pinned] if pinned else list(cluster.hosts), cluster)
        self.hosts = hosts
        wanted = [self.spec.datastore, *(disk.datastore for disk in self.spec.disks)]
        stores = [self._store(name or self.spec.datastore, cluster, hosts) for name in wanted]
        nets = [self._net(name, cluster, hosts) for name in self.spec.networks]
        folder, pool = self._folder(cluster), self._pool(cluster)
        home = stores[0]
        if home is None or None in stores or None in nets:
            return None
        return Place(
            cluster=cluster,
            hosts=tuple(_seeing(hosts, stores, nets)),
            pinned=pinned,
            store=home,
            pool=pool,
            folder=folder,
            template=template,
            networks=tuple(net for net in nets if net is not None),
            disk_stores=tuple(store for store in stores[1:] if store is not None),
            item=self.item if self.item is not None and not self.item.template else None,
        )

    def _say(self, sentence: str) -> None:
        if sentence not in self.problems:
            self.problems.append(sentence)

    def _cluster(self) -> Cluster | None:
        spec, every = self.spec, self.estate.clusters
        if spec.datacenter and spec.datacenter not in self.estate.datacenters:
            known = nearest(spec.datacenter, self.estate.datacenters)
            self._say(f"datacenter {spec.datacenter!r}: there is none; {known}")
            return None
        near = [one for one in every if not spec.datacenter or one.datacenter == spec.datacenter]
        if not spec.cluster:
            found = [one for one in near if any(host.name == spec.host for host in one.hosts)]
            if not found and spec.host:
                names = [host.name for one in near for host in one.hosts]
                self._say(f"host {spec.host!r}: there is none; {nearest(spec.host, names)}")
            return found[0] if found else None
        return self._one("cluster", spec.cluster, near, lambda one: one.name)

    def _one(
        self, what: str, name: str, among: Sequence[Named], named: Callable[[Named], str]
    ) -> Named | None:
        found = [one for one in among if named(one) == name]
        if len(found) == 1:
            return found[0]
        if found:
            where = ", ".join(sorted({one.datacenter for one in found}))
            self._say(f"{what} {name!r}: there are {len(found)} ({where}); set datacenter")
        else:
            self._say(f"{what} {name!r}: there is none; {nearest(name, map(named, among))}")
        return None

    def _template(self, datacenter: str) -> VmState | None:
        name = self.spec.template
        if self.item is not None and self.item.template:
            return self._shelved(self.item)
        if not name:
            return None
        here = [vm for vm in self.estate.vms if not datacenter or vm.datacenter == datacenter]
        templates = [vm for vm in here if vm.template]
        if any(vm.name == name for vm in here) and not any(vm.name == name for vm in templates):
            self._say(f"template {name!r}: this is a VM, not a template; convert it to one")
            return None
        return self._one("template", name, templates, lambda vm: vm.name)

    def _shelved(self, item: LibraryItem) -> VmState | None:
        """The VM template that a library item is; the plan's datacenter need not be its own."""
        found = next((vm for vm in self.estate.vms if vm.moid == item.template), None)
        if found is None:
            self._say(
                f"content_library {item.name!r}: its VM template {item.template} is not to be "
                "seen; grant the account Read-only on it"
            )
        return found

    def _pinned(self, cluster: Cluster) -> EsxiHost | None:
        name = self.spec.host
        if not name:
            return None
        found = next((host for host in cluster.hosts if host.name == name), None)
        if found is None:
            known = nearest(name, (host.name for host in cluster.hosts))
            self._say(f"host {name!r}: there is none in cluster {cluster.name}; {known}")
        return found

    def _able(self, hosts: Sequence[EsxiHost], cluster: Cluster) -> list[EsxiHost]:
        able = [host for host in hosts if not host.refuses]
        if not able:
            why = "; ".join(f"{host.name}: {host.refuses}" for host in hosts) or "it has none"
            self._say(f"no host of {cluster.name} can take a VM ({why})")
        return able

    def _store(self, name: str, cluster: Cluster, hosts: Sequence[EsxiHost]) -> Store | None:
        if not name:
            self._say("where is it to be stored? set datastore, in its table or in [defaults]")
            return None
        seen = {one for host in hosts for one in host.datastores}
        here = [one for one in self.estate.datastores if one.datacenter == cluster.datacenter]
        found = next((one for one in here if one.name == name), None)
        if found is None:
            self._say(f"datastore {name!r}: there is none; {nearest(name, seen)}")
        elif hosts and name not in seen:
            who = ", ".join(host.name for host in hosts)
            self._say(f"datastore {name!r}: not mounted on {who}; {nearest(name, seen)}")
        elif not found.accessible:
            self._say(f"datastore {name!r}: it is not accessible now")
        return found

    def _net(self, name: str, cluster: Cluster, hosts: Sequence[EsxiHost]) -> Net | None:
        seen = {one for host in hosts for one in host.networks}
        here = [one for one in self.estate.networks if one.datacenter == cluster.datacenter]
        found = next((one for one in here if one.name == name), None)
        if found is None:
            here_too = seen & {one.name for one in here}
            self._say(f"network {name!r}: there is none; {nearest(name, here_too)}")
        elif hosts and name not in seen:
            who = ", ".join(host.name for host in hosts)
            self._say(f"network {name!r}: not on {who}; {nearest(name, seen)}")
        return found

    def _folder(self, cluster: Cluster) -> Ref:
        path = self.spec.folder.strip("/")
        found = self.estate.folders.get((cluster.datacenter, path))
        if found is None:
            known = [one for center, one in self.estate.folders if center == cluster.datacenter]
            self._say(f"folder {path!r}: there is none; {nearest(path, filter(None, known))}")
        return found

    def _pool(self, cluster: Cluster) -> Ref:
        path = self.spec.resource_pool.strip("/")
        found = self.estate.pools.get((cluster.name, path)) if path else cluster.pool
        if found is None:
            known = [one for owner, one in self.estate.pools if owner == cluster.name]
            self._say(f"resource_pool {path!r}: there is none; {nearest(path, known)}")
        return found


def _seeing(
    hosts: Iterable[EsxiHost], stores: Iterable[Store | None], nets: Iterable[Net | None]
) -> Iterable[EsxiHost]:
    need = {store.name for store in stores if store}
    linked = {net.name for net in nets if net}
    return [host for host in hosts if need <= set(host.datastores) and linked <= set(host.networks)]

"""VMs deployed from OVF items: started over REST, several at once, watched until they are there.

The server answers when all disks are copied, which can take an hour; meanwhile its tasks are told.
A client that is killed leaves a VM that the server finishes, or removes again: both are possible.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.vms.changes import VmChanges
from infra.vms.owned import note
from infra.vms.tasks import FIRST_POLL_S, LONGEST_POLL_S, TASK_LIMIT_S, Tasks
from infra.vsphere.errors import VCenterError, VCenterUnreachable
from infra.vsphere.rest import RestRefused, RestSession, messages

if TYPE_CHECKING:
    from infra.vms.estate import Ref

OVF_ITEMS = "/com/vmware/vcenter/ovf/library-item"
AT_ONCE = 4
"""More would only share the same store."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """One VM to be deployed."""

    vm: str
    item: str
    """The id of the item."""
    pool: Ref = field(repr=False, compare=False)
    body: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """What became of the orders; who is in none of the two is there."""

    failed: Mapping[str, str]
    """A sentence by VM."""
    lost: Mapping[str, str]
    """Those of which the answer never came: the server may have gone on."""


def order(plan: str, one: VmChanges) -> Order:
    """What is asked for a VM of the plan, which is its own from the first moment, by its note."""
    machine, place = one.machine, one.place
    assert place.item is not None
    target = {"resource_pool_id": _id(place.pool), "folder_id": _id(place.folder)}
    if one.host is not None:
        target["host_id"] = _id(one.host)
    thin = all(disk.thin for disk in machine.spec.disks)
    spec = {
        "name": machine.name,
        "annotation": note(plan, machine.name),
        "accept_all_EULA": False,  # a licence is nothing to agree to in somebody's name
        "default_datastore_id": _id(place.store.ref),
        "storage_provisioning": "thin" if thin else "thick",
    }
    return Order(
        vm=machine.name,
        item=place.item.id,
        pool=place.pool,
        body={"target": target, "deployment_spec": spec},
    )


def _id(ref: Ref) -> str:
    return str(ref._GetMoId())


def deploy(rest: RestSession, tasks: Tasks, orders: Sequence[Order]) -> Deployed:
    """Deploy all of them and wait until each has come to its end, whatever becomes of the others.

    Where this is interrupted, what was not started yet is not started any more.
    """
    left, running = list(orders), list[_Deployment]()
    failed, lost = dict[str, str](), dict[str, str]()
    woken, pause_s = threading.Event(), FIRST_POLL_S
    while left or running:
        while left and len(running) < AT_ONCE:
            tasks.hook(f"deploy {left[0].vm}")
            running.append(_Deployment(rest, left.pop(0), woken))
            running[-1].start()
        pools = [one.order.pool for one in running]
        percent = tasks.percent(pools) if len(running) == 1 else None  # which of several: not told
        for one in running:
            tasks.progress(f"deploy {one.order.vm}", percent)
        woken.wait(pause_s)
        woken.clear()
        ended = [one for one in running if one.over]
        pause_s = FIRST_POLL_S if ended else min(2 * pause_s, LONGEST_POLL_S)
        for one in ended:
            running.remove(one)
            failed |= one.failed
            lost |= one.lost
            tasks.hook(f"deploy {one.order.vm}: done")
    return Deployed(failed=failed, lost=lost)


class _Deployment(threading.Thread):
    """One order under way. It is waited for by nobody when the program ends."""

    def __init__(self, rest: RestSession, order: Order, woken: threading.Event) -> None:
        super().__init__(name=f"deploy-{order.vm}", daemon=True)
        self.rest, self.order, self.woken = rest, order, woken
        self.failed: dict[str, str] = {}
        self.lost: dict[str, str] = {}
        self.over = False

    def run(self) -> None:
        name = self.order.vm
        try:
            said = _deploy(self.rest, self.order)
            if said:
                self.failed[name] = f"deploy: {said}"
        except VCenterUnreachable as error:
            self.lost[name] = f"deploy: {error}; it may go on at the vCenter, apply again later"
        except VCenterError as error:
            self.failed[name] = f"deploy: {error}"
        except Exception as error:  # noqa: BLE001 - nobody else hears of it in this thread
            self.failed[name] = f"deploy: {type(error).__name__}: {error}"
        finally:
            self.over = True
            self.woken.set()


def _deploy(rest: RestSession, order: Order) -> str:
    """Why it failed; empty: it did not."""
    path = f"{OVF_ITEMS}/id:{order.item}"
    told = rest.post(path, order.body, action="deploy", limit_s=TASK_LIMIT_S)
    if not isinstance(told, dict):
        raise RestRefused("the vCenter answers a deployment with nothing", "")
    if not told.get("succeeded"):
        why = "; ".join(messages(told.get("error")))
        return f"the vCenter refused: {why or 'it does not say why'}"
    made = told.get("resource_id") or {}
    if made.get("type") != "VirtualMachine":
        return (
            f"the item is several VMs in one, {made.get('type')} {made.get('id')} was made of it; "
            "remove that and name an item with one VM"
        )
    return ""

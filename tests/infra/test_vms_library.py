"""VMs from content libraries, on a real REST and SOAP API: found, deployed, finished if killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from infra.vms import deploy as deploying
from infra.vms.apply import Applied, apply
from infra.vms.destroy import destroy, find_doomed
from infra.vms.diff import plan_changes
from infra.vms.library import read_items
from infra.vms.owned import is_unfinished, note
from infra.vms.spec import MARK_INSTANCE, MARK_PLAN, MARK_VM
from tests.infra.between import Between, Handler
from tests.infra.vms_on import (
    FOREIGN,
    TEMPLATE,
    every_vm,
    logged_in,
    picture,
    plan_of,
    the_vm,
    wait,
)
from tests.vcsim_server import Vcsim

pytestmark = pytest.mark.needs("go")

HEAD = """
name = "stagescope"
[vcenter]
host = "127.0.0.1"
[defaults]
cluster = "DC0_C0"
datastore = "LocalDS_0"
cpus = 1
memory_gib = 1
networks = ["VM Network"]
"""
OVF = 'content_library = "templates/debian12"'
TEXT = f"""
[vms.trainer]
{OVF}
host = "DC0_C0_H1"
disks = [{{ gib = 3 }}, {{ gib = 1, datastore = "LocalDS_1" }}]
[vms.spare]
{OVF}
host = "DC0_C0_H0"
power = "off"
"""
DEPLOY = "/rest/com/vmware/vcenter/ovf/library-item/"


class Killed(BaseException):
    """Ends an apply where the test wants it to."""


def stock(vcsim: Vcsim) -> Vcsim:
    """Put the libraries there that these tests are about."""
    vcsim.control(
        vms=[{"name": TEMPLATE, "power": "Off"}],
        libraries=[
            {
                "name": "templates",
                "items": [
                    {"name": "debian12", "type": "ovf", "disk_gib": 2},
                    {"name": "debian12-vm", "type": "vm-template", "source": TEMPLATE},
                    {"name": "old-vm", "type": "vm-template", "source": TEMPLATE, "hidden": True},
                    {"name": "installer", "type": "iso"},
                ],
            },
            {"name": "twice"},
            {"name": "twice"},
        ],
    )
    return vcsim


def plan(folder: Path, text: str = TEXT, *overrides: str) -> Any:
    return plan_of(folder, text, *overrides, head=HEAD)


def assert_nothing_left(vcsim: Vcsim) -> None:
    counts = vcsim.counts
    assert (counts["rest_sessions"], counts["sessions"], counts["views"]) == (0, 0, 0)


def test_an_ovf_is_deployed_changed_and_then_nothing_more(own_vcsim, tmp_path):
    said: list[str] = []
    with logged_in(stock(own_vcsim)) as vcenter:
        before = picture(vcenter)
        wanted = plan_changes(vcenter, plan(tmp_path)).changes[0].wanted
        assert wanted is not None
        assert wanted.startswith("from templates/debian12 of the content libraries, on DC0_C0_H1")
        applied = apply(vcenter, plan(tmp_path), say=said.append)
        assert applied.complete, applied
        assert plan_changes(vcenter, plan(tmp_path)).empty
        made, after = the_vm(vcenter, "trainer"), picture(vcenter)
        own_vcsim.control(reset_counts=True)
        assert apply(vcenter, plan(tmp_path)) == Applied(done=(), refused=(), failed=())
        assert picture(vcenter) == after
        assert own_vcsim.counts.get("rest_calls", 0) == 0  # nothing is to be made of an item
    assert {name: after[name] for name in before} == before
    assert (made.host, made.cpus, made.memory_mib, made.power) == ("DC0_C0_H1", 1, 1024, "on")
    assert (made.datastore, made.firmware) == ("LocalDS_0", "efi")
    assert made.extra[MARK_PLAN] == "stagescope"
    assert made.extra[MARK_VM] == "trainer"
    assert made.extra[MARK_INSTANCE] == made.instance_uuid
    assert made.get("annotation") == "from templates/debian12, by StageScope"
    assert sum("VirtualDisk 3145728" in one for one in after["trainer"]["devices"]) == 1
    assert sum("VirtualVmxnet3 VM Network" in one for one in after["trainer"]["devices"]) == 1
    assert after["spare"]["power"] == "off"
    assert "trainer: deploy: done" in said
    assert {change.attribute for change in applied.done} >= {"vm", "mark", "cpus", "disk 2"}
    assert_nothing_left(own_vcsim)


def test_a_vm_template_of_a_library_is_cloned_with_its_marks(own_vcsim, tmp_path):
    steps: list[str] = []
    text = '[vms.trainer]\ncontent_library = "templates/debian12-vm"\nguest.user = "me"'
    with logged_in(stock(own_vcsim)) as vcenter:
        applied = apply(vcenter, plan(tmp_path, text), hook=steps.append)
        assert applied.complete, applied
        assert plan_changes(vcenter, plan(tmp_path, text)).empty
        made = the_vm(vcenter, "trainer")
    assert steps[0] == "clone trainer"
    assert made.extra[MARK_INSTANCE] == made.instance_uuid
    assert "guestinfo.userdata" in made.extra
    assert own_vcsim.counts.get("deploys", 0) == 0
    assert_nothing_left(own_vcsim)


def test_all_that_is_wrong_with_items_is_said_at_once(own_vcsim, tmp_path):
    names = {
        "a": "templats/debian12",
        "b": "templates/debian11",
        "c": "templates/installer",
        "d": "twice/debian12",
        "e": "templates/old-vm",
    }
    text = "".join(f'[vms.{key}]\ncontent_library = "{name}"\n' for key, name in names.items())
    with logged_in(stock(own_vcsim)) as vcenter:
        bad = plan(tmp_path, text, "vms.a.datastore=none")
        problems = plan_changes(vcenter, bad).problems
    told = {problem[0]: problem for problem in reversed(problems)}
    assert "there is no library 'templats'; did you mean 'templates'?" in told["a"]
    assert any("datastore 'none': there is none" in problem for problem in problems)
    assert "there is no item 'debian11'; did you mean 'debian12'?" in told["b"]
    assert "it is of type iso; a VM is made of an ovf or a vm-template" in told["c"]
    assert "there are 2 of the library 'twice'" in told["d"]
    assert "does not tell which VM template it is" in told["e"]
    assert len(problems) == 6
    assert_nothing_left(own_vcsim)


def test_nothing_is_asked_where_no_item_is_named(own_vcsim):
    with logged_in(own_vcsim) as vcenter:
        assert read_items(vcenter, ["", "no-slash", "no-item/"]) == {}
    assert own_vcsim.counts.get("rest_calls", 0) == 0


def test_killed_at_each_step_and_repeated_it_ends_in_the_same_state(own_vcsim, tmp_path):
    wanted, making = plan(tmp_path), list[str]()
    with logged_in(stock(own_vcsim)) as vcenter:
        apply(vcenter, wanted, hook=making.append)
        made = picture(vcenter)
        for step in range(len(making)):
            seen: list[str] = []

            def kill(name: str, step: int = step, seen: list[str] = seen) -> None:
                seen.append(name)
                if len(seen) > step:
                    raise Killed(name)

            destroy(vcenter, find_doomed(vcenter, wanted))
            with pytest.raises(Killed):
                apply(vcenter, wanted, hook=kill)
            assert apply(vcenter, wanted).complete
            assert picture(vcenter) == made, making[step]
    assert [one for one in making if not one.endswith("done")] == [
        "deploy trainer",
        "deploy spare",
        "reconfigure trainer",
        "reconfigure spare",
        "power on trainer",
    ]
    assert_nothing_left(own_vcsim)


def kill_in_deploy(what: str, percent: int | None) -> None:
    if what.startswith("deploy") and percent:
        raise Killed(what)


def half_deployed(vcsim: Vcsim, vcenter: Any, wanted: Any) -> None:
    """Leave an apply that was killed while the server copies disks."""
    vcsim.control(task_s=3.0)
    with pytest.raises(Killed):
        apply(vcenter, wanted, progress=kill_in_deploy)
    vcsim.control(task_s=0.0)


ONE = f"[vms.trainer]\n{OVF}"


def test_killed_in_mid_deployment_it_is_finished_by_the_next_while_the_server_goes_on(
    own_vcsim, tmp_path
):
    seen: list[str] = []
    with logged_in(stock(own_vcsim)) as vcenter:
        wanted = plan(tmp_path, ONE)
        half_deployed(own_vcsim, vcenter, wanted)
        begun = the_vm(vcenter, "trainer")
        assert begun.extra.get(MARK_PLAN) is None
        assert begun.get("annotation") == note("stagescope", "trainer")
        (mark, *_) = plan_changes(vcenter, wanted).changes
        assert (mark.attribute, mark.wanted) == ("mark", "stagescope")
        applied = apply(vcenter, wanted, progress=lambda what, _: seen.append(what))
        assert applied.complete, applied
        assert the_vm(vcenter, "trainer").moid == begun.moid
        assert plan_changes(vcenter, wanted).empty
    assert "waiting for tasks that still run" in seen
    assert own_vcsim.counts["deploys"] == 1
    assert_nothing_left(own_vcsim)


CHILD = """
import os, signal, sys
from infra.vms.apply import apply
from infra.vms.spec import read_plan
from infra.vsphere.session import VCenter

def progress(what, percent):
    if what == "deploy trainer" and percent:
        os.kill(os.getpid(), signal.SIGKILL)

plan = read_plan(sys.argv[1])
with VCenter(plan.settings) as vcenter:
    apply(vcenter, plan, progress=progress)
"""


@pytest.mark.parametrize("rolls_back", [False, True])
def test_a_process_killed_with_9_in_mid_deployment_is_finished_by_the_next(
    own_vcsim, tmp_path, rolls_back
):
    """Whether the server goes on without its client, or removes what it had begun."""
    settings = stock(own_vcsim).settings()
    path = tmp_path / "vms.toml"
    with logged_in(own_vcsim) as vcenter:
        own_vcsim.control(task_s=1.0, roll_back=rolls_back)
        wanted = plan(tmp_path, ONE)
        here = f'host = "127.0.0.1"\nport = {settings.port}\nca_file = "{settings.ca_file}"'
        path.write_text(path.read_text().replace('host = "127.0.0.1"', here))
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(path)],
            env={**own_vcsim.environ(), "PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        own_vcsim.control(task_s=0.0)
        applied = apply(vcenter, wanted)
        assert applied.complete, applied
        assert plan_changes(vcenter, wanted).empty
        names = sorted(vm.name for vm in every_vm(vcenter) if not vm.template)
    assert names == sorted([TEMPLATE, FOREIGN, "trainer"])
    assert own_vcsim.counts["deploys"] == (2 if rolls_back else 1)


def test_a_half_deployed_vm_is_destroyed_with_the_rest(own_vcsim, tmp_path):
    with logged_in(stock(own_vcsim)) as vcenter:
        before, wanted = picture(vcenter), plan(tmp_path, ONE)
        half_deployed(own_vcsim, vcenter, wanted)
        doomed = find_doomed(vcenter, wanted)
        assert [vm.name for vm in doomed.vms] == ["trainer"]
        assert is_unfinished(doomed.vms[0])
        assert destroy(vcenter, doomed).removed == ("trainer",)
        assert picture(vcenter) == before


def test_a_vm_with_another_note_is_left_alone(own_vcsim, tmp_path):
    with logged_in(stock(own_vcsim)) as vcenter:
        half_deployed(own_vcsim, vcenter, plan(tmp_path, ONE))
        vm, other = the_vm(vcenter, "trainer"), plan(tmp_path, ONE, "name=other")
        assert find_doomed(vcenter, other).vms == ()
        assert "did not make" in plan_changes(vcenter, other).problems[0]
        wait(vm.ref.Rename_Task("renamed"))
        assert find_doomed(vcenter, plan(tmp_path, ONE)).vms == ()


def test_an_answer_that_never_comes_is_looked_after(own_vcsim, tmp_path):
    """A proxy may end the connection; the server has done its work all the same."""

    def swallow(handler: Handler, body: bytes) -> bool:
        handler.answer = lambda *_: setattr(handler, "close_connection", True)  # type: ignore[method-assign]
        return False

    said: list[str] = []
    with Between(stock(own_vcsim)) as between, logged_in(own_vcsim, port=between.port) as vcenter:
        item = read_items(vcenter, ["templates/debian12"])["templates/debian12"]
        assert not isinstance(item, str)
        between.spoil[f"{DEPLOY}id:{item.id}?~action=deploy"] = swallow
        applied = apply(vcenter, plan(tmp_path, ONE), say=said.append)
        assert applied.complete, applied
        assert plan_changes(vcenter, plan(tmp_path, ONE)).empty
    assert "may go on at the vCenter" in said[0]
    assert own_vcsim.counts["deploys"] == 1


def test_a_deployment_that_was_never_heard_of_fails(own_vcsim, tmp_path):
    def drop(handler: Handler, body: bytes) -> bool:
        handler.close_connection = True
        return True

    with Between(stock(own_vcsim)) as between, logged_in(own_vcsim, port=between.port) as vcenter:
        item = read_items(vcenter, ["templates/debian12"])["templates/debian12"]
        assert not isinstance(item, str)
        between.spoil[f"{DEPLOY}id:{item.id}?~action=deploy"] = drop
        applied = apply(vcenter, plan(tmp_path, ONE))
        (failed,) = applied.failed
        assert "closed connection" in failed
        assert "apply again" in failed
        between.spoil.clear()
        assert apply(vcenter, plan(tmp_path, ONE)).complete


def test_what_the_server_refuses_is_said_and_stops_no_other_vm(own_vcsim, tmp_path):
    fail = {"method": "ImportVApp", "fault": "InsufficientStorageSpace", "times": 1}
    with logged_in(stock(own_vcsim)) as vcenter:
        own_vcsim.control(fail_tasks=[fail])
        applied = apply(vcenter, plan(tmp_path))
        (failed,) = applied.failed
        assert "deploy: the vCenter refused: " in failed
        assert "InsufficientStorageSpace" in failed
        assert sum(name in picture(vcenter) for name in ("trainer", "spare")) == 1
        assert apply(vcenter, plan(tmp_path)).complete
        assert plan_changes(vcenter, plan(tmp_path)).empty
    assert_nothing_left(own_vcsim)


def test_an_account_without_the_right_is_told_what_it_lacks(own_vcsim, tmp_path):
    stock(own_vcsim)
    with logged_in(own_vcsim, reader=True) as vcenter:
        assert not plan_changes(vcenter, plan(tmp_path, ONE)).problems  # to look is allowed
        (failed,) = apply(vcenter, plan(tmp_path, ONE)).failed
    assert "VApp.Import is missing" in failed
    assert "(unauthorized)" in failed


def test_several_are_deployed_at_once_with_progress(own_vcsim, tmp_path, monkeypatch):
    monkeypatch.setattr(deploying, "AT_ONCE", 2)
    text = f'[defaults]\n[vms.w]\ncount = 3\npower = "off"\n{OVF}'.replace("[defaults]\n", "")
    steps: list[str] = []
    seen: dict[str, set[int | None]] = {}
    with logged_in(stock(own_vcsim)) as vcenter:
        own_vcsim.control(task_s=0.2)
        applied = apply(
            vcenter,
            plan(tmp_path, text),
            hook=steps.append,
            progress=lambda what, now: seen.setdefault(what, set()).add(now),
        )
        assert applied.complete, applied
    assert steps[:2] == ["deploy w-1", "deploy w-2"]
    assert steps.index("deploy w-3") > 2
    assert {"deploy w-1", "deploy w-2", "deploy w-3"} <= set(seen)
    assert any(isinstance(percent, int) for percent in seen["deploy w-3"])


def test_a_session_that_is_lost_while_it_deploys_is_renewed(own_vcsim, tmp_path):
    def lose(step: str) -> None:
        if step == "deploy spare":
            time.sleep(0.2)
            own_vcsim.control(expire_sessions=True)

    with logged_in(stock(own_vcsim)) as vcenter:
        assert apply(vcenter, plan(tmp_path), hook=lose).complete
        assert plan_changes(vcenter, plan(tmp_path)).empty
    assert_nothing_left(own_vcsim)


def test_marks_that_an_item_brings_along_are_not_its_vms_own(own_vcsim, tmp_path):
    """An OVF exported from a plan's VM may have that one's extraConfig."""
    with logged_in(stock(own_vcsim)) as vcenter:
        wanted = plan(tmp_path, ONE)
        half_deployed(own_vcsim, vcenter, wanted)
        old = {MARK_PLAN: "stagescope", MARK_VM: "old", MARK_INSTANCE: "another"}
        own_vcsim.control(vms=[{"name": "trainer", "extra_config": old}])
        assert apply(vcenter, wanted).complete
        made = the_vm(vcenter, "trainer")
        assert plan_changes(vcenter, wanted).empty
    assert (made.extra[MARK_VM], made.extra[MARK_INSTANCE]) == ("trainer", made.instance_uuid)

"""The table of rights, and whether the simulated vCenter grants them."""

from __future__ import annotations

import pytest
from pyVmomi import vim

from infra.vsphere.privileges import (
    APPLY,
    PLACES,
    READ,
    TABLE,
    Right,
    Targets,
    as_markdown,
    check_rights,
)
from infra.vsphere.session import VCenter
from tests.infra.between import Between, fault
from tests.vcsim_server import READER, READER_PASSWORD, Vcsim

READ_ONLY = ["System.Anonymous", "System.View", "System.Read"]


def targets(vcenter: VCenter) -> Targets:
    host, known = vcenter.retrieve(vim.HostSystem, ["name"])[0]
    vm = vcenter.retrieve(vim.VirtualMachine, ["name"])[0][0]
    return {
        "root": [(vcenter.content.rootFolder, "vCenter")],
        "vm": [(vm, "VM x")],
        "host": [(host, f"host {known['name']}")],
    }


def test_the_table_says_all_of_each_right() -> None:
    assert len({(one.id, one.where) for one in TABLE}) == len(TABLE)
    assert {one.where for one in TABLE} == set(PLACES)
    assert {one.id for one in READ} <= set(READ_ONLY)
    assert not {one.id for one in APPLY} & set(READ_ONLY)
    for one in TABLE:
        assert all((one.label, one.purpose, one.lost))
        assert one.id in one.grant("X") or "Read-only" in one.grant("X")
        assert "X" in one.grant("X")


def test_the_documentation_prints_each_right() -> None:
    read, apply = as_markdown("read"), as_markdown("apply")
    assert len(read.splitlines()) == len(READ) + 2
    assert len(apply.splitlines()) == len(APPLY) + 2
    assert "| `Network.Assign` | Network, Assign network | the network or port group" in apply


def test_what_is_missing_is_said_with_its_cost_and_how_to_grant_it() -> None:
    right = Right(privilege=READ[3], entity="host esx1", granted=False)
    said = right.problem()
    assert said is not None
    for part in ("System.Read", "is missing on host esx1", "no host power", "Read-only", "cluster"):
        assert part in said
    assert right.to_json()["grant"] in said
    assert Right(privilege=READ[3], entity="host esx1", granted=True).problem() is None


@pytest.mark.needs("go")
def test_every_privilege_is_one_that_a_server_knows(vcsim: Vcsim) -> None:
    with VCenter(vcsim.settings(), environ=vcsim.environ()) as vcenter:
        roles = vcenter.content.authorizationManager.roleList
        known = {privilege for role in roles for privilege in role.privilege}
        assert {one.id for one in TABLE} <= known
        read_only = next(role for role in roles if role.name == "ReadOnly")
        assert {one.id for one in READ} <= set(read_only.privilege)


@pytest.mark.needs("go")
def test_the_reader_may_read_and_not_make(vcsim: Vcsim) -> None:
    with VCenter(vcsim.settings(), environ=vcsim.environ(reader=True)) as vcenter:
        chosen = targets(vcenter)
        assert {right.granted for right in check_rights(vcenter, "read", chosen)} == {True}
        assert vcsim.counts["calls.HasPrivilegeOnEntities"] == 1
        folder = {"folder": [(vcenter.content.rootFolder, "the folder")]}
        rights = check_rights(vcenter, "apply", folder)
        assert {right.granted for right in rights} == {False}
        assert {right.privilege.id for right in rights} == {
            one.id for one in APPLY if one.where == "folder"
        }


@pytest.mark.needs("go")
def test_each_missing_right_is_named(vcsim: Vcsim) -> None:
    lacking = {"password": READER_PASSWORD, "only": ["System.Anonymous", "System.View"]}
    vcsim.control(users={READER: lacking})
    with VCenter(vcsim.settings(), environ=vcsim.environ(reader=True)) as vcenter:
        root = {"root": [(vcenter.content.rootFolder, "vCenter")]}
        rights = {
            right.privilege.id: right.granted for right in check_rights(vcenter, "read", root)
        }
        assert rights == {"System.View": True, "System.Read": False}


@pytest.mark.needs("go")
def test_an_object_that_is_gone_does_not_hide_the_others(vcsim: Vcsim) -> None:
    with (
        Between(vcsim) as between,
        VCenter(vcsim.settings(port=between.port), environ=vcsim.environ()) as vcenter,
    ):
        chosen = targets(vcenter)
        gone = fault("ManagedObjectNotFoundFault")
        host = chosen["host"][0][0]._GetMoId().encode()
        between.spoil["HasPrivilegeOnEntities"] = lambda handler, body: (
            host in body and gone(handler, body)
        )
        rights = {right.privilege.where: right for right in check_rights(vcenter, "read", chosen)}
        assert (rights["vm"].granted, rights["root"].granted) == (True, True)
        assert rights["host"].granted is None
        assert "could not be checked" in (rights["host"].problem() or "")

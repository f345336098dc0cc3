"""A plan's file: what it means, and everything that can be wrong with it, said at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.vms.spec import (
    GPU_MEMORY_GIB,
    PlanError,
    mmio_size_gib,
    profile_is_mig,
    profile_memory_gib,
    read_plan,
)
from infra.vsphere.settings import VCenterSettings

HEAD = """
name = "stagescope"
[vcenter]
host = "vcenter.example"
[defaults]
cluster = "gpu"
datastore = "fast"
"""


def plan_of(tmp_path: Path, text: str, *overrides: str, head: str = HEAD):
    path = tmp_path / "vms.toml"
    path.write_text(head + text)
    return read_plan(path, overrides)


def problems_of(tmp_path: Path, text: str, *overrides: str, head: str = HEAD) -> list[str]:
    with pytest.raises(PlanError) as caught:
        plan_of(tmp_path, text, *overrides, head=head)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def test_names_and_defaults(tmp_path):
    text = """
[defaults.guest]
user = "me"
packages = ["git"]
[vms.trainer]
count = 2
gpus = [{ kind = "vgpu", profile = "grid_a100-40c", count = 2 }]
[vms.trainer.guest]
role = "torchrun"
addresses = ["10.0.0.1/24", "10.0.0.2/24"]
[vms.runner]
cluster = "cpu"
"""
    plan = plan_of(tmp_path, text, "vms.runner.cpus=16")
    one, two, runner = plan.machines()
    assert [machine.name for machine in (one, two, runner)] == ["trainer-1", "trainer-2", "runner"]
    assert (one.key, two.index, two.address) == ("trainer", 1, "10.0.0.2/24")
    assert one.spec.guest.user == "me"
    assert one.spec.guest.packages == ("git",)
    assert (runner.spec.cluster, runner.spec.datastore, runner.spec.cpus) == ("cpu", "fast", 16)
    assert runner.address == ""
    assert isinstance(plan.settings, VCenterSettings)
    assert plan.settings.host == "vcenter.example"


def test_gpus_and_latency_reserve_in_full(tmp_path):
    text = """
[vms.gpu]
gpus = [{ kind = "vgpu", profile = "nvidia_h100-80c" }]
[vms.latency]
latency_sensitivity = "high"
[vms.plain]
"""
    gpu, latency, plain = (machine.spec for machine in plan_of(tmp_path, text).machines())
    assert (gpu.memory_locked, gpu.cpu_reserved_in_full) == (True, False)
    assert (latency.memory_locked, latency.cpu_reserved_in_full) == (True, True)
    assert (plain.memory_locked, plain.cpu_reserved_in_full) == (False, False)


def test_everything_wrong_is_said_at_once(tmp_path):
    text = """
[vms.trainer]
memory_gb = 8
cpus = 0
disks = [{ gb = 3 }]
gpus = [{ kind = "vgpu", profile = "grid_a100-40c", cnt = 1 }]
[vms.trainer.guest]
adresses = []
[vms."not a name"]
"""
    said = problems_of(tmp_path, text, "vcenter.port=70000", "vcenter.pasword_env=X", "x")
    for start, hint in (
        ("--set 'x'", "section.key=value"),
        ("vcenter.pasword_env: unknown key", "did you mean 'password_env'?"),
        ("vcenter.port = 70000", "1 to 65535"),
        ("vms.trainer.memory_gb: unknown key", "did you mean 'memory_gib'?"),
        ("vms.trainer.cpus = 0", "greater than or equal to 1"),
        ("vms.trainer.disks.0.gib: missing", ""),
        ("vms.trainer.disks.0.gb: unknown key", "did you mean 'gib'?"),
        ("vms.trainer.gpus.0.cnt: unknown key", "did you mean 'count'?"),
        ("vms.trainer.guest.adresses: unknown key", "did you mean 'addresses'?"),
        ("vms.not a name", "letters, digits"),
    ):
        assert any(one.startswith(start) and hint in one for one in said), (start, said)
    assert len(said) == 10


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no VM is planned"),
        ('[vms.a]\ncluster = ""', "where is it to run?"),
        ('[vms.a]\ndatastore = ""', "where is it to be stored?"),
        ('[vms.a]\ncontent_library = "item"', "give it as library/item"),
        ('[vms.a]\ncontent_library = "lib/ "', "give it as library/item"),
        ('[vms.a]\ncontent_library = "a/b"\ntemplate = "c"', "made of one of the two"),
        ("[vms.a]\ncpus = 6\ncores_per_socket = 4", "6 cpus cannot be made of sockets"),
        ("[vms.a]\ncpus = 6\nnuma = { nodes = 4 }", "shared out evenly to 4 NUMA nodes"),
        ("[vms.a]\nmemory_reservation_gib = 99", "more than memory_gib 8"),
        ('[vms.a]\nextra_config = { "stagescope.plan" = "x" }', "set by apply itself"),
        ('[vms.a]\n[vms.a.guest]\naddresses = ["1/8", "2/8"]', "has 2 for 1 VMs"),
        ("[vms.a]\ncount = 2\n[vms.a-2]", "two VMs would be named a-2"),
        (
            '[vms.a]\ngpus = [{ kind = "vgpu", profile = "grid_a100-40c" }, '
            '{ kind = "dynamic", devices = ["10de:20b5"] }]',
            "two kinds of GPU in one VM (vGPU grid_a100-40c, dynamic passthrough 10de:20b5)",
        ),
        (
            '[vms.a]\ngpus = [{ kind = "vgpu", profile = "grid_a100-40c" }, '
            '{ kind = "vgpu", profile = "grid_a100-20c" }]',
            "two kinds of GPU",
        ),
        ('[vms.a]\ngpus = [{ kind = "vgpu" }]', "needs profile"),
        (
            '[vms.a]\ngpus = [{ kind = "vgpu", profile = "p-4c", device = "10de:20b5" }]',
            "device says nothing about",
        ),
        ('[vms.a]\ngpus = [{ kind = "vgpu", profile = "odd" }]', "say memory_gib"),
        ('[vms.a]\ngpus = [{ kind = "dynamic", devices = ["A100"] }]', "small hex"),
        ('[vms.a]\ngpus = [{ kind = "passthrough", device = "10de:20b5" }]', "a pinned host"),
        (
            '[vms.a]\nhost = "h"\ngpus = [{ kind = "passthrough", device = "0000:3b:00.0", '
            "count = 2 }]",
            "one address is one GPU",
        ),
        (
            '[vms.a]\nfirmware = "bios"\ngpus = [{ kind = "vgpu", profile = "grid_t4-16c" }]',
            "only mapped under 'efi'",
        ),
        (
            "[vms.a]\nmemory_reservation_gib = 2\n"
            'gpus = [{ kind = "vgpu", profile = "grid_t4-16c" }]',
            "all memory has to be reserved",
        ),
    ],
)
def test_problems(tmp_path, text, sentence):
    said = problems_of(tmp_path, text)
    assert any(sentence in one for one in said), said


def test_one_device_is_given_once(tmp_path):
    text = """
[defaults]
cluster = "gpu"
datastore = "fast"
host = "h"
gpus = [{ kind = "passthrough", device = "0000:3b:00.0" }]
[vms.a]
[vms.b]
"""
    head = HEAD.partition("[defaults]")[0]
    said = problems_of(tmp_path, text, head=head)
    assert said == ["device 0000:3b:00.0 is given to a and b: one VM can have it"]


def test_what_is_left_of_a_wrong_plan_can_still_be_checked(tmp_path):
    with pytest.raises(PlanError) as caught:
        plan_of(tmp_path, "[vms.a]\ncpus = 0\nmemory_gib = 3\n[vms.b]\ntypo = 1")
    rest = caught.value.rest
    assert rest is not None
    assert [(one.name, one.spec.cpus, one.spec.memory_gib) for one in rest.machines()] == [
        ("a", 4, 3),
        ("b", 4, 8),
    ]


def test_no_file_and_no_toml(tmp_path):
    with pytest.raises(PlanError, match="no such file"):
        read_plan(tmp_path / "none.toml")
    assert "not valid TOML" in problems_of(tmp_path, "][")[0]


def test_a_plan_without_vcenter_says_how_to_name_one(tmp_path):
    plan = plan_of(tmp_path, '[vms.a]\ncluster = "c"\ndatastore = "d"', head='name = "p"\n')
    with pytest.raises(ValueError, match="names no vCenter"):
        _ = plan.settings


@pytest.mark.parametrize(
    ("profile", "gib", "mig"),
    [
        ("grid_a100-40c", 40, False),
        ("grid_a100d-3-40c", 40, True),
        ("nvidia_h100xm-80c", 80, False),
        ("nvidia_a100-1-5cme", 5, True),
        ("grid_p40-1b4", 1, False),
        ("grid_m60-0q", 0.5, False),
        ("something", None, False),
    ],
)
def test_profiles(profile, gib, mig):
    assert profile_memory_gib(profile) == gib
    assert profile_is_mig(profile) is mig


@pytest.mark.parametrize(
    ("sizes", "gib"), [([16], 32), ([40], 128), ([80, 80], 512), ([24] * 4, 256), ([0.5], 2)]
)
def test_mmio_rule(sizes, gib):
    assert mmio_size_gib(sizes) == gib


@given(st.lists(st.floats(min_value=0.5, max_value=300), min_size=1, max_size=8))
def test_mmio_holds_every_frame_buffer_twice_and_no_more_than_four_times(sizes):
    gib = mmio_size_gib(sizes)
    assert gib >= 2 * sum(sizes)
    assert gib <= sum(max(2, 4 * (size + 1)) for size in sizes)
    assert gib % 2 == 0


def test_known_gpus_are_written_as_ids():
    assert all(len(key) == 9 and key == key.lower() for key in GPU_MEMORY_GIB)


def test_a_name_that_is_no_host_name_is_said_in_words(tmp_path):
    path = tmp_path / "vms.toml"
    path.write_text('name = "lab"\n[defaults]\ncluster = "C"\ndatastore = "d"\n[vms.gpu_1]\n')
    with pytest.raises(PlanError) as caught:
        read_plan(path)
    assert caught.value.problems[0] == (
        "vms.gpu_1: a name has letters, digits and inner hyphens, 63 characters at most"
    )

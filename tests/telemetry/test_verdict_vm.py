"""What vCenter says of a stage's VM: by host, over the hosts of one that moved, and not at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from telemetry.contention import flags
from telemetry.profile import Profile, Row
from telemetry.verdict import verdicts
from tests.telemetry.test_verdict import (
    BUSY,
    COUNT,
    CPU,
    ONE_THREAD,
    QUIET,
    READY,
    SECONDS,
    Means,
    a_run,
    judged,
    row,
)

ESX_1, ESX_2 = "vm:ml@esx-1.example", "vm:ml@esx-2.example"
SWAP = "vm_mem_swap_in_bytes_per_s"
READS, WRITES = "vm_disk_read_bytes_per_s", "vm_disk_write_bytes_per_s"


def window(
    entity: str, metric: str, mean: float, coverage: float = 1.0, *, most: float | None = None
) -> Row:
    """A row of windows: ``mean`` in the metric's unit over ``coverage`` of the stage."""
    unit = "B/s" if metric.endswith("bytes_per_s") else "%"
    top = mean if most is None else most
    return Row(
        stage="s", entity=entity, metric=metric, unit=unit, kind="window", mean=mean, p50=mean,
        p95=top, max=top, coverage=coverage,
        total=mean * SECONDS * coverage if unit == "B/s" else None,
    )  # fmt: skip


def ready(entity: str, percent: float, coverage: float = 1.0, vcpus: int = 4) -> list[Row]:
    """Ready time per virtual CPU and of all of them, as vCenter's one counter gives both."""
    return [
        window(entity, "vm_cpu_ready_percent", percent, coverage),
        window(entity, "vm_cpu_ready_cores", percent * vcpus / 100, coverage),
    ]


def flagged(means: Means, *rows: Row, vm: str | None = "ml") -> dict[str, Any]:
    """The verdict with the flags that these rows raise."""
    all_rows = (*(row(key, mean) for key, mean in means.items()), *rows)
    raised = flags(Profile(rows=all_rows))
    profile = Profile(rows=all_rows, hypervisor={"vm": vm, "contention": raised})
    return verdicts(profile, a_run())[0]


BUSY_CPU = QUIET | ONE_THREAD
BUSY_VM = QUIET | {CPU: 3.9, READY: 4.0, BUSY: 3.9}
"""All four CPUs are in use: ready time per virtual CPU is ready time per CPU that is wanted."""


# --- flags ----------------------------------------------------------------------------------------


def test_the_hypervisors_flags_are_contention_where_there_was_work() -> None:
    found = flagged(BUSY_CPU, *ready(ESX_1, 12.0))
    assert (found["rule"], found["verdict"]) == ("hypervisor", "contention")
    assert found["sentence"] == (
        "ml: cpu ready 12 % on average during s: it was ready to run and no physical CPU was free"
    )
    assert found["evidence"][0]["says"] == "vm cpu ready percent, flagged above 5 %"
    assert flagged(QUIET | {CPU: 0.01}, *ready(ESX_1, 12.0))["verdict"] == "idle"


def test_a_flag_of_another_stage_decides_nothing_here() -> None:
    (flag,) = flags(Profile(rows=tuple(ready(ESX_1, 6.0))))
    more = ready(ESX_1, 6.0)
    assert judged(BUSY_VM, more=more, vm="ml", contention=[flag])["rule"] == "hypervisor"
    elsewhere = {**flag, "stage": "t"}
    assert judged(BUSY_VM, more=more, vm="ml", contention=[elsewhere])["rule"] == "cpu-all"


def test_another_vm_that_is_watched_holds_back_its_own_stages_alone() -> None:
    other = ready("vm:other@esx-1.example", 12.0)
    assert flagged(BUSY_VM, *ready(ESX_1, 0.1), *other, vm="ml")["rule"] == "cpu-all"
    assert flagged(BUSY_VM, *ready(ESX_1, 0.1), *other, vm="other")["rule"] == "hypervisor"


def test_a_flag_of_the_stages_last_moment_does_not_decide() -> None:
    """A VM that moved just before the stage's end, be its first host's part known or not."""
    late = window(ESX_2, "vm_cpu_latency_percent", 60.0, 0.03)
    early = window(ESX_1, "vm_cpu_latency_percent", 2.0, 0.97)
    swap = window(ESX_2, SWAP, 40 * 2.0**20, 0.03)
    for rows in ([late], [early, late], [swap], [window(ESX_1, SWAP, 0.0, 0.97), swap]):
        profile = Profile(rows=(*rows, *ready(ESX_1, 0.2)))
        assert len(flags(profile)) == 1  # it stays a flag
        found = flagged(BUSY_CPU, *profile.rows)
        assert (found["rule"], found["also"]) == ("cpu-one", [])


def test_a_flag_of_one_window_decides_only_with_the_mean() -> None:
    most = 40 * 2.0**20
    rare = window(ESX_1, SWAP, 2000.0, most=most)
    assert len(flags(Profile(rows=(rare,)))) == 1
    assert flagged(BUSY_CPU, rare, *ready(ESX_1, 0.2))["rule"] == "cpu-one"
    steady = flagged(BUSY_CPU, window(ESX_1, SWAP, 2e6, most=most), *ready(ESX_1, 0.2))
    assert steady["verdict"] == "contention"
    assert "mem swap in 40 MiB/s at most during s" in steady["sentence"]
    assert steady["sentence"].endswith("over 100 % of the stage 2,000,000.0 B/s on average")
    told = steady["evidence"][0]
    assert (told["metric"], told["figure"], told["value"]) == (SWAP, "mean", 2e6)


def test_the_hosts_of_a_vm_that_moved_are_taken_together() -> None:
    """Neither covers enough of the stage by itself."""
    waited = [*ready(ESX_1, 6.0, 0.45), *ready(ESX_2, 9.0, 0.45)]
    found = flagged(BUSY_VM, *waited, *limited(ESX_1, 0.0, 0.45), *limited(ESX_2, 0.0, 0.45))
    assert (found["verdict"], found["missing"]) == ("contention", [])
    entities = [one["entity"] for one in found["evidence"] if one["metric"].endswith("percent")]
    assert entities == [ESX_1, ESX_2]
    assert found["sentence"].endswith("; over 90 % of the stage 7.5 % on average")
    one_bad = flagged(BUSY_VM, *ready(ESX_1, 6.0, 0.45), *ready(ESX_2, 0.0, 0.45))
    assert one_bad["rule"] == "cpu-all"
    most_bad = flagged(BUSY_VM, *ready(ESX_1, 6.0, 0.6), *ready(ESX_2, 0.0, 0.4))
    assert most_bad["rule"] == "hypervisor"


# --- CPUs that were wanted ------------------------------------------------------------------------

ALONE = QUIET | {CPU: 0.4, READY: 1.0, BUSY: 0.45, COUNT: 16.0}
"""One thread on 16 CPUs that waits for most of its time."""


def test_idle_cpus_do_not_thin_the_ready_time_of_one_thread() -> None:
    found = flagged(ALONE, *ready(ESX_1, 3.75, vcpus=16))
    assert flags(Profile(rows=tuple(ready(ESX_1, 3.75, vcpus=16)))) == []
    assert (found["rule"], found["verdict"]) == ("hypervisor", "contention")
    assert "55 % of the CPUs that were wanted here" in found["sentence"]
    told = {(one["entity"], one["metric"]) for one in found["evidence"]}
    assert told >= {(ESX_1, "vm_cpu_ready_cores"), BUSY, COUNT}


@pytest.mark.parametrize(
    ("means", "percent"),
    [
        (ALONE, 0.5),  # 0.08 CPUs, of the one at least that is wanted
        (QUIET | {CPU: 14.0, READY: 14.0, BUSY: 14.0, COUNT: 16.0}, 4.9),  # of 14.8 wanted
        (ALONE | {CPU: 0.1, READY: 0.1}, 3.75),  # it wanted none
        (QUIET | {CPU: 1.0, READY: 1.0, BUSY: 1.0, COUNT: 64.0}, 0.8),  # 0.128, 0.045 beyond idle
    ],
)
def test_little_ready_time_is_no_contention(means: Means, percent: float) -> None:
    found = flagged(means, *ready(ESX_1, percent, vcpus=16))
    assert "hypervisor" not in {found["rule"], *(one["rule"] for one in found["also"])}
    assert found["missing"] == []


def test_cpu_latency_is_flagged_and_decides_nothing() -> None:
    """A VM whose own threads share cores has it, though nobody else is there."""
    late = (window(ESX_1, "vm_cpu_latency_percent", 30.0), *ready(ESX_1, 0.2))
    assert [one["metric"] for one in flags(Profile(rows=late))] == ["vm_cpu_latency_percent"]
    found = flagged(BUSY_VM, *late)
    assert (found["rule"], found["also"], found["missing"]) == ("cpu-all", [], [])


def limited(entity: str, percent: float, coverage: float = 1.0, vcpus: int = 4) -> list[Row]:
    return [
        window(entity, "vm_cpu_maxlimited_percent", percent, coverage),
        window(entity, "vm_cpu_maxlimited_cores", percent * vcpus / 100, coverage),
    ]


def test_a_limit_of_the_vm_is_no_neighbour() -> None:
    """Ready time includes it: half of the CPUs that it wants, on a host that is otherwise idle."""
    half = QUIET | {CPU: 1.9, READY: 4.0, BUSY: 2.0}
    found = flagged(half, *ready(ESX_1, 50.0), *limited(ESX_1, 49.0))
    assert (found["rule"], found["verdict"]) == ("vm-limit", "CPU-bound")
    assert found["sentence"] == (
        "the CPU limit of its VM, or of a resource pool that it is in, held back 49 % of the CPUs "
        "that were wanted here"
    )
    assert found["also"] == []  # nor does it say again that CPUs were wanted
    both = flagged(half, *ready(ESX_1, 50.0), *limited(ESX_1, 20.0))
    assert both["rule"] == "vm-limit"
    assert "hypervisor" in {one["rule"] for one in both["also"]}
    none = flagged(half, *ready(ESX_1, 50.0), *limited(ESX_1, 0.0))
    assert (none["rule"], none["missing"]) == ("hypervisor", [])
    assert flagged(QUIET | {CPU: 0.01}, *limited(ESX_1, 49.0))["verdict"] == "idle"


WANTED = QUIET | {CPU: 1.9, READY: 4.0, BUSY: 3.9}


def test_a_limit_is_taken_off_host_by_host() -> None:
    def rules(*rows: Row) -> set[str]:
        found = flagged(WANTED, *rows)
        return {found["rule"], *(one["rule"] for one in found["also"])}

    rows = [*ready(ESX_1, 20.0, 0.6), *limited(ESX_1, 20.0, 0.6)]
    assert "hypervisor" not in rules(*rows, *ready(ESX_2, 0.0, 0.4), *limited(ESX_2, 0.0, 0.4))
    rows = [*ready(ESX_1, 20.0, 0.5), *limited(ESX_1, 20.0, 0.5)]
    assert "hypervisor" in rules(*rows, *ready(ESX_2, 9.0, 0.5), *limited(ESX_2, 0.0, 0.5))
    assert "hypervisor" in rules(*rows, *ready(ESX_2, 20.0, 0.5))
    some = flagged(WANTED | {CPU: 3.9}, *ready(ESX_1, 15.0), *limited(ESX_1, 9.0))
    assert some["rule"] == "hypervisor"
    assert some["sentence"].endswith("; 6.0 % without what a CPU limit of its own made wait")


def test_a_limit_that_is_not_told_is_missing_beside_contention() -> None:
    unknown = flagged(WANTED, *ready(ESX_1, 50.0))
    assert (unknown["rule"], unknown["missing"]) == (
        "hypervisor",
        ["a CPU limit of the VM: vCenter was asked, and vm_cpu_maxlimited_cores was not recorded"],
    )
    rows = [*ready(ESX_1, 20.0, 0.5), *limited(ESX_1, 1.0, 0.5), *ready(ESX_2, 20.0, 0.5)]
    of_one = flagged(WANTED, *rows)
    assert (of_one["rule"], of_one["missing"]) == (
        "hypervisor",
        [f"a CPU limit of the VM: vm_cpu_maxlimited_cores of {ESX_2} was not recorded"],
    )
    assert flagged(WANTED, *ready(ESX_1, 0.2))["missing"] == []


def test_a_limit_is_not_stolen_time() -> None:
    stolen = WANTED | {BUSY: 2.0, ("machine", "cpu_steal_seconds"): 1.9}
    assert flagged(stolen, *ready(ESX_1, 50.0), *limited(ESX_1, 49.0))["also"] == []
    assert flagged(stolen, *ready(ESX_1, 0.0), *limited(ESX_1, 0.0))["rule"] == "steal"
    of_both = flagged(stolen, *limited(ESX_1, 20.0))
    (steal,) = (one for one in (of_both, *of_both["also"]) if one["rule"] == "steal")
    assert "35 % of the CPU time that was wanted" in steal["sentence"]  # 1.1 of 3.1


def test_ready_time_that_covers_little_is_not_used() -> None:
    found = flagged(ALONE, *ready(ESX_1, 3.75, 0.2, vcpus=16))
    assert found["rule"] != "hypervisor"
    assert found["missing"] == [
        f"the hypervisor: vm_cpu_ready_percent of {ESX_1} covers 20 % of the stage"
    ]


def test_without_the_machines_own_cpus_ready_time_is_judged_per_virtual_cpu_alone() -> None:
    means = {key: mean for key, mean in BUSY_CPU.items() if key != COUNT}
    assert flagged(means, *ready(ESX_1, 12.0))["rule"] == "hypervisor"
    assert flagged(means, *ready(ESX_1, 4.9))["rule"] == "cpu-one"


# --- what is missing ------------------------------------------------------------------------------


def test_a_hypervisor_that_says_nothing_of_ready_time_is_missing() -> None:
    why = "shorter than one window of 20 s: nothing says when in it"
    short = replace(ready(ESX_1, 0.0)[0], mean=None, p50=None, p95=None, max=None, reason=why)
    assert judged(BUSY_CPU, more=[short], vm="ml")["missing"] == [f"the hypervisor: {why}"]
    unreached = Row(stage="s", entity="vm", metric="vm_cpu_ready_percent", unit="%", kind="window",
                    reason="vcenter.example:443 did not answer")  # fmt: skip
    assert judged(BUSY_CPU, more=[unreached], server=None)["missing"] == [
        "the hypervisor: vcenter.example:443 did not answer"
    ]


@pytest.mark.parametrize(
    "run",
    [a_run(vcenter={"host": "vc"}), a_run(recipe={"vcenter": {"host": "vc"}})],
)
def test_a_vcenter_of_which_nothing_is_left_is_missing(run: dict[str, Any]) -> None:
    assert judged(BUSY_CPU, run)["missing"] == [
        "the hypervisor: vCenter was asked, and vm_cpu_ready_percent was not recorded"
    ]


@pytest.mark.parametrize("run", [a_run(vcenter=None), a_run(recipe={"vcenter": {"host": ""}})])
def test_a_run_without_a_vcenter_lacks_nothing(run: dict[str, Any]) -> None:
    assert judged(BUSY_CPU, run)["missing"] == []


# --- bytes ----------------------------------------------------------------------------------------


def witness(*rows: Row) -> dict[str, Any]:
    witnesses = judged(QUIET, more=rows, vm="ml")["io"]["witnesses"]
    found: dict[str, Any] = next(one for one in witnesses if one["name"] == "hypervisor")
    return found


def disks(entity: str, mean: float, coverage: float) -> list[Row]:
    return [window(entity, metric, mean, coverage) for metric in (READS, WRITES)]


def test_virtual_disks_are_summed() -> None:
    rows = [*disks(f"{ESX_1}/scsi0:0", 3e6, 1.0), *disks(f"{ESX_1}/scsi0:1", 3e6, 1.0)]
    found = witness(*rows, *disks("vm:other@esx-1.example/scsi0:0", 3e6, 1.0))
    assert (found["read_bytes"], found["write_bytes"], found["reason"]) == (6e7, 6e7, None)


def test_a_disk_of_a_vm_that_moved_is_summed_over_its_hosts() -> None:
    rows = [*disks(f"{ESX_1}/scsi0:0", 3e6, 0.5), *disks(f"{ESX_2}/scsi0:0", 5e6, 0.5)]
    found = witness(*rows)
    assert (found["read_bytes"], found["write_bytes"]) == pytest.approx((4e7, 4e7))
    assert found["reason"] is None


def test_hosts_that_cover_too_little_together_say_nothing() -> None:
    rows = [*disks(f"{ESX_1}/scsi0:0", 3e6, 0.5), *disks(f"{ESX_2}/scsi0:0", 5e6, 0.4)]
    found = witness(*rows, *disks(f"{ESX_1}/scsi0:1", 3e6, 1.0))
    assert (found["read_bytes"], found["write_bytes"]) == (None, None)
    assert found["reason"] == (
        f"{READS} of {ESX_1}/scsi0:0 and {ESX_2}/scsi0:0 covers 90 % of the stage"
    )


def test_windows_over_the_ends_of_a_stage_take_nothing_from_its_bytes() -> None:
    rows = disks(f"{ESX_1}/scsi0:0", 3e6, 0.9)
    found = witness(*(replace(row, total_share=1.0) for row in rows))
    assert found["read_bytes"] == pytest.approx(2.7e7)
    assert witness(*rows)["reason"] == f"{READS} of {ESX_1}/scsi0:0 covers 90 % of the stage"


def test_a_vcenter_without_figures_of_disks_says_why() -> None:
    why = "this vCenter collects it at level 2 and is set to level 1"
    absent = [
        Row(stage="s", entity="vm", metric=metric, unit="B/s", kind="window", reason=why)
        for metric in (READS, WRITES)
    ]
    assert witness(*absent)["reason"] == why

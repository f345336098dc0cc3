"""A scripted load through a real vCenter API: windows fetched, aligned, sharpened, attributed.

The run lies in the past, so that nothing has to be waited for: its guest's samples are written as
a recorder leaves them, and the backfill asks the simulator for the windows that it still has.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from telemetry.backfill import backfill
from telemetry.clock import Clock, measure_offset_ns
from telemetry.finish import finish
from telemetry.profile import Profile
from telemetry.runfolder import RunFolder
from tests.telemetry.scripted import (
    NS,
    START_NS,
    STEP_S,
    Load,
    Sight,
    guest_counter,
    hidden,
    samples,
    scripted,
)
from tests.telemetry.test_hypervisor import write
from tests.vcsim_server import Vcsim

STAGES = (34.0, 61.0, 130.0, 97.0, 45.0, 138.0)
NAME = "DC0_C0_RP0_VM0"
SIGHT = Sight(steal=0.2, noise=0.1, lag_s=0.3, burst_cores=0.5)

pytestmark = pytest.mark.needs("go")


@pytest.fixture(scope="module")
def load() -> Load:
    return hidden(scripted(1, stages=STAGES, least=0.25), 1, SIGHT.burst_cores)


def fetched(
    tmp_path: Path, vcsim: Vcsim, load: Load, sight: Sight = SIGHT, **clocks: Any
) -> RunFolder:
    """The run as it was until a few minutes ago, with what vCenter has of it."""
    clock = Clock(offset_ns=measure_offset_ns())
    by = clock.now_ns() - load.spans[-1].end_ns - 240 * NS
    vcsim.control(
        truth=[
            {"entity": NAME, "counter": "cpu.used.summation", "step_s": STEP_S, "else": 50.0,
             "start_s": (START_NS + by) / NS - load.lead_s, "values": (1e3 * load.cores).tolist()},
            {"entity": NAME, "counter": "cpu.ready.summation", "else": 0.0,
             "steps": [[(one.start_ns + by) / NS, (one.end_ns + by) / NS, 160.0]
                       for one in load.spans[2:3]]},
        ],
        **clocks,
    )  # fmt: skip
    guest = [
        (ts + by, None, value)
        for ts, _, value in guest_counter(scripted(1, stages=STAGES, least=0.25), sight, 1)
    ]
    spans = [replace(one, start_ns=one.start_ns + by, end_ns=one.end_ns + by) for one in load.spans]
    folder = RunFolder(tmp_path / "run")
    settings = vcsim.settings(vm=NAME)
    write(folder, samples(guest, {}), spans, started_ns=START_NS + by, recipe={},
          vcenter=settings.to_json())  # fmt: skip
    losses = backfill(folder, settings, clock, deadline_s=0.0, environ=vcsim.environ(reader=True))
    assert not losses, losses
    finish(folder)
    return folder


def profile_of(folder: RunFolder) -> tuple[Profile, dict[str, Any]]:
    document = json.loads(folder.profile_json.read_text())
    return Profile.from_json(document), document["hypervisor"]


def entity_of(profile: Profile) -> str:
    return next(row.entity for row in profile.rows if row.metric == "vm_cpu_used_cores")


@pytest.mark.parametrize("skew_s", [0.0, 43.0])
def test_totals_of_stages_come_near_a_scripted_truth(
    tmp_path: Path, vcsim: Vcsim, load: Load, skew_s: float
) -> None:
    folder = fetched(tmp_path, vcsim, load, host_skew_s={"*": skew_s}, vcenter_skew_s=skew_s / 2)
    profile, told = profile_of(folder)
    assert told["refused"] is None
    assert told["clock"]["witness"].startswith("esxi:")
    assert told["clock"]["offset_s"] == pytest.approx(skew_s, abs=told["clock"]["bound_s"] + 0.1)
    entity, worst = entity_of(profile), []
    for span in load.spans:
        truth = load.total(span.start_ns, span.end_ns)
        plain = profile.find(span.stage, entity, "vm_cpu_used_cores")
        estimate = profile.find(span.stage, entity, "vm_cpu_used_cores_estimate")
        assert plain is not None
        assert plain.coverage > 0.4
        assert estimate is not None
        assert estimate.total is not None
        worst.append(abs(estimate.total / truth - 1))
    assert max(worst) < 0.05, worst
    entries = {one["name"]: one for one in profile.ledger}
    account = entries[f"vm_cpu_used_cores of {entity}, stages and between"]
    assert account["closes"] is True
    assert abs(account["remainder_percent"]) < 1.0
    ready = [one for one in told["contention"] if one["metric"] == "vm_cpu_ready_percent"]
    assert [one["stage"] for one in ready] == ["s2"]  # 160 ms/s of one vCPU, and 0 elsewhere


def test_stamps_that_are_not_the_hosts_clock_are_refused(
    tmp_path: Path, vcsim: Vcsim, load: Load
) -> None:
    folder = fetched(tmp_path, vcsim, load, stamp_skew_s={"*": 30.0})
    profile, told = profile_of(folder)
    assert "by the load that guest and VM both saw" in told["refused"]
    rows = [row for row in profile.rows if row.metric.startswith("vm_")]
    assert rows
    assert all(row.mean is None and row.reason for row in rows)


def test_without_the_hosts_date_the_load_tells(tmp_path: Path, vcsim: Vcsim, load: Load) -> None:
    folder = fetched(
        tmp_path, vcsim, load, Sight(noise=0.1), host_date_forbidden=True, stamp_skew_s={"*": 30.0}
    )
    profile, told = profile_of(folder)
    assert (told["refused"], told["clock"]["witness"]) == (None, "correlation")
    assert told["clock"]["offset_s"] == pytest.approx(30.0, abs=1.0)
    span = load.spans[2]
    row = profile.find(span.stage, entity_of(profile), "vm_cpu_used_cores_estimate")
    assert row is not None
    assert row.total == pytest.approx(load.total(span.start_ns, span.end_ns), rel=0.05)
    assert np.isfinite(told["clock"]["bound_s"])

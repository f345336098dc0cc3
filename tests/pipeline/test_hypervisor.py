"""A whole run on a VM that a vCenter knows: the hypervisor's view of each stage, from all sides.

The vCenter is the simulator over TLS; what its VM takes follows this machine's real load.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.placement import boot_id
from pipeline.hypervisor import _clock, fetch_windows
from pipeline.recipe import Tracking as TrackingSettings
from pipeline.stage_process import StageProcess
from pipeline.tracking import Tracking
from telemetry.clock import measure_offset_ns
from telemetry.runfolder import RunFolder, find_run
from telemetry.session import Session
from tests.pipeline.small import STAGES, command, environment, latest, run_command
from tests.pipeline.test_tracking import free_port
from tests.telemetry.vcenter_past import Past
from tests.vcsim_mirror import Mirror
from tests.vcsim_server import PASSWORD, READER_PASSWORD, Vcsim

pytestmark = [
    pytest.mark.needs("go"),
    # MLflow's own store uses it.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]
VM, HOST, UUID = "stagescope-vm", "DC0_C0_H0", "4220f5a4-5c3e-4b1a-9d0e-0a1b2c3d4e5f"
LONG = "serving"
"""The stage that is made long enough for a whole window of 20 s."""


@dataclass(frozen=True, kw_only=True)
class Made:
    out: Path
    folder: RunFolder
    record: dict[str, Any]
    output: str
    counts: dict[str, int]

    @property
    def profile(self) -> dict[str, Any]:
        return dict(json.loads(self.folder.profile_json.read_text()))

    def rows(self, stage: str, metric: str) -> list[dict[str, Any]]:
        (found,) = (one for one in self.profile["stages"] if one["name"] == stage)
        return [row for row in found["metrics"] if row["metric"] == metric]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    out = tmp_path_factory.mktemp("hypervisor") / "runs"
    with Vcsim(machines=2, hosts=1, standalone=0) as vcsim:
        vcsim.control(vms=[{"name": "DC0_C0_RP0_VM0", "rename": VM, "uuid": UUID, "cpus": 2}])
        settings = {
            "vcenter.host": vcsim.address,
            "vcenter.port": vcsim.port,
            "vcenter.ca_file": vcsim.ca_file,
            "vcenter.vm": UUID,
            "vcenter.backfill_deadline_s": 60,
            f"{LONG}.seconds_per_rate": 42,
        }
        more = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        with Mirror(vcsim, VM, HOST):
            done = subprocess.run(
                run_command(out, *more),
                capture_output=True,
                text=True,
                check=False,
                env=environment(**vcsim.environ(reader=True)),
                timeout=300,
            )
        assert done.returncode == 0, done.stdout + done.stderr
        record = latest(out)
        folder = find_run(record["run_id"], out)
        yield Made(out=out, folder=folder, record=record, output=done.stdout, counts=vcsim.counts)


def test_each_stage_has_the_hypervisors_view_with_its_coverage(made: Made) -> None:
    for stage in STAGES:
        (used,) = made.rows(stage, "vm_cpu_used_cores")
        assert used["entity"] == f"vm:{VM}@{HOST}"
        assert used["coverage"] > 0
        assert (used["mean"] is None) == (used["reason"] is not None)
        (power,) = made.rows(stage, "host_power_w")
        assert power["entity"] == f"esxi:{HOST}"


def test_a_long_stage_has_numbers_that_are_near_the_truth(made: Made) -> None:
    (used,) = made.rows(LONG, "vm_cpu_used_cores")
    (guest,) = (row for row in made.rows(LONG, "cpu_busy_seconds") if row["entity"] == "machine")
    assert used["mean"] == pytest.approx(0.8 * guest["mean"] + 0.1, abs=0.15)
    (ready,) = made.rows(LONG, "vm_cpu_ready_percent")
    assert 0 < ready["mean"] < 30
    (estimate,) = made.rows(LONG, "vm_cpu_used_cores_estimate")
    assert estimate["mean"] == pytest.approx(0.8 * guest["mean"] + 0.1, abs=0.1)


def test_a_short_stage_shows_no_bare_number_but_an_estimate(made: Made) -> None:
    (used,) = made.rows("training", "vm_cpu_used_cores")
    assert used["mean"] is None
    assert "20 s" in used["reason"]
    (estimate,) = made.rows("training", "vm_cpu_used_cores_estimate")
    assert estimate["mean"] > 0


def test_the_clock_was_compared_and_nothing_was_refused(made: Made) -> None:
    seen = made.profile["hypervisor"]
    assert seen["refused"] is None
    assert abs(seen["clock"]["offset_s"]) < 1
    assert [vm["vm"] for vm in seen["vms"]][:1] == [VM]


def test_the_report_and_the_table_say_where_it_ran(made: Made) -> None:
    page = made.folder.report_html.read_text()
    for told in (VM, HOST, "DC0_C0", "ready"):
        assert told in page
    assert "hypervisor" in made.output


def test_mlflow_has_the_series_on_the_child_run(made: Made) -> None:
    tracking = Tracking(TrackingSettings(), made.out / ".stagescope")
    with tracking._guard() as client:
        state = json.loads((made.folder.path / "tracking.json").read_text())
        run = client.get_run(state["runs"][LONG])
        names = [name for name in run.data.metrics if name.startswith("system/vcenter/")]
        assert any("vm_cpu_used_cores" in name for name in names), sorted(run.data.metrics)
        history = client.get_metric_history(run.info.run_id, names[0])
        assert len(history) >= 2


def test_vcenter_was_asked_little_and_left_as_it_was(made: Made) -> None:
    counts = made.counts
    assert counts.get("sessions", 0) == 0
    assert counts.get("views", 0) == 0
    assert counts.get("queries_without_start", 0) == 0
    assert counts["logins"] <= 2
    assert counts["queries"] <= 12


def test_the_password_is_nowhere(made: Made) -> None:
    for path in made.out.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            for secret in (PASSWORD, READER_PASSWORD):
                assert secret.encode() not in content, path
    assert READER_PASSWORD not in made.output


def test_a_vcenter_that_is_never_there_costs_no_run(tmp_path: Path) -> None:
    settings = (
        f"vcenter.port={free_port()}",
        "vcenter.host=127.0.0.1",
        "vcenter.insecure=true",
        "vcenter.backfill_deadline_s=3",
    )
    more = [part for one in settings for part in ("--set", one)]
    user = {"STAGESCOPE_VCENTER_USER": "reader", "STAGESCOPE_VCENTER_PASSWORD": "nobody-knows-it"}
    done = subprocess.run(
        command("record", "--name", "wait", "--out", str(tmp_path), *more, "--", "sleep", "1"),
        capture_output=True,
        text=True,
        check=False,
        env=environment(**user),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    record = latest(tmp_path)
    assert any(loss.startswith("vcenter: ") for loss in record["losses"])
    assert "nobody-knows-it" not in (tmp_path / "latest" / "run.json").read_text() + done.stderr
    profile = json.loads((tmp_path / "latest" / "profile.json").read_text())
    (stage,) = profile["stages"]
    of_vm = [row for row in stage["metrics"] if row["metric"] == "vm_cpu_used_cores"]
    assert of_vm
    assert all(row["mean"] is None and row["reason"] for row in of_vm)


def test_windows_are_fetched_later_by_the_clock_of_the_run(tmp_path: Path) -> None:
    with Session("made", tmp_path) as session:
        pass
    record = session.folder.read()
    assert record["clock"]["boot_id"] == boot_id()
    record["clock"]["offset_start_ns"] = 7  # as if the clock had been set since
    assert _clock(record).offset_ns == 7
    record["clock"]["boot_id"] = "another"
    assert abs(_clock(record).now_ns() - time.time_ns()) < 60e9


@pytest.mark.parametrize("known", [True, False])
def test_windows_that_are_fetched_on_another_machine_are_those_of_the_vm_that_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, known: bool
) -> None:
    other = "4220f5a4-5c3e-4b1a-9d0e-ffffffffffff"
    monkeypatch.setattr("telemetry.backfill.dmi_uuid", lambda: other)
    with Vcsim(machines=2, hosts=1, standalone=0) as vcsim:
        uuids = {"DC0_C0_RP0_VM0": other, "DC0_C0_RP0_VM1": UUID}
        vcsim.control(vms=[{"name": name, "uuid": uuid} for name, uuid in uuids.items()])
        for name, value in vcsim.environ(reader=True).items():
            monkeypatch.setenv(name, value)
        past = Past(vcsim, tmp_path / "run", ago_s=900, seconds=600)
        record = {
            **past.folder.read(),
            "host": "elsewhere",
            "clock": {"offset_start_ns": 0, "boot_id": "another"},
            "vcenter": vcsim.settings().to_json(),
            "product_uuid": UUID if known else None,
            "losses": [],
        }
        past.folder.write(record)
        losses = fetch_windows(past.folder, print, wait=False)
        found = {event["vm"] for event in past.events("placement")}
        if known:
            assert (losses, found) == ([], {"DC0_C0_RP0_VM1"})
            return
        assert found == set()
        assert losses[0].startswith("vcenter: which VM ran it is not known: its record has no UUID")
        clock = {"offset_start_ns": measure_offset_ns(), "boot_id": boot_id()}
        past.folder.write({**record, "host": platform.node(), "clock": clock})
        fetch_windows(past.folder, print, wait=False)
        assert {event["vm"] for event in past.events("placement")} == {"DC0_C0_RP0_VM0"}


def test_a_stage_is_not_told_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it or its workers print goes into the run's logs."""
    monkeypatch.setenv("STAGESCOPE_VCENTER_PASSWORD", "nobody-knows-it")
    monkeypatch.setenv("STAGESCOPE_OTHER", "known")
    stage = StageProcess(
        "x", tmp_path / "order", tmp_path / "log", without=["STAGESCOPE_VCENTER_PASSWORD"]
    )
    stage.start()
    told = Path(f"/proc/{stage.pid}/environ").read_bytes()
    stage.stop(note=print)
    stage.reap()
    assert b"STAGESCOPE_OTHER=known" in told
    assert b"nobody-knows-it" not in told


def test_a_recorded_command_that_is_terminated_in_the_last_wait_has_its_profile(
    tmp_path: Path,
) -> None:
    with Vcsim() as vcsim:
        vcsim.control(lag_s=600)
        settings = (
            f"vcenter.host={vcsim.address}",
            f"vcenter.port={vcsim.port}",
            f"vcenter.ca_file={vcsim.ca_file}",
            "vcenter.vm=DC0_C0_RP0_VM0",
        )
        more = [part for one in settings for part in ("--set", one)]
        running = subprocess.Popen(
            command("record", "--name", "wait", "--out", str(tmp_path), *more, "--", "true"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(**vcsim.environ(reader=True)),
        )
        assert running.stdout is not None
        assert "waiting up to" in running.stdout.readline()
        running.terminate()
        said, _ = running.communicate(timeout=60)
        assert vcsim.counts["sessions"] == 0
    assert running.returncode == 0, said
    assert "interrupted" in " ".join(latest(tmp_path)["losses"])
    assert (tmp_path / "latest" / "report.html").is_file()

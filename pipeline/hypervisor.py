"""What vCenter still has of a run once its stages are over: at its end, after a kill, or later."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from infra.placement import Placement, boot_id, with_vcenter
from infra.process import terminated_as_interrupted
from infra.vsphere.settings import VCenterSettings
from pipeline.recipe import VCenter
from telemetry.backfill import backfill
from telemetry.clock import Clock, measure_offset_ns
from telemetry.collectors.vcenter_journal import read_events
from telemetry.runfolder import RunFolder

Say = Callable[[str], None]


def vcenter_of(record: Mapping[str, Any]) -> VCenterSettings | None:
    """The vCenter that a run named; None if it named none."""
    told = (record.get("recipe") or {}).get("vcenter")
    if told is not None:
        return VCenter.model_validate(told).settings()
    recorded = record.get("vcenter")
    return None if recorded is None else VCenterSettings.from_json(recorded)


def fetch_windows(folder: RunFolder, say: Say, *, wait: bool) -> list[str]:
    """Fetch what vCenter has of this run and note what is lost; returns the losses.

    Its last windows come late: with ``wait`` they are waited for as long as the run's settings
    allow, and Ctrl-C or SIGTERM ends the wait and nothing else. vCenter forgets its windows after
    an hour.
    """
    record = folder.read()
    settings = vcenter_of(record)
    if settings is None:
        return []
    deadline_s = settings.backfill_deadline_s if wait else 0.0
    try:
        with terminated_as_interrupted():
            losses = backfill(
                folder,
                settings,
                _clock(record),
                deadline_s=deadline_s,
                say=say,
                product_uuid=(record.get("placement") or record).get("product_uuid"),
                elsewhere=_elsewhere(record),
            )
    except KeyboardInterrupt:
        losses = ["vcenter: the wait for its last windows was interrupted"]
    kept = [loss for loss in record["losses"] if not loss.startswith("vcenter: ")]
    folder.write({**record, "losses": [*kept, *losses], **_where(record, folder)})
    return losses


def _where(record: Mapping[str, Any], folder: RunFolder) -> dict[str, Any]:
    """The record's placement with what vCenter said of it: VM, host, datastores, moves."""
    told = record.get("placement")
    if told is None:
        return {}
    names = {one.name for one in fields(Placement)}
    guest = Placement(**{name: value for name, value in told.items() if name in names})
    return {"placement": asdict(with_vcenter(guest, read_events(folder.samples)))}


def _elsewhere(record: Mapping[str, Any]) -> str | None:
    """Why this machine's own UUID does not say which VM ran; None on the machine that did."""
    host = record.get("host")
    if (host, record["clock"].get("boot_id")) == (platform.node(), boot_id()):
        return None
    return (
        f"which VM ran it is not known: its record has no UUID of {host}, and this machine, "
        f"{platform.node()}, is another or was started again since; vcenter.vm would name it"
    )


def _clock(record: Mapping[str, Any]) -> Clock:
    """The run's own clock, or a new one where the machine was started again since."""
    same = record["clock"].get("boot_id") == boot_id()
    offset_ns = record["clock"]["offset_start_ns"] if same else measure_offset_ns()
    return Clock(offset_ns=offset_ns)

"""What each stage moved: by calls, storage, network and the GPU; its growth and its epochs.

Everything is taken from the rows of the profile, so no figure here can differ from the one there.
What a stage says of itself and what its processes did are the stage's alone; what the network and
the GPU's bus carried is the machine's, whoever caused it, and says so by its scope.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from telemetry.profile import DATA, Profile, Row, share_of

Entry = dict[str, Any]
Scope = Literal["stage", "machine"]

ON_CPU = "ran on the CPU: nothing is copied to a GPU"
UNTOLD_COPIES = "the stage does not count what it copies to or from a GPU"
UNTOLD_EPOCHS = "the stage does not count passes over its data"
UNTOLD_EPOCH_BYTES = "the stage does not count what the steps of its epochs take from its table"
_UNRECORDED = "the run did not record it"
_EPOCHS = "app_epochs"
_EPOCH_BYTES = "app_epoch_bytes"


@dataclass(frozen=True, kw_only=True)
class _Flow:
    """One kind of movement, and the row whose total says how much it was."""

    what: str
    entity: str
    metric: str
    scope: Scope = "stage"

    @property
    def source(self) -> str:
        return f"{self.entity} {self.metric}"


_FLOWS = (
    _Flow(what="read by calls", entity="stage", metric="io_read_calls_bytes"),
    _Flow(what="read from storage", entity="stage", metric="io_read_bytes"),
    _Flow(what="written by calls", entity="stage", metric="io_write_calls_bytes"),
    _Flow(what="written to storage", entity="stage", metric="io_write_bytes"),
    _Flow(what="received", entity="machine", metric="net_rx_bytes", scope="machine"),
    _Flow(what="sent", entity="machine", metric="net_tx_bytes", scope="machine"),
)
_COPIES = (
    _Flow(what="to the GPU", entity="app", metric="app_host_to_device_bytes"),
    _Flow(what="from the GPU", entity="app", metric="app_device_to_host_bytes"),
)
_BUS = {"to the GPU": "gpm_pcie_rx_bytes_per_s", "from the GPU": "gpm_pcie_tx_bytes_per_s"}
"""The second witness of what was copied: the bus, with all that anybody sent over it."""
_SAID = (
    _Flow(what="input", entity=DATA, metric="bytes_in"),
    _Flow(what="output", entity=DATA, metric="bytes_out"),
)
_GPU = re.compile(r"gpu:.+")


def data_moved(profile: Profile, run: Mapping[str, Any]) -> list[Entry]:
    """An entry for each measured stage of ``run`` (``run.json``), in its order.

    ``moved`` has bytes, source, scope and coverage of each movement; ``bytes`` is null where it was
    not measured, and exactly then ``reason`` is a sentence. ``bytes_per_epoch`` is what the steps
    of a pass took from the stage's table, on the mean of all passes, and
    ``bytes_per_epoch_of_input`` how many times the bytes of the stage's input that is. The entry's
    own ``reason`` says what of growth and epochs is null, and why.
    """
    return [
        _entry(profile, run, stage)
        for stage in run["stages"]
        if stage.get("start_ns") is not None and stage.get("end_ns") is not None
    ]


def _entry(profile: Profile, run: Mapping[str, Any], stage: Mapping[str, Any]) -> Entry:
    name = stage["name"]
    growth = profile.find(name, DATA, "growth_ratio")
    grown = growth.mean if growth else None
    reasons = [] if grown is not None else [f"growth: {_why(growth)}"]
    return {
        "stage": name,
        "moved": [
            *(_moved(profile, name, flow) for flow in _FLOWS),
            *_gpu(profile, run, stage),
            *(_moved(profile, name, flow) for flow in _SAID),
        ],
        "growth_ratio": grown,
        **_epochs(profile, name, reasons),
        "reason": "; ".join(reasons) or None,
    }


def _why(row: Row | None, otherwise: str = _UNRECORDED) -> str:
    if row and row.total is not None and row.whole is None:
        share = share_of(row.total_share, row.coverage)
        return f"it was seen in {100 * share:.0f} % of the stage alone"
    return (row.reason if row else None) or otherwise


def _moved(profile: Profile, stage: str, flow: _Flow, otherwise: str = _UNRECORDED) -> Entry:
    row = profile.find(stage, flow.entity, flow.metric)
    moved = row.whole if row else None
    reason = _why(row, otherwise)
    return {
        "what": flow.what,
        "bytes": moved,
        "source": flow.source,
        "scope": flow.scope,
        "coverage": row.coverage if row else 0.0,
        "reason": reason if moved is None else None,
    }


def _gpu(profile: Profile, run: Mapping[str, Any], stage: Mapping[str, Any]) -> Iterator[Entry]:
    """What the stage counted itself, beside it what the bus of each GPU carried."""
    name = stage["name"]
    gpus = sorted({row.entity for row in profile.of(name) if _GPU.fullmatch(row.entity)})
    otherwise = _why_no_copies(profile, run, stage)
    for flow in _COPIES:
        yield _moved(profile, name, flow, otherwise)
        for gpu in gpus:
            bus = _Flow(what=flow.what, entity=gpu, metric=_BUS[flow.what], scope="machine")
            yield _moved(profile, name, bus)


def _why_no_copies(profile: Profile, run: Mapping[str, Any], stage: Mapping[str, Any]) -> str:
    """Why a stage counted no copies: it says that it ran on the CPU, or there is no GPU at all."""
    summary = stage.get("summary") or {}
    memory = summary.get("memory") or {}
    processor = ((run.get("environment") or {}).get("cpu") or {}).get("model")
    if str(memory.get("gpu", "")).startswith("absent") or (
        processor is not None and summary.get("device") == processor
    ):
        return ON_CPU
    none = next((row.reason for row in profile.of(stage["name"]) if row.entity == "gpu"), None)
    return none or UNTOLD_COPIES


def _epochs(profile: Profile, stage: str, reasons: list[str]) -> dict[str, float | None]:
    """Passes over the data, and the bytes of one; why there are none goes into ``reasons``."""
    passes = profile.find(stage, "app", _EPOCHS)
    taken = profile.find(stage, "app", _EPOCH_BYTES)
    said = profile.find(stage, DATA, "bytes_in")
    epochs = passes.whole if passes else None
    each = share = None
    if not epochs:
        reasons.append(f"epochs: {_why(passes, UNTOLD_EPOCHS)}")
    elif (steps := taken.whole if taken else None) is None:
        reasons.append(f"bytes per epoch: {_why(taken, UNTOLD_EPOCH_BYTES)}")
    else:
        each = steps / epochs
        share = each / said.total if said and said.total else None
    return {
        "epochs": epochs or None,
        "bytes_per_epoch": each,
        "bytes_per_epoch_of_input": share,
    }

"""vCenter's view of this run's VMs and their hosts: one query round now and then, of what is new.

Entities are ``vm:<name>@<host>`` and ``vm:<name>@<host>/<disk>``, ``esxi:<host>`` and
``esxi:<host>/gpu:<instance>``. The windows keep the stamps that the server gave them, which are
the host's; ``clock_offset_seconds`` says how far its clock was from this machine's. Nobody waits
for this collector: it is not asked a last time at the end, since the backfill does that better.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra.vsphere.errors import vms_in
from infra.vsphere.secrets import account
from infra.vsphere.session import VCenter
from infra.vsphere.settings import VCenterSettings
from telemetry.clock import Clock
from telemetry.collectors.vcenter_hosts import Whereabouts
from telemetry.collectors.vcenter_journal import Journal
from telemetry.collectors.vcenter_metrics import INTERVAL_S, METRICS, ROWS
from telemetry.collectors.vcenter_round import Rounds, dmi_uuid, started_ns
from telemetry.collectors.vcenter_seen import Seen
from telemetry.samples import Metric, Sample, Samples, Series

CLOSE_S = 1.5
"""For the logout: whoever ends the recorder waits no longer than 5 s for all of it."""


@dataclass(kw_only=True)
class VCenterCollector:
    """One run's vCenter. ``losses``: what it could not get, other than by being away."""

    clock: Clock
    settings: VCenterSettings
    folder: Path | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    product_uuid: str | None = field(default_factory=dmi_uuid)
    name: str = "vcenter"
    remote: bool = True
    """What answers is another machine: see ``telemetry.health``."""
    _vcenter: VCenter | None = field(default=None, repr=False)
    _rounds: Rounds | None = field(default=None, repr=False)
    _first: Samples = field(default=(), repr=False)
    _away: bool = field(default=False, repr=False)
    _halted: threading.Event = field(default_factory=threading.Event, repr=False)
    _unwritten: deque[Sample] = field(default_factory=deque, repr=False)

    def __post_init__(self) -> None:
        self.period_s = self.settings.query_period_s

    @property
    def slow_periods(self) -> dict[str, float]:
        """The windows come from a source with a period of its own."""
        return {row.metric.name: float(INTERVAL_S) for row in ROWS}

    @property
    def losses(self) -> list[str]:
        return [f"vcenter: {one}" for one in self._rounds.problems] if self._rounds else []

    def open(self) -> Sequence[Series]:
        """Log in, find the VMs, and find out what there is to ask; repeated until it succeeds.

        A machine that the vCenter does not know has nothing to ask for, which is no failure.
        Raises VCenterError.
        """
        if self._vcenter is None:
            self._vcenter = VCenter(self.settings, environ=self.environ)
        rounds = Rounds(
            vcenter=self._vcenter,
            clock=self.clock,
            journal=self._journal,
            seen=Seen.read(self.folder, INTERVAL_S) if self.folder else Seen(INTERVAL_S),
            since_ns=started_ns(self.folder, self.clock),
            product_uuid=self.product_uuid,
            whereabouts=Whereabouts.of(self._journal.read()),
            halted=self._halted.is_set,
        )
        try:
            with self._telling():
                rounds.connect()
                self._first = rounds.look("start")
        except LookupError as error:
            self._vcenter.close(CLOSE_S)
            return absent(str(error))
        self._rounds = rounds
        return rounds.declared()

    def sample(self) -> Samples:
        """One query round. Raises VCenterError where the vCenter is away; the next one goes on."""
        assert self._rounds is not None
        self._rounds.give_back(self._unwritten.popleft() for _ in range(len(self._unwritten)))
        with self._telling():
            self._rounds.vcenter.open()
            clocks, self._first = self._first or self._rounds.look("round"), ()
            rows = [*clocks, *self._rounds.ask()]
        self._rounds.forget()
        return rows

    def take_back(self, rows: Samples) -> None:
        """Rows that could not be written: the next round asks for their windows again. For any
        thread."""
        self._unwritten.extend(rows)

    def halt(self) -> None:
        """End a round that is under way after its present request. For any thread."""
        self._halted.set()

    def close(self) -> None:
        """Log out, even while a request of another thread hangs."""
        if self._vcenter is not None:
            self._vcenter.close(CLOSE_S)

    @property
    def _journal(self) -> Journal:
        return Journal(folder=self.folder, clock=self.clock)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Note once that the vCenter was lost, and once that it is back."""
        try:
            yield
        except Exception as error:
            user = account(self.settings, self.environ)
            with contextlib.suppress(OSError):  # of a full disk, which may be what failed
                self._journal.named(user=user, vms=vms_in(error))
            if not self._away:
                self._journal.write("lost", reason=str(error))
            self._away = True
            raise
        if self._away:
            self._journal.write("back")
        self._away = False


def absent(reason: str) -> list[Series]:
    """All metrics, as what cannot be had at all."""
    return [
        Series(entity="esxi" if _of_host(metric) else "vm", metric=metric, reason=reason)
        for metric in METRICS
    ]


def _of_host(metric: Metric) -> bool:
    return not metric.name.startswith("vm_")

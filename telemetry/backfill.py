"""What vCenter still has of a run once it is over: late windows, those of an outage, the gaps.

Runs after the recorder, in a session of its own, and reads from the run's folder how far the
collector had come; so it may run again later, and adds what is missing and nothing twice.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from infra.vsphere.errors import VCenterRefused, VCenterUntrusted, vms_in
from infra.vsphere.secrets import account
from infra.vsphere.session import VCenter
from infra.vsphere.settings import VCenterSettings
from telemetry.clock import Clock
from telemetry.collectors.vcenter import absent
from telemetry.collectors.vcenter_hosts import Whereabouts
from telemetry.collectors.vcenter_journal import Journal
from telemetry.collectors.vcenter_metrics import INTERVAL_S, ROWS
from telemetry.collectors.vcenter_round import Rounds, dmi_uuid
from telemetry.collectors.vcenter_seen import Key, Seen
from telemetry.runfolder import RunFolder
from telemetry.samples import Sample, Series
from telemetry.segments import SUFFIX, SegmentWriter

NAME = "vcenter-backfill"
ABSENT = "vcenter-absent"
"""Segment that says why nothing is there; gone once something is."""
POLL_S = 10.0
"""Between two questions for windows that are late: half the length of one."""
NEVER_SEEN_S = 10.0
"""So long a vCenter is tried that has not answered once during the run."""
INTERRUPTED = "the wait for its last windows was interrupted"
MOST_TOLD = 8
"""Gaps that are losses one by one; the rest are counted. The journal has all."""
Gap = tuple[str, int, int, tuple[str, ...]]


def backfill(
    folder: RunFolder,
    settings: VCenterSettings,
    clock: Clock,
    *,
    deadline_s: float | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    sleep: Callable[[float], None] = time.sleep,
    environ: Mapping[str, str] = os.environ,
    product_uuid: str | None = None,
    elsewhere: str | None = None,
) -> list[str]:
    """Fetch all windows of the run, wait for those that are late, and list what stays missing.

    ``deadline_s``: how long to wait, by ``clock``; None takes the settings', 0 asks once.
    ``say`` is told what is waited for. ``product_uuid``: of the machine that ran; None takes this
    machine's, unless ``elsewhere`` says why that is another. Returns the losses, a sentence each.
    Never raises.
    """
    wait_s = settings.backfill_deadline_s if deadline_s is None else deadline_s
    try:
        run = folder.read()
        until_ns = run.get("ended_ns") or clock.now_ns()
        one = _Backfill(
            folder=folder,
            settings=replace(settings, timeout_s=min(settings.timeout_s, max(5.0, wait_s))),
            clock=clock,
            since_ns=run["started_ns"],
            until_ns=until_ns,
            deadline_ns=clock.now_ns() + round(wait_s * 1e9),
            say=say,
            sleep=sleep,
            environ=environ,
            product_uuid=product_uuid or (None if elsewhere else dmi_uuid()),
            elsewhere=elsewhere,
        )
        return [f"vcenter: {loss}" for loss in one.run()]
    except KeyboardInterrupt:  # a second one, while it ends after the first
        return [f"vcenter: {INTERRUPTED}"]
    except Exception as error:  # noqa: BLE001 - the boundary: a run ends without its vCenter too
        return [f"vcenter: its windows were not fetched: {type(error).__name__}: {error}"]


@dataclass(kw_only=True)
class _Backfill:
    """One run's backfill. Times are on the run's clock."""

    folder: RunFolder
    settings: VCenterSettings
    clock: Clock
    since_ns: int
    until_ns: int
    deadline_ns: int
    say: Callable[[str], None]
    sleep: Callable[[float], None]
    environ: Mapping[str, str]
    product_uuid: str | None
    elsewhere: str | None
    failure: str | None = None
    added: int = 0
    _looked: bool = False
    _begin_ns: int = field(init=False)
    _rounds: Rounds = field(init=False)

    def run(self) -> list[str]:
        journal = Journal(folder=self.folder.samples, clock=self.clock)
        begin_ns = self._begin_ns = self.clock.now_ns()
        seen = Seen.read(self.folder.samples, INTERVAL_S)
        settings = self.settings
        if not seen.names():
            settings = replace(settings, timeout_s=min(settings.timeout_s, NEVER_SEEN_S))
        with_vcenter = VCenter(settings, environ=self.environ)
        self._rounds = Rounds(
            vcenter=with_vcenter,
            clock=self.clock,
            journal=journal,
            seen=seen,
            since_ns=self.since_ns,
            until_ns=self.until_ns,
            product_uuid=self.product_uuid,
            elsewhere=self.elsewhere,
            whereabouts=Whereabouts.of(journal.read()),
        )
        try:
            self._fetch()
        except KeyboardInterrupt:
            self.failure = INTERRUPTED
        finally:
            with_vcenter.close()
        gaps = list(self._gaps())
        journal.drop("gap")
        for entity, from_ns, to_ns, metrics in gaps:
            which = {"metrics": list(metrics)} if metrics else {}
            journal.write("gap", entity=entity, from_ns=from_ns, to_ns=to_ns, **which)
        seconds = round((self.clock.now_ns() - begin_ns) / 1e9, 3)
        journal.write(
            "backfill", added=self.added, gaps=len(gaps), seconds=seconds, failure=self.failure
        )
        return self._losses(gaps)

    def _fetch(self) -> None:
        """Ask until nothing is missing or the time is over. A vCenter that is away is tried again,
        one that refuses is not."""
        told = False
        while True:
            late = True
            try:
                late = self._ask()
                self.failure = None
            except (VCenterRefused, VCenterUntrusted, LookupError) as error:
                self._fail(error)
                return
            except OSError as error:
                self._fail(error)
            left_s = (self._deadline_ns() - self.clock.now_ns()) / 1e9
            if not late or left_s <= 0:
                return
            if not told:
                self.say(f"vCenter: waiting up to {left_s:.0f} s for {self._waited_for()}")
                told = True
            self.sleep(min(POLL_S, left_s))

    def _fail(self, error: Exception) -> None:
        self.failure = str(error)
        user = account(self.settings, self.environ)
        with contextlib.suppress(OSError):  # of a full disk, which may be what failed
            self._rounds.journal.named(user=user, vms=vms_in(error))

    def _deadline_ns(self) -> int:
        """A vCenter that was there before is waited for; one that never was is not."""
        if self._looked or self._rounds.seen.names():
            return self.deadline_ns
        return min(self.deadline_ns, self._begin_ns + round(NEVER_SEEN_S * 1e9))

    def _waited_for(self) -> str:
        return "it to answer" if self.failure else "the last windows of the run"

    def _ask(self) -> bool:
        """One round; returns whether windows of the run can still be on their way."""
        if not self._looked:
            self._rounds.connect()
            self._write(self._rounds.look("end"))
            self._looked = True
        self._rounds.vcenter.open()
        rows = self._rounds.ask(self.until_ns - self.since_ns)
        self._write(rows)
        self.added += len(rows)
        return any(self._is_late(one.owner, one.names()) for one in self._rounds.sources)

    def _objects(self) -> list[tuple[str, list[Key]]]:
        """VMs and hosts with their series: as the vCenter has them, else as they have samples."""
        objects = {source.owner: source.names() for source in self._rounds.sources}
        names = self._rounds.seen.names()
        where = self._rounds.whereabouts
        for owner in [*(f"vm:{vm}" for vm in where.vms()), *(f"esxi:{h}" for h in where.hosts())]:
            mine = [key for key in names if f"{key[0]}/".startswith(f"{owner}/")]
            objects.setdefault(owner, mine)
        return list(objects.items())

    def _is_late(self, owner: str, names: list[Key]) -> bool:
        """Whether the last answer is missing: of a series that had any or, where none had, of all.

        What is missing before later windows (around a vMotion, say) is not waited for.
        """
        seen, until_ns = self._rounds.seen, self.until_ns + self._rounds.offset_ns(owner)
        known = [key for key in names if seen.has(key)] or names
        newest_ns = [seen.newest_ns(key) for key in known]
        return any(one is None or one < until_ns for one in newest_ns)

    def _missing(self, owner: str, key: Key) -> list[tuple[int, int]]:
        """Stretches of the run without windows, by the clock that stamps them."""
        offset_ns = self._rounds.offset_ns(owner)
        since_ns, until_ns = self.since_ns + offset_ns, self.until_ns + offset_ns
        return self._rounds.seen.gaps(key, since_ns, until_ns)

    def _write(self, rows: list[Sample]) -> None:
        """Append rows to a segment of the backfill's own. Raises OSError (a full disk)."""
        if rows:
            writer = self._writer(NAME, self._rounds.declared())
            try:
                writer.write(rows)
            except OSError:
                self._rounds.give_back(rows)
                raise
            finally:
                writer.close()
            for path in self.folder.samples.glob(f"{ABSENT}-*{SUFFIX}"):
                path.unlink()

    def _writer(self, name: str, series: list[Series]) -> SegmentWriter:
        return SegmentWriter(
            self.folder.samples,
            name,
            series,
            host=platform.node(),
            period_s=self.settings.query_period_s,
            slow={row.metric.name: float(INTERVAL_S) for row in ROWS},
            offset_ns=self.clock.offset_ns,
        )

    def _gaps(self) -> Iterator[Gap]:
        """What stays missing of each object: by stretch, the metrics; none named means all."""
        for owner, names in self._objects():
            by_stretch: dict[tuple[int, int], list[str]] = {}
            for part, metric in names:
                label = f"{metric} {part.removeprefix(owner).removeprefix('/')}".rstrip()
                for stretch in self._missing(owner, (part, metric)):
                    by_stretch.setdefault(stretch, []).append(label)
            for (from_ns, to_ns), metrics in sorted(by_stretch.items()):
                entity = self._rounds.entity(owner, to_ns)
                yield entity, from_ns, to_ns, () if len(metrics) == len(names) else tuple(metrics)

    def _losses(self, gaps: list[Gap]) -> list[str]:
        losses = [*self._rounds.problems]
        if self.failure is not None:
            losses.append(self.failure)
        if not self._looked and not self._rounds.seen.names():
            self._declare_absent()
        for entity, from_ns, to_ns, metrics in gaps[:MOST_TOLD]:
            what = f"{_listed(metrics)} of {entity}" if metrics else f"anything of {entity}"
            losses.append(f"no sample of {what} from {_time(from_ns)} to {_time(to_ns)}")
        if len(gaps) > MOST_TOLD:
            losses.append(f"{len(gaps) - MOST_TOLD} more gaps, all in samples/vcenter.jsonl")
        return losses

    def _declare_absent(self) -> None:
        """Nothing was ever got: the metrics are absent, with the reason."""
        for path in self.folder.samples.glob(f"{ABSENT}-*{SUFFIX}"):
            path.unlink()
        writer = self._writer(ABSENT, absent(f"the vCenter could not be asked: {self.failure}"))
        writer.begin()
        writer.close()


def _listed(metrics: tuple[str, ...]) -> str:
    rest = len(metrics) - 3
    return ", ".join(metrics[:3]) + (f" and {rest} more" if rest > 0 else "")


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec="seconds")

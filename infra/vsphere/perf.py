"""Samples of many counters of many objects: asked in chunks, read as they stream in.

The load on the server is bounded by what it allows itself (maxQueryMetrics), every request has a
start time, and one object that is gone or forbidden does not cost the others their samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pyVmomi import vim, vmodl

from infra.vsphere.counters import REALTIME_S
from infra.vsphere.errors import VCenterError, VCenterRefused, VCenterUnreachable
from infra.vsphere.perf_xml import PerfSeries, SoapError, Wanted, envelope, read_answer
from infra.vsphere.session import VCenter

__all__ = ["PerfSeries", "Wanted", "chunks", "max_query_metrics", "query"]

MAX_QUERY_KEY = "config.vpxd.stats.maxQueryMetrics"
DEFAULT_CHUNK = 256
"""What a vCenter allows by default (from 6.5 on), and what is asked where it does not say."""
MOST_CHUNK = 4096
"""Where there is no limit (-1): some hundred kB of request, and some hundred objects."""
_NOT_AUTHENTICATED = "NotAuthenticated"
_NO_CSV = frozenset({"InvalidArgument", "NotSupported", "NotImplemented", "InvalidRequest"})
"""Faults by which a server can refuse the format; if it was not that, it repeats them."""
_TOO_MUCH = frozenset({"RestrictedByAdministrator", "InvalidArgument"})
"""More than maxQueryMetrics after all, or one counter among others that it does not take."""

Refuse = Callable[[Wanted, str], None]


def max_query_metrics(vcenter: VCenter) -> int:
    """How many series one request may ask for. An account that may not read it gets the default."""
    manager = vcenter.content.setting
    try:
        options = vcenter.call(lambda: manager.QueryOptions(name=MAX_QUERY_KEY), read_only=True)
        limit = int(options[0].value)
    except (vmodl.MethodFault, VCenterRefused, AttributeError, IndexError, TypeError, ValueError):
        return DEFAULT_CHUNK
    if limit < 0:
        return MOST_CHUNK
    return min(limit, MOST_CHUNK) or DEFAULT_CHUNK


def chunks(wanted: Sequence[Wanted], most: int) -> Iterator[list[Wanted]]:
    """Cut what is wanted into requests of at most ``most`` series, an object's apart if need be."""
    part: list[Wanted] = []
    room = most
    for one in wanted:
        counters = one.counters
        while counters:
            taken, counters = counters[:room], counters[room:]
            part.append(one._replace(counters=taken))
            room -= len(taken)
            if room == 0:
                yield part
                part, room = [], most
    if part:
        yield part


def query(
    vcenter: VCenter,
    wanted: Sequence[Wanted],
    *,
    start_ns: int,
    end_ns: int | None = None,
    interval_s: int = REALTIME_S,
    chunk: int | None = None,
    refuse: Refuse | None = None,
    problems: list[str] | None = None,
) -> Iterator[PerfSeries]:
    """Ask for all samples after ``start_ns`` and up to ``end_ns``, on the server's clock.

    ``chunk``: series per request; None asks the server for its limit. ``refuse``: told of each
    object that the server has no answer for, and why; without it such a fault is raised as
    VCenterRefused. ``problems``: gets a sentence per series that could not be used.
    """
    most = max_query_metrics(vcenter) if chunk is None else chunk
    asker = _Asker(vcenter, start_ns, end_ns, interval_s, [] if problems is None else problems)
    for part in chunks(wanted, most):
        yield from asker.ask(part, refuse)


class _Asker:
    """One question's times and the format that this server understands."""

    def __init__(
        self,
        vcenter: VCenter,
        start_ns: int,
        end_ns: int | None,
        interval_s: int,
        problems: list[str],
    ) -> None:
        self._vcenter, self._problems = vcenter, problems
        self._start_ns, self._end_ns, self._interval_s = start_ns, end_ns, interval_s
        self._form = "csv"

    def ask(self, part: list[Wanted], refuse: Refuse | None) -> Iterator[PerfSeries]:
        """All series of a chunk; of one that is refused, those of its parts that are not."""
        try:
            yield from self._once(part)
        except SoapError as fault:
            if len(part) > 1:
                half = len(part) // 2
                yield from self.ask(part[:half], refuse)
                yield from self.ask(part[half:], refuse)
            elif fault.name in _TOO_MUCH and len(part[0].counters) > 1:
                for fewer in chunks(part, len(part[0].counters) // 2):
                    yield from self.ask(fewer, refuse)
            elif refuse is not None:
                refuse(part[0], str(fault))
            else:
                raise VCenterRefused(
                    f"vCenter has no samples of {part[0].kind} {part[0].moid}: {fault}"
                ) from fault

    def _once(self, part: list[Wanted]) -> list[PerfSeries]:
        try:
            return self._vcenter.call(lambda: self._post(part), read_only=True)
        except SoapError as fault:
            if self._form != "csv" or fault.name not in _NO_CSV:
                raise
        self._form = "normal"
        try:
            return self._vcenter.call(lambda: self._post(part), read_only=True)
        except SoapError:
            self._form = "csv"  # it was not the format
            raise

    def _post(self, part: list[Wanted]) -> list[PerfSeries]:
        """One request. A session that is gone is the fault that ``VCenter.call`` knows."""
        manager = self._vcenter.content.perfManager._GetMoId()
        asked = envelope(
            manager,
            part,
            start_ns=self._start_ns,
            end_ns=self._end_ns,
            interval_s=self._interval_s,
            form=self._form,
        )
        problems: list[str] = []
        try:
            with self._vcenter.post(asked) as body:
                read = read_answer(body, problems)
                series = [one for one in read if one.interval_s == self._interval_s]
        except SoapError as fault:
            if fault.name == _NOT_AUTHENTICATED:
                raise vim.fault.NotAuthenticated(msg=fault.sentence) from fault
            raise
        except VCenterError:
            raise
        except ValueError as error:
            raise VCenterUnreachable(str(error)) from error
        self._problems += problems
        return series

"""QueryPerf on the wire: the envelope that asks, and a reader of the answer as it streams in.

Both formats of the answer come out alike: a series has one time and one value per sample, in
whatever order the server gave them. Nothing of the answer is kept but the entity that is being
read, so an answer may be of any size.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import IO, Any, NamedTuple
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

CHUNK_BYTES = 1 << 16
"""Read and parsed at once: short, so that other threads get their turn in between."""
MISSING = -1
"""What a server gives for a sample that it does not have (any negative value)."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
    ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>'
    '<QueryPerf xmlns="urn:vim25">{0}</QueryPerf></soapenv:Body></soapenv:Envelope>'
)


class Wanted(NamedTuple):
    """One object, and which of its counters: pairs of counter id and instance ('' or '*')."""

    kind: str
    moid: str
    counters: tuple[tuple[int, str], ...]


class PerfSeries(NamedTuple):
    """Samples of one counter of one object, as the server gave them: order, repeats and all.

    ``ends_ns``: the ends of the samples, ns since 1970 on the clock of the host that made them;
    ``values``: int64 in the counter's unit, negative where the server has none.
    """

    moid: str
    counter_id: int
    instance: str
    interval_s: int
    ends_ns: Ints
    values: Ints


class SoapError(Exception):
    """A fault instead of an answer: ``name`` is its type, such as NotAuthenticated."""

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(name, sentence)
        self.name, self.sentence = name, sentence

    def __str__(self) -> str:
        return f"{self.sentence.rstrip('. ')} ({self.name})" if self.sentence else self.name


def envelope(
    manager: str,
    wanted: Sequence[Wanted],
    *,
    start_ns: int,
    end_ns: int | None,
    interval_s: int,
    form: str,
) -> bytes:
    """The SOAP request. ``start_ns`` is exclusive and never left out: a server may answer a year.

    ``form``: "csv" or "normal".
    """
    times = f"<startTime>{time_text(start_ns)}</startTime>"
    if end_ns is not None:
        times += f"<endTime>{time_text(end_ns)}</endTime>"
    specs = "".join(
        f"<querySpec><entity type={quoteattr(one.kind)}>{escape(one.moid)}</entity>{times}"
        + "".join(
            f"<metricId><counterId>{number}</counterId><instance>{escape(instance)}</instance>"
            "</metricId>"
            for number, instance in one.counters
        )
        + f"<intervalId>{interval_s}</intervalId><format>{form}</format></querySpec>"
        for one in wanted
    )
    this = f'<_this type="PerformanceManager">{escape(manager)}</_this>'
    return _ENVELOPE.format(this + specs).encode()


def time_text(ns: int) -> str:
    """An xsd:dateTime, to the microsecond."""
    return f"{_EPOCH + timedelta(microseconds=ns // 1000):%Y-%m-%dT%H:%M:%S.%fZ}"


@functools.lru_cache(maxsize=4096)
def time_ns(text: str) -> int:
    """ns since 1970 of an xsd:dateTime; one without a zone is UTC. Raises ValueError."""
    return datetime_ns(datetime.fromisoformat(text))


def datetime_ns(moment: datetime) -> int:
    """ns since 1970; a moment without a zone is UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MICROSECOND * 1000


@functools.lru_cache(maxsize=256)
def _stamps(text: str) -> tuple[int, tuple[tuple[int, Ints, Ints | None], ...]]:
    """Number of samples of ``20,time,20,time…``, and by interval the ends and the places of them.

    The places are None where all samples have one interval, as they do. All objects of an answer
    have the same few times, so this is worked out once.
    """
    fields = text.split(",") if text else []
    if len(fields) % 2:
        raise ValueError(f"sample times do not come in pairs: {text[:80]!r}")
    intervals = np.array([int(one) for one in fields[::2]], np.int64)
    ends_ns = np.array([time_ns(one.strip()) for one in fields[1::2]], np.int64)
    ends_ns.flags.writeable = False  # shared by all series that have these times
    kinds = [int(one) for one in np.unique(intervals)]
    if len(kinds) <= 1:
        return len(ends_ns), tuple((kind, ends_ns, None) for kind in kinds)
    places = [np.flatnonzero(intervals == kind) for kind in kinds]
    return len(ends_ns), tuple(
        (kind, ends_ns[at], at) for kind, at in zip(kinds, places, strict=True)
    )


class _Reading:
    """The state of one answer: fed bytes, it has the series that are complete in ``done``."""

    def __init__(self, problems: list[str]) -> None:
        self.done: list[PerfSeries] = []
        self.answered = False
        self.fault: SoapError | None = None
        self._problems = problems
        self._parts: list[str] = []
        self._depth = 0
        self._begin_entity()
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.CharacterDataHandler = self._parts.append
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.StartDoctypeDeclHandler = _refuse_doctype

    def _begin_entity(self) -> None:
        self._moid, self._info = "", ""
        self._times: list[str] = []
        self._intervals: list[str] = []

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._parts.clear()
        if name == "value":
            self._depth += 1
            if self._depth == 1:
                self._values: list[str] = []
        elif name == "returnval":
            self._begin_entity()
        elif name.endswith("Fault"):
            self.fault = SoapError("Fault", "")
            self.parser.StartElementHandler = self._start_in_fault
            self.parser.EndElementHandler = self._end_in_fault
        elif name.endswith("QueryPerfResponse"):
            self.answered = True

    def _end(self, name: str) -> None:
        if name == "value":
            self._depth -= 1
            if self._depth:
                self._values.append("".join(self._parts))
            else:
                self._end_series()
        elif name == "counterId":
            self._counter_id = int("".join(self._parts))
        elif name == "instance":
            self._instance = "".join(self._parts)
        elif name == "entity":
            self._moid = "".join(self._parts)
        elif name == "sampleInfoCSV":
            self._info = "".join(self._parts)
        elif name == "timestamp":
            self._times.append("".join(self._parts))
        elif name == "interval":
            self._intervals.append("".join(self._parts))
        self._parts.clear()

    def _end_series(self) -> None:
        """A format of one text per value and one of one text for all, are one when joined."""
        if self._times:
            pairs = zip(self._intervals, self._times, strict=True)
            self._info = ",".join(f"{interval},{time}" for interval, time in pairs)
            self._times, self._intervals = [], []
        text = ",".join(self._values)
        values = [int(one) if one else MISSING for one in text.split(",")] if text else []
        count, stretches = _stamps(self._info)
        if len(values) != count:
            self._problems.append(
                f"{self._moid}, counter {self._counter_id} {self._instance!r}: {count} times and "
                f"{len(values)} values do not belong together; left out"
            )
            return
        numbers = np.array(values, np.int64)
        for interval_s, ends_ns, places in stretches:
            own = numbers if places is None else numbers[places]
            self.done.append(
                PerfSeries(self._moid, self._counter_id, self._instance, interval_s, ends_ns, own)
            )

    def _start_in_fault(self, name: str, attributes: dict[str, str]) -> None:
        self._parts.clear()
        assert self.fault is not None
        kind = next((kind for key, kind in attributes.items() if key.endswith(":type")), "")
        if name.endswith("Fault") and self.fault.name == "Fault":
            self.fault.name = kind.rpartition(":")[2] or name.rpartition(":")[2]

    def _end_in_fault(self, name: str) -> None:
        assert self.fault is not None
        if name.rpartition(":")[2] in {"faultstring", "Text"}:
            self.fault.sentence = " ".join("".join(self._parts).split())
        elif name == "invalidProperty":
            self.fault.sentence += f" [{''.join(self._parts)}]"
        self._parts.clear()


def _refuse_doctype(*_: Any) -> None:
    raise ValueError("a SOAP answer has no document type: this is not one")


def read_answer(body: IO[bytes], problems: list[str]) -> Iterator[PerfSeries]:
    """Read an answer piece by piece. ``problems``: gets a sentence per series that is unusable.

    Raises SoapError where the server answers with one, ValueError where this is no answer, or
    only the beginning of one.
    """
    reading = _Reading(problems)
    try:
        while piece := body.read(CHUNK_BYTES):
            reading.parser.Parse(piece, False)
            if reading.done:
                yield from reading.done
                reading.done = []
        reading.parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise ValueError(f"the answer to QueryPerf is not whole, or no XML: {error}") from error
    if reading.fault is not None:
        raise reading.fault
    if not reading.answered:
        raise ValueError("the answer to QueryPerf is some other XML")
    yield from reading.done

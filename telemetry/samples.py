"""What a collector delivers: metrics, series and samples, and the contract of a collector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Literal, NamedTuple, Protocol

Kind = Literal["gauge", "counter", "window"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured quantity: its standard name, unit and kind.

    A ``gauge`` is a level at an instant; a ``counter`` only grows and is differenced; a ``window``
    is a mean over a stretch of time that the source itself chose (vCenter's 20 s samples).
    """

    name: str
    unit: str
    kind: Kind
    meaning: str
    source: str
    integral_unit: str | None = None
    """Unit of the time integral of a gauge or window where that has a meaning (W gives J)."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One metric of one entity, or the reason why it cannot be measured here."""

    entity: str
    metric: Metric
    reason: str | None = None


class Sample(NamedTuple):
    """One value. ``start_ns`` is set for windows only: the value covers (start_ns, ts_ns]."""

    ts_ns: int
    series: Series
    value: float
    start_ns: int | None = None


Samples = Sequence[Sample]

_sample = partial(tuple.__new__, Sample)


def samples_at(ts_ns: int, series: Iterable[Series], values: Iterable[float]) -> list[Sample]:
    """A sample of each series at one moment; of more values than series the first ones.

    In two thirds of the time that ``Sample(...)`` takes: hundreds of them are made each second.
    """
    return list(map(_sample, zip(repeat(ts_ns), series, values, repeat(None), strict=False)))


class Collector(Protocol):
    """A source of samples. A new one is a file in ``collectors/`` and a line in its table.

    One whose ticks shall cost little may also have ``look``, as ``sample`` but free to keep what it
    read as it is, and ``settle``, which returns the samples of the looks before and never waits
    long; it is called just before samples are written.
    """

    name: str
    period_s: float

    def open(self) -> Sequence[Series]:
        """Find out, field by field and once, what can be measured; absent series carry a reason."""
        ...

    def sample(self) -> Samples:
        """Return 0..n samples with their own times (ns, UTC)."""
        ...

    def close(self) -> None:
        """Release what ``open`` took."""
        ...

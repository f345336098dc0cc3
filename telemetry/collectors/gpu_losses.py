"""What of the GPUs goes away after opening: told when it does, and again if it was back between."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from infra import nvml
from telemetry.collectors.gpu_metrics import UP
from telemetry.samples import Sample, Series

MOST_TOLD = 5
"""Losses of one GPU or series that are told: each begins a new segment of samples."""


_What = tuple[str, str]
"""Entity and metric of a series; a whole GPU has no metric."""


@dataclass(kw_only=True)
class Losses:
    """``told``: a sentence each; ``ended``: the series, with the reason; ``present``: all series
    that had values on opening."""

    told: list[str]
    ended: deque[Series]
    present: list[Series] = field(default_factory=list)
    _since_ns: dict[_What, int] = field(default_factory=dict)
    """What is lost now, a GPU or one of its series, and since when."""
    _times: Counter[_What] = field(default_factory=Counter)
    """How often each was lost."""

    def lose(
        self,
        gpu: nvml.Gpu,
        series: Series,
        why: nvml.Absent,
        ts_ns: int,
        more: Sequence[Series] = (),
    ) -> None:
        """Tell, once until it answers again, that a series and the ``more`` that went with it, or
        their whole GPU, have no values any more."""
        if not why.lost:
            gone = [one for one in (series, *more) if self._is_news(_what(one), ts_ns)]
            others = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
            if gone:
                self._tell(f"{_name(gone[0])}{others}", gone, why, ts_ns, _what(gone[0]))
        elif self._is_news((gpu.entity, ""), ts_ns):
            gone = [one for one in self.present if one.entity == gpu.entity]
            for one in gone:
                self._since_ns.pop(_what(one), None)  # what is wrong with it now is the GPU
            self._tell(f"{gpu.entity} ({gpu.uuid})", gone, why, ts_ns, (gpu.entity, ""))

    def _is_news(self, what: _What, ts_ns: int) -> bool:
        """Note that a GPU or series is lost; whether that is still to be told."""
        if what in self._since_ns:
            return False
        self._since_ns[what] = ts_ns
        self._times[what] += 1
        return self._times[what] <= MOST_TOLD

    def _tell(
        self, what: str, gone: Sequence[Series], why: nvml.Absent, ts_ns: int, of: _What
    ) -> None:
        when = datetime.fromtimestamp(ts_ns / 1e9, UTC).isoformat(timespec="seconds")
        last = (
            f" (for the {MOST_TOLD}th time: told no more)" if self._times[of] == MOST_TOLD else ""
        )
        self.told.append(f"{what} at {when}: {why.reason}{last}")
        self.ended += [replace(one, reason=f"since {when}: {why.reason}") for one in gone]

    def find_again(self, samples: Sequence[Sample]) -> None:
        """Forget the losses of what has answered since, so that the next one is told."""
        if not self._since_ns:
            return
        for ts_ns, series, value, _ in samples:
            is_up = series.metric is UP
            what = (series.entity, "") if is_up else _what(series)
            if (value or not is_up) and self._since_ns.get(what, ts_ns) < ts_ns:
                del self._since_ns[what]

    def clear(self) -> None:
        """Forget what was there and what was lost; what was told stays."""
        self.present.clear()
        self._since_ns.clear()
        self._times.clear()


def _what(series: Series) -> _What:
    return series.entity, series.metric.name


def _name(series: Series) -> str:
    return " ".join(_what(series))

"""How far the stamps of windows are from the guest's clock, by what both saw of one load.

A window's mean is set against the guest's own mean over the same 20 s, moved by every offset in
question. How the ratio of the two changes from one window to the next is the misfit: at the right
offset it hardly does, whatever share of the load the guest sees, and the few changes that are left
(a phase of steal begins, work that the guest cannot see) count for little, since misfits are taken
to have a Cauchy distribution. The offset that fits best counts only if no other one further than
``WITHIN_S`` away fits nearly as well, be it a second peak or a single one that is too wide.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SEARCH_S = 150.0
"""Offsets looked at, to both sides: beyond it a clock is not skewed but wrong."""
WITHIN_S = 1.0
"""What a found offset promises: no offset further away than this fits nearly as well."""
MIN_WINDOWS = 12
"""A line through fewer pairs than this fits too easily."""
MIN_CORRELATION = 0.7
"""Below it the guest's signal explains less than half of what the windows saw."""
MIN_SPREAD = 0.05
"""Windows whose standard deviation is below this share of their mean are too even to compare."""
LIKELIER = 8.0
"""By how much, in log likelihood, the best offset must beat every one beyond ``WITHIN_S``. Were
misfits independent, 4.6 would leave one chance in a hundred; one odd window makes two of them, and
which distribution they have is an assumption."""
MOST_MISFIT = 0.25
"""Median change of the ratio, in log, at which the guest's signal says nothing of the windows."""
LEAST_MISFIT = 0.01
"""Ticks of 10 ms and values in whole ms leave about this much."""
PAIRS = 400
"""Of a long run the pairs of windows in which the load changed the most say all there is to say."""
USUAL_LAG_S = 0.5
"""Standard deviation of the lag that a guest's own signal is taken to have."""
_STEP_S, _CHUNK = 0.1, 128
_FLOOR = 0.02
_NS = 1e9


@dataclass(frozen=True, kw_only=True)
class Skew:
    """The stamps' clock less the guest's, in s; None with the reason where it cannot be told.

    ``correlation``: of windows and guest at the best offset. ``lead``: by how much the best offset
    is likelier (in log) than every one further away than ``WITHIN_S``. ``width_s``: how far apart
    the offsets lie that cannot be told from the best.
    """

    offset_s: float | None
    reason: str | None = None
    correlation: float | None = None
    lead: float | None = None
    width_s: float | None = None
    windows: int = 0
    best_s: float | None = None
    """The likeliest offset where guest and hypervisor agree at all, be it believed or not."""
    curve: tuple[Floats, Floats] | None = field(default=None, repr=False, compare=False)
    """Offsets, and by how much the best one is likelier than each."""

    def speaks_against(self, offset_s: float, within_s: float) -> bool:
        """Whether the load is far from likely at this offset and those close to it.

        A load that does not tell its own offset can well tell that another one is wrong. Where
        the guest saw too few windows to look there, it is against it if it tells another one.
        """
        if self.curve is None or self.best_s is None:
            return False
        offsets, behind = self.curve
        close = np.abs(offsets - offset_s) <= within_s
        if not close.any():
            return self.offset_s is not None and abs(self.offset_s - offset_s) > within_s
        return bool(behind[close].min() > LIKELIER)

    def to_json(self) -> dict[str, Any]:
        left_out = {"curve"}
        return {one.name: getattr(self, one.name) for one in fields(self)
                if one.name not in left_out}  # fmt: skip


@dataclass(frozen=True)
class Grown:
    """What a guest's counter had grown by at each time: s since ``zero_ns``, ascending."""

    zero_ns: int
    at_s: Floats
    amount: Floats

    @classmethod
    def of(cls, ts_ns: Ints, values: Floats) -> Grown:
        """From a counter's sound samples; a step backwards counts as no growth."""
        zero = int(ts_ns[0]) if len(ts_ns) else 0
        steps = np.maximum(np.diff(values), 0.0)
        return cls(zero, (ts_ns - zero) / _NS, np.concatenate(([0.0], np.cumsum(steps))))

    def mean(self, start_s: Floats, end_s: Floats) -> Floats:
        """Mean rate in unit/s over each (start, end], s since ``zero_ns``."""
        grown = np.interp(end_s, self.at_s, self.amount)
        grown -= np.interp(start_s, self.at_s, self.amount)
        return np.asarray(grown / (end_s - start_s), dtype=np.float64)


def find_skew(
    guest: Grown, start_ns: Ints, end_ns: Ints, levels: Floats, *, search_s: float = SEARCH_S
) -> Skew:
    """Find the offset of windows (start, end] with these mean levels from the guest's clock.

    ``levels``: what the hypervisor saw, in any unit that grows with the guest's rate. Only windows
    that the guest has seen whole at an offset count there.
    """
    count = len(levels)
    order = np.argsort(end_ns, kind="stable")
    start, end = (start_ns[order] - guest.zero_ns) / _NS, (end_ns[order] - guest.zero_ns) / _NS
    levels = levels[order]
    if count < MIN_WINDOWS or len(guest.at_s) < 2:
        return _refused(f"{count} windows are too few to compare: {MIN_WINDOWS} are needed", count)
    if not levels.any() or float(levels.std()) < MIN_SPREAD * abs(float(levels.mean())):
        return _refused("the load was too even: its windows hardly differ", count)
    most = round(search_s / _STEP_S)
    offsets = np.arange(-most, most + 1, dtype=np.float64) * _STEP_S  # an exact 0 among them
    misfits = _misfits(guest, start, end, levels, offsets)
    seen = np.isfinite(misfits).sum(axis=1)
    if seen.max(initial=0) < MIN_WINDOWS - 1:
        return _refused("the guest saw too few of the windows to compare them", count)
    scale = 0.1
    for _ in range(3):
        losses = np.log1p((misfits / scale) ** 2)
        scores = np.where(seen >= MIN_WINDOWS - 1, -_nanmean(losses), -np.inf)
        best = int(np.argmax(scores))
        scale = float(np.clip(np.nanmedian(np.abs(misfits[best])), LEAST_MISFIT, MOST_MISFIT))
    losses = np.log1p((misfits / scale) ** 2)
    # Compared over the windows that the guest saw at both offsets: an offset at which a window
    # that fits badly lies outside of the guest's record is not better for it.
    behind = np.nansum(losses - losses[best], axis=1)
    behind[seen < MIN_WINDOWS - 1] = np.nan
    correlation = _correlation(guest, start, end, levels, offsets[best])
    return _judged(offsets, behind, best=best, correlation=correlation, scale=scale, count=count)


def find_lag(guest: Grown, start_ns: Ints, end_ns: Ints, levels: Floats) -> float:
    """How long after the windows, on one clock, the guest's signal comes: the likeliest lag in s.

    A lag of more than ``USUAL_LAG_S`` is unlikely to begin with, and takes so much evidence; where
    the windows say little the lag is 0.
    """
    if len(levels) < 3 or len(guest.at_s) < 2 or not levels.any():
        return 0.0
    start, end = (start_ns - guest.zero_ns) / _NS, (end_ns - guest.zero_ns) / _NS
    lags = np.arange(-4 * USUAL_LAG_S, 4 * USUAL_LAG_S + _STEP_S / 4, _STEP_S / 2)
    misfits = _misfits(guest, start, end, levels, -lags)
    misfits = misfits[:, np.isfinite(misfits).all(axis=0)]
    if misfits.shape[1] < 2:
        return 0.0
    scale, best = 0.1, len(lags) // 2
    for _ in range(3):
        # Halved: one odd window makes two misfits.
        losses = np.log1p((misfits / scale) ** 2).sum(axis=1) / 2 + (lags / USUAL_LAG_S) ** 2 / 2
        best = int(np.argmin(losses))
        scale = float(np.clip(np.median(np.abs(misfits[best])), LEAST_MISFIT, MOST_MISFIT))
    return float(lags[best])


def _nanmean(losses: Floats) -> Floats:
    known = np.isfinite(losses)
    return np.asarray(
        np.where(known, losses, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1), np.float64
    )


def _misfits(guest: Grown, start: Floats, end: Floats, levels: Floats, offsets: Floats) -> Floats:
    """[offsets, pairs of neighbouring windows]: the change of log(hypervisor / guest) between them.

    NaN where the guest did not see both. The floor keeps idle windows from counting for much.
    """
    pairs = np.flatnonzero(np.abs(start[1:] - end[:-1]) < WITHIN_S)
    floor = max(_FLOOR * float(np.abs(levels).mean()), 1e-300)
    told = np.log(np.maximum(levels, 0.0) + floor)
    changed = np.abs(told[pairs + 1] - told[pairs])
    pairs = np.sort(pairs[np.argsort(changed)[-PAIRS:]])
    found = np.full((len(offsets), len(pairs)), np.nan)
    low, high = guest.at_s[0], guest.at_s[-1]
    for first in range(0, len(offsets), _CHUNK):
        some = offsets[first : first + _CHUNK, None]
        one = _told(guest, start[pairs] - some, end[pairs] - some, floor)
        other = _told(guest, start[pairs + 1] - some, end[pairs + 1] - some, floor)
        misfit = (told[pairs + 1] - told[pairs]) - (other - one)
        whole = (start[pairs] - some >= low) & (end[pairs + 1] - some <= high)
        found[first : first + _CHUNK] = np.where(whole, misfit, np.nan)
    return found


def _told(guest: Grown, start: Floats, end: Floats, floor: float) -> Floats:
    return np.asarray(np.log(guest.mean(start, end) + floor), dtype=np.float64)


def _correlation(guest: Grown, start: Floats, end: Floats, levels: Floats, offset: float) -> float:
    seen = (start - offset >= guest.at_s[0]) & (end - offset <= guest.at_s[-1])
    own, other = guest.mean(start[seen] - offset, end[seen] - offset), levels[seen]
    own, other = own - own.mean(), other - other.mean()
    size = float(np.sqrt((own @ own) * (other @ other)))
    return float(own @ other) / size if size > 0.0 else 0.0


def _judged(
    offsets: Floats, behind: Floats, *, best: int, correlation: float, scale: float, count: int
) -> Skew:
    """The best offset, or why it is not to be believed. ``behind``: how much likelier it is."""
    offset = float(offsets[best])
    known = np.isfinite(behind)
    offsets, behind = offsets[known], behind[known]
    distance = np.abs(offsets - offset)
    beyond = distance > WITHIN_S
    lead = float(behind[beyond].min()) if beyond.any() else 0.0
    rival = float(distance[beyond][np.argmin(behind[beyond])]) if beyond.any() else 0.0
    agree = correlation >= MIN_CORRELATION and scale < MOST_MISFIT
    why = None
    if not agree:
        why = f"guest and hypervisor agree too little: their correlation is {correlation:.2f}"
    elif offsets[0] > offset - WITHIN_S or offsets[-1] < offset + WITHIN_S:
        why = "the best offset lies at the end of those that could be looked at"
    elif lead < LIKELIER:
        why = (
            f"an offset {rival:.1f} s away from the best fits nearly as well: the load repeats, "
            "or changes too seldom or too little"
        )
    return Skew(
        offset_s=None if why else offset,
        reason=why,
        correlation=correlation,
        lead=lead,
        width_s=2.0 * float(distance[behind < LIKELIER].max()),
        windows=count,
        best_s=offset if agree else None,
        curve=(offsets, behind),
    )


def _refused(reason: str, windows: int) -> Skew:
    return Skew(offset_s=None, reason=reason, windows=windows)

"""Sharpened estimates: a hypervisor's 20 s windows, shared out by what the guest saw at 10 Hz.

A window says how much and not when; the guest's own counter says when and, since it does not see
all, not how much. The estimate keeps each window's total exactly and follows the guest within it
(``denton``). Before that the guest's signal is brought to the hypervisor's level by a line through
all windows, which absorbs what goes on whatever the guest does (the idle watts of a host). Where
two neighbouring windows relate to the guest's signal in very different ways, as when the
hypervisor works unseen, nothing is carried from one to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telemetry.attribution import Stretches
from telemetry.denton import denton
from telemetry.skew import Grown, find_lag

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MOST_CELLS = 36_000
"""Cells of a series: an hour at 10 Hz. Longer runs get longer cells, yet ten a window."""
LEAST_CELL_S = 0.1
DARK_S = 1.0
"""Within a longer gap of the guest's samples a cell has no edge: it is not known what was when."""
BREAK = 2.0
"""Windows whose ratios to the guest's signal are further apart than this factor are not joined."""
LEAST_CORRELATION = 0.5
"""Below it, over the windows, the guest's signal explains under a quarter: no estimate is made."""
FIT_WINDOWS = 4
"""Fewer windows give no line; a signal in the same unit is then taken as proportional."""
MOST_ELSEWHERE = 0.25
"""Share of it that may lie in other windows than the guest's signal where a line cannot be had."""
_FLOOR = 1e-3
_NS = 1e9


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A sharpened series: stretches (start, end] with a mean level each, or why there is none."""

    start_ns: Ints
    end_ns: Ints
    level: Floats
    reason: str | None = None

    @classmethod
    def none(cls, reason: str) -> Estimate:
        empty = np.empty(0, np.int64)
        return cls(start_ns=empty, end_ns=empty, level=np.empty(0), reason=reason)


@dataclass(frozen=True)
class _Cells:
    """Cells of all windows in their order; times are s since the guest's first sample.

    ``window``: the window of each; ``seen``: what the guest's counter grew by in it, NaN where the
    guest was not yet or no longer recorded.
    """

    start_ns: Ints
    end_ns: Ints
    window: Ints
    length_s: Floats
    seen: Floats


def sharpen(windows: Stretches, signals: Sequence[Grown], *, proportional: bool = True) -> Estimate:
    """Share each window's total out in time; the total is kept.

    ``signals``: counters of the guest, of which the one that follows the windows best is taken.
    ``proportional``: with too few windows for a line, no signal means no load.
    """
    if not len(windows.level):
        return Estimate.none("there are no windows to sharpen")
    signals = [one for one in signals if len(one.at_s) > 1]
    if not signals:
        return Estimate.none("the guest recorded no signal of its own to sharpen it with")
    cut = [_cells(windows, signal) for signal in signals]
    fits = [_fit(windows, cells, proportional=proportional) for cells in cut]
    fit = max(fits, key=lambda one: one.correlation)
    if fit.reason is not None:
        return Estimate.none(fit.reason)
    cells = cut[fits.index(fit)]
    amounts = _share_out(windows, cells, fit)
    return Estimate(
        start_ns=cells.start_ns, end_ns=cells.end_ns, level=amounts / cells.length_s
    )  # fmt: skip


def _cells(windows: Stretches, signal: Grown) -> _Cells:
    """Cut the windows into cells and look up what the guest saw in each, without its lag."""
    lag_s = find_lag(signal, windows.start_ns, windows.end_ns, windows.level)
    low_ns = signal.zero_ns + round((signal.at_s[0] - lag_s) * _NS)
    high_ns = signal.zero_ns + round((signal.at_s[-1] - lag_s) * _NS)
    whole_s = float((windows.end_ns - windows.start_ns).sum()) / _NS
    cell_s = max(LEAST_CELL_S, whole_s / MOST_CELLS)
    starts, ends, which = [], [], []
    for number, (start, end) in enumerate(
        zip(windows.start_ns.tolist(), windows.end_ns.tolist(), strict=True)
    ):
        length = end - start
        count = min(max(10, round(length / _NS / cell_s)), length)
        inner = start + np.arange(1, count, dtype=np.int64) * length // count
        inner = inner[(inner > low_ns) & (inner < high_ns)]
        edge = [one for one in (low_ns, high_ns) if start < one < end]
        inner = np.unique(np.concatenate((inner[_light(signal, inner, lag_s)], edge)))
        edges = np.concatenate(([start], inner, [end])).astype(np.int64)
        starts.append(edges[:-1])
        ends.append(edges[1:])
        which.append(np.full(len(edges) - 1, number))
    start_ns, end_ns = np.concatenate(starts), np.concatenate(ends)
    shift = round(lag_s * _NS) - signal.zero_ns
    at = [np.interp((ns + shift) / _NS, signal.at_s, signal.amount) for ns in (start_ns, end_ns)]
    dark = (end_ns <= low_ns) | (start_ns >= high_ns)
    return _Cells(
        start_ns=start_ns,
        end_ns=end_ns,
        window=np.concatenate(which),
        length_s=(end_ns - start_ns) / _NS,
        seen=np.where(dark, np.nan, at[1] - at[0]),
    )


def _light(signal: Grown, edges_ns: Ints, lag_s: float) -> npt.NDArray[np.bool_]:
    """Which of these times do not lie within a long gap of the guest's samples."""
    at = (edges_ns - signal.zero_ns) / _NS + lag_s
    after = np.searchsorted(signal.at_s, at).clip(1, len(signal.at_s) - 1)
    return np.asarray(signal.at_s[after] - signal.at_s[after - 1] <= DARK_S, dtype=np.bool_)


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """level of the hypervisor = base + gain * rate of the guest, over the windows seen whole."""

    base: float
    gain: float
    correlation: float
    whole: npt.NDArray[np.bool_]
    reason: str | None = None


def _fit(windows: Stretches, cells: _Cells, *, proportional: bool) -> _Fit:
    seen = np.bincount(cells.window, cells.seen, len(windows.level))
    whole = np.isfinite(seen)
    length_s = ((windows.end_ns - windows.start_ns) / _NS)[whole]
    rates, levels = seen[whole] / length_s, windows.level[whole]
    enough = len(levels) >= FIT_WINDOWS and levels.std() > 0.0
    if not enough and (proportional or not levels.any()):
        why = _apart(rates * length_s, levels * length_s)
        correlation = 0.0 if why is None else -1.0
        return _Fit(base=0.0, gain=1.0, correlation=correlation, whole=whole, reason=why)
    if not enough and len(levels) < FIT_WINDOWS:
        why = f"{len(levels)} whole windows are too few to see how it follows the guest's signal"
        return _Fit(base=0.0, gain=0.0, correlation=-1.0, whole=whole, reason=why)
    if not enough:
        return _Fit(base=float(levels.mean()), gain=0.0, correlation=0.0, whole=whole)
    spread = float(rates.std() * levels.std())
    both = float(np.mean((rates - rates.mean()) * (levels - levels.mean())))
    correlation = both / spread if spread > 0.0 else 0.0
    if correlation < LEAST_CORRELATION:
        why = f"it follows the guest's signal too little (correlation {correlation:.2f} by windows)"
        return _Fit(base=0.0, gain=0.0, correlation=correlation, whole=whole, reason=why)
    base, gain = _line(rates, levels)
    if proportional:
        base, gain = _believed(rates, levels, base, gain)
    return _Fit(base=base, gain=gain, correlation=correlation, whole=whole)


def _apart(seen: Floats, totals: Floats) -> str | None:
    """Why a signal that is taken as proportional without a line cannot be: it was elsewhere."""
    if not len(totals):
        return "the guest was not recorded over any whole window of it"
    if not totals.any():
        return None
    if not seen.any():
        return "the guest saw nothing of it"
    elsewhere = float(np.abs(totals / totals.sum() - seen / seen.sum()).sum()) / 2
    if elsewhere <= MOST_ELSEWHERE:
        return None
    return f"{100 * elsewhere:.0f} % of it fell into other windows than the guest's signal"


def _believed(rates: Floats, levels: Floats, base: float, gain: float) -> tuple[float, float]:
    """The line with as much of its base as it has proof of, where an idle guest should mean none.

    A base that is there takes nearly all of the misfit away that a line through 0 leaves; one that
    steal or noise feign takes little. By that share the line is believed.
    """
    _, alone = _line(rates, levels, through_zero=True)
    left = float(np.abs(levels - alone * rates).sum())
    share = 1.0 - float(np.abs(levels - base - gain * rates).sum()) / left if left > 0.0 else 0.0
    share = min(max(share, 0.0), 1.0)
    return share * base, alone + share * (gain - alone)


def _line(rates: Floats, levels: Floats, *, through_zero: bool = False) -> tuple[float, float]:
    """A line with base and gain of at least 0, by least absolute distances (reweighted squares).

    The few windows in which the hypervisor worked unseen so do not lift it.
    """
    weights = np.ones(len(levels))
    base, gain = 0.0, 1.0
    for _ in range(20):
        total = weights.sum()
        x, y = float(weights @ rates / total), float(weights @ levels / total)
        spread = float(weights @ (rates - x) ** 2)
        gain = float(weights @ ((rates - x) * (levels - y))) / spread if spread > 0.0 else 0.0
        base = y - gain * x
        if gain <= 0.0 and not through_zero:
            return y, 0.0
        if base < 0.0 or through_zero:
            base, gain = 0.0, float(weights @ (rates * levels)) / float(weights @ rates**2)
        off = np.abs(levels - base - gain * rates)
        weights = 1.0 / np.maximum(off, 1e-3 * max(float(levels.max()), 1e-300))
    return base, gain


def _share_out(windows: Stretches, cells: _Cells, fit: _Fit) -> Floats:
    """The amount of each cell: level times s."""
    totals = windows.level * ((windows.end_ns - windows.start_ns) / _NS)
    dark = np.isnan(cells.seen)
    signal = fit.base * cells.length_s + fit.gain * np.where(dark, 0.0, cells.seen)
    usual = float(signal[~dark].sum() / cells.length_s[~dark].sum()) if not dark.all() else 0.0
    signal = np.maximum(signal, 0.0) + (_FLOOR * usual or 1.0) * cells.length_s
    signal /= signal.max()  # only its shape counts
    first = np.searchsorted(cells.window, np.arange(len(totals) + 1))
    amounts = np.zeros(len(signal))
    for low, high in _joined(windows, totals, np.add.reduceat(signal, first[:-1]), fit.whole):
        here = slice(first[low], first[high])
        amounts[here] = denton(signal[here], np.diff(first[low : high + 1]), totals[low:high])
    ratio = np.divide(amounts, signal)
    for number in np.flatnonzero(~fit.whole):
        here = slice(first[number], first[number + 1])
        beside = _beside(windows, first, ratio, fit.whole, int(number))
        amounts[here] = _edge(
            signal[here], dark[here], cells.length_s[here], beside, totals[number]
        )
    return _kept(amounts, totals, first, cells)


def _joined(
    windows: Stretches, totals: Floats, signal: Floats, whole: npt.NDArray[np.bool_]
) -> list[tuple[int, int]]:
    """Runs of whole windows that touch and relate to the signal alike, as (first, past last)."""
    ratio = totals / signal
    apart = windows.start_ns[1:] != windows.end_ns[:-1]
    larger, smaller = np.maximum(ratio[1:], ratio[:-1]), np.minimum(ratio[1:], ratio[:-1])
    apart |= (larger > BREAK * smaller) | ~whole[1:] | ~whole[:-1]
    edges = np.concatenate(([0], np.flatnonzero(apart) + 1, [len(totals)]))
    runs = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return [(low, high) for low, high in runs if whole[low]]


def _beside(
    windows: Stretches, first: Ints, ratio: Floats, whole: npt.NDArray[np.bool_], number: int
) -> float | None:
    """The ratio in the next cell of a whole neighbour; None where there is no neighbour."""
    touches = windows.start_ns[1:] == windows.end_ns[:-1]
    if number + 1 < len(whole) and whole[number + 1] and touches[number]:
        return float(max(ratio[first[number + 1]], 0.0))
    if number and whole[number - 1] and touches[number - 1]:
        return float(max(ratio[first[number] - 1], 0.0))
    return None


def _edge(
    signal: Floats, dark: npt.NDArray[np.bool_], length_s: Floats, ratio: float | None, total: float
) -> Floats:
    """A window that the guest saw in part: its neighbour's ratio there, and what is left elsewhere.

    Without a neighbour nothing says how much was in the part that the guest saw: it is even.
    """
    if dark.all() or ratio is None:
        return np.asarray(total * length_s / length_s.sum(), dtype=np.float64)
    amounts = np.where(dark, 0.0, ratio * signal)
    amounts *= min(1.0, total / max(float(amounts.sum()), 1e-300))
    unseen = np.where(dark, length_s, 0.0)
    return np.asarray(amounts + (total - amounts.sum()) * unseen / unseen.sum(), dtype=np.float64)


def _kept(amounts: Floats, totals: Floats, first: Ints, cells: _Cells) -> Floats:
    """No amount below 0, and each window's total as it was."""
    amounts = np.maximum(amounts, 0.0)
    sums = np.add.reduceat(amounts, first[:-1])
    scale = np.divide(totals, sums, out=np.zeros_like(totals), where=sums > 0.0)
    return np.asarray(amounts * scale[cells.window], dtype=np.float64)

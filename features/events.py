"""One entity's recent payments as bytes: how they are packed, inserted, labelled and thinned out.

A list is a row of 32-byte records (little endian) in order of time; payments of one time stand in
the order of arrival. All functions are pure: bytes in, bytes out.

Beyond ``max_events`` records the older ones are folded into hour buckets of counts and frauds. A
bucket stands at the time of its newest payment, so nothing enters a window before its time. What
that costs: at each edge of a window that falls inside a bucket, up to the bucket's count may be
wrongly in or out; a retry of a folded payment counts twice, and so does a label sent twice for it.
Up to ``max_events`` payments per entity within the horizon everything is exact.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

EVENT = np.dtype(
    [
        ("time_ns", "<i8"),
        ("cents", "<i8"),
        ("other", "<i8"),
        ("count", "<i4"),
        ("frauds", "<i4"),
    ]
)
"""``other`` is the other party's id (the terminal in a card's list, the card in a terminal's)."""
EVENT_BYTES = EVENT.itemsize
MAX_EVENTS = 4_096
UNKNOWN = -1
"""``frauds`` of a payment whose label has not arrived. Windows count it as not fraud."""
BUCKET = -1
"""``other`` of a bucket. Ids are 0 or more."""
HOUR_NS = 3_600 * 10**9

Records = np.ndarray[tuple[int], np.dtype[np.void]]
_RECORD = struct.Struct("<qqqii")
_TIME = struct.Struct("<q")


def pack(
    time_ns: NDArray[np.int64],
    cents: NDArray[np.int64],
    other: NDArray[np.int64],
    label: NDArray[np.int64],
) -> bytes:
    """Pack payments that stand in order of time; ``label`` is 0, 1 or ``UNKNOWN``. All [n]."""
    records = np.empty(len(time_ns), dtype=EVENT)
    records["time_ns"], records["cents"], records["other"] = time_ns, cents, other
    records["count"], records["frauds"] = 1, label
    return records.tobytes()


def unpack(packed: bytes) -> Records:
    """A read-only view of packed bytes as records [n]."""
    return np.frombuffer(packed, dtype=EVENT)


def newest_ns(packed: bytes) -> int:
    """Time of the last record; the list must not be empty."""
    return int(_TIME.unpack_from(packed, len(packed) - EVENT_BYTES)[0])


def insert(packed: bytes, time_ns: int, cents: int, other: int) -> tuple[bytes, int]:
    """Insert one payment, label unknown, in its place in time; return the list and its row.

    A payment with the time, cents and other party of one that is there is that one, sent again:
    the list stays as it is and the row is the old one's.
    """
    record = _RECORD.pack(time_ns, cents, other, 1, UNKNOWN)
    if not packed or time_ns > newest_ns(packed):
        return packed + record, len(packed) // EVENT_BYTES
    events = unpack(packed)
    same = _rows_at(events, time_ns)
    for row in same:
        if events["other"][row] == other and events["cents"][row] == cents:
            return packed, row
    at = same.stop * EVENT_BYTES
    return packed[:at] + record + packed[at:], same.stop


def set_label(
    packed: bytes, time_ns: int, cents: int, other: int, is_fraud: bool
) -> tuple[bytes, bool]:
    """Label one payment; return the list and whether the payment was found.

    A payment that is in a bucket is counted there, as one of its hour: it cannot be told apart.
    """
    events = unpack(packed)
    for row in _rows_at(events, time_ns):
        if events["other"][row] == other and events["cents"][row] == cents:
            return _with_frauds(events, row, int(is_fraud)), True
    hour = np.flatnonzero(
        (events["other"] == BUCKET) & (events["time_ns"] // HOUR_NS == time_ns // HOUR_NS)
    )
    if not len(hour):
        return packed, False
    bucket = int(hour[0])
    frauds = min(int(events["frauds"][bucket]) + int(is_fraud), int(events["count"][bucket]))
    return _with_frauds(events, bucket, frauds), True


def trim(packed: bytes, horizon_ns: int, max_events: int = MAX_EVENTS) -> tuple[bytes, int]:
    """Drop what lies more than the horizon before the newest record, then fold what is too much.

    Returns the list and how many of the dropped payments never got a label.
    """
    unlabelled = 0
    oldest_kept = newest_ns(packed) - horizon_ns
    if _TIME.unpack_from(packed, 0)[0] < oldest_kept:
        events = unpack(packed)
        first = int(np.searchsorted(events["time_ns"], oldest_kept))
        unlabelled = int(np.count_nonzero(events["frauds"][:first] == UNKNOWN))
        packed = packed[first * EVENT_BYTES :]
    if len(packed) > max_events * EVENT_BYTES:
        packed = _fold(unpack(packed), keep=max_events // 2)
    return packed, unlabelled


def _fold(events: Records, keep: int) -> bytes:
    """All but the last ``keep`` records as hour buckets."""
    old = events[: len(events) - keep]
    hours = old["time_ns"] // HOUR_NS
    starts = np.flatnonzero(np.concatenate([[True], hours[1:] != hours[:-1]]))
    buckets = np.empty(len(starts), dtype=EVENT)
    buckets["time_ns"] = np.maximum.reduceat(old["time_ns"], starts)
    buckets["other"] = BUCKET
    buckets["cents"] = np.add.reduceat(old["cents"], starts)
    buckets["count"] = np.add.reduceat(old["count"], starts)
    buckets["frauds"] = np.add.reduceat(np.maximum(old["frauds"], 0), starts)
    return buckets.tobytes() + events[len(events) - keep :].tobytes()


def _rows_at(events: Records, time_ns: int) -> range:
    left = int(np.searchsorted(events["time_ns"], time_ns, side="left"))
    return range(left, int(np.searchsorted(events["time_ns"], time_ns, side="right")))


def _with_frauds(events: Records, row: int, frauds: int) -> bytes:
    changed = events.copy()
    changed["frauds"][row] = frauds
    return changed.tobytes()

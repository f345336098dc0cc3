"""Where the time of a request goes in the server, and how another process reads it.

Five parts follow each other from the moment a request's task first runs, its head being parsed,
until its answer is handed to the event loop: read, queue, features, model, answer. They leave
nothing out between the two, so that they sum to ``server``. Outside of it are what the loop lets a
request wait before its task runs (bytes in the socket, the parser, the tasks before it), and an
answer that the loop or the socket does not take at once. The requests of one batch share one call
of features and of model: each of them waits for all of it, and it counts for each in full.

Times are kept as counts in buckets 1/32 of an octave wide, which never grow and can be subtracted:
two readings give the distribution between them, and a percentile is at most 3.2 % too high.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Part = Literal["read", "queue", "features", "model", "answer"]
PARTS: tuple[Part, ...] = ("read", "queue", "features", "model", "answer")
SERVER = "server"
"""The name of the five together."""
STATS_PATH = "/v2/models/card-fraud/stats"
_BITS = 5
_SUB = 1 << _BITS


class BatchTimes(NamedTuple):
    """When a batch was taken up, had its features, and had its probabilities; monotonic ns."""

    taken_ns: int
    features_ns: int
    model_ns: int


class Work(NamedTuple):
    """What a request was in the server: when it was read, its rows, and its batch."""

    read_ns: int
    rows: int
    batch: BatchTimes


@dataclass(kw_only=True)
class Times:
    """Durations in ns: how many, their sum, and counts by bucket."""

    count: int
    ns: int
    buckets: dict[int, int]

    @classmethod
    def none(cls) -> Times:
        return cls(count=0, ns=0, buckets={})

    def add(self, ns: int) -> None:
        """Enter one duration of 0 or more."""
        self.count += 1
        self.ns += ns
        shift = max(ns.bit_length() - _BITS - 1, 0)
        bucket = (shift << _BITS) + (ns >> shift)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def since(self, earlier: Times) -> Times:
        """Those that came after an earlier reading of the same times."""
        grown = {
            bucket: count - earlier.buckets.get(bucket, 0) for bucket, count in self.buckets.items()
        }
        return Times(
            count=self.count - earlier.count,
            ns=self.ns - earlier.ns,
            buckets={bucket: count for bucket, count in grown.items() if count},
        )

    def percentile_ms(self, share: float) -> float:
        """The upper edge of the bucket in which the share (0 to 1) is reached, in ms."""
        wanted, seen = share * self.count, 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= wanted:
                return _upper_ns(bucket) / 1e6
        raise ValueError("no request was answered: there is no percentile")

    def figures(self) -> dict[str, float]:
        """Mean, p50 and p95 in ms; at least one was entered."""
        return {
            "mean_ms": self.ns / self.count / 1e6,
            "p50_ms": self.percentile_ms(0.50),
            "p95_ms": self.percentile_ms(0.95),
        }

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "ns": self.ns, "buckets": sorted(self.buckets.items())}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Times:
        return cls(count=fields["count"], ns=fields["ns"], buckets=dict(fields["buckets"]))


def _upper_ns(bucket: int) -> int:
    """The first duration above the bucket."""
    if bucket < 2 * _SUB:
        return bucket + 1
    shift = (bucket >> _BITS) - 1
    return (bucket - (shift << _BITS) + 1) << shift


class ServerStats:
    """Sums and distributions of the requests of one model, since the server started."""

    def __init__(self) -> None:
        self._times = {name: Times.none() for name in (*PARTS, SERVER)}
        self._failed = Times.none()
        self._rows = self._batches = 0
        self._batch: BatchTimes | None = None

    def answered(self, arrived_ns: int, work: Work, sent_ns: int) -> None:
        """A request that got its answer; all times are monotonic ns."""
        batch, times = work.batch, self._times
        times["read"].add(work.read_ns - arrived_ns)
        times["queue"].add(batch.taken_ns - work.read_ns)
        times["features"].add(batch.features_ns - batch.taken_ns)
        times["model"].add(batch.model_ns - batch.features_ns)
        times["answer"].add(sent_ns - batch.model_ns)
        times[SERVER].add(sent_ns - arrived_ns)
        self._rows += work.rows
        if batch is not self._batch:
            self._batches += 1
            self._batch = batch

    def failed(self, ns: int) -> None:
        """A request that got an error after so long."""
        self._failed.add(ns)

    def to_json(self, name: str, version: str) -> dict[str, Any]:
        """As Triton's statistics extension has it; ``parts`` and what follows are our own."""
        sums = {part: {"count": one.count, "ns": one.ns} for part, one in self._times.items()}
        return {
            "name": name,
            "version": version,
            "inference_count": self._rows,
            "execution_count": self._batches,
            "inference_stats": {
                "success": sums[SERVER],
                "fail": {"count": self._failed.count, "ns": self._failed.ns},
                "queue": sums["queue"],
                "compute_input": sums["features"],
                "compute_infer": sums["model"],
                "compute_output": sums["answer"],
            },
            "parts": {part: one.to_json() for part, one in self._times.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a server had measured at one moment. ``copies``: bytes to and from its GPU, if any."""

    times: Mapping[str, Times]
    memory: Mapping[str, Any]
    copies: Mapping[str, int] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        return self.times[SERVER].count

    def seconds(self, part: str) -> float:
        """The sum over all requests."""
        return self.times[part].ns / 1e9

    def figures_since(self, earlier: Reading) -> dict[str, dict[str, float]]:
        """Mean, p50 and p95 of each part and of ``server`` between two readings; {} of nothing."""
        grown = {part: one.since(earlier.times[part]) for part, one in self.times.items()}
        return {part: one.figures() for part, one in grown.items() if one.count}


def read_stats(host: str, port: int, token: str | None = None, timeout_s: float = 5.0) -> Reading:
    """Ask a server. Raises OSError, with the address, where it does not answer or has none."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection.request("GET", STATS_PATH, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise OSError(f"{host}:{port} gave no statistics: {error!r}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise OSError(f"{host}:{port} gave no statistics: HTTP {answer.status} {answer.reason}")
    stats: Sequence[Mapping[str, Any]] = json.loads(body)["model_stats"]
    parts = stats[0]["parts"]
    return Reading(
        times={part: Times.from_json(one) for part, one in parts.items()},
        memory=stats[0].get("memory", {}),
        copies=stats[0].get("copies", {}),
    )

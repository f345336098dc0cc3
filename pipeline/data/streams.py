"""Random numbers by counter: Philox4x32-10 over numpy arrays.

A draw is a pure function of (seed, kind, entity, day, index, block), so any part of a table can be
made alone, in any order, on any number of workers. The algorithm is that of J. K. Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3" (SC'11); the tests hold it to the authors' published
test vectors. numpy's own Philox makes one object per stream, too slow for millions of entities.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Floats = NDArray[np.float64]

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
CHUNK = 1 << 14
"""Counters worked on at a time: the six arrays of a chunk stay in a core's cache."""
ENTITY_LIMIT = 1 << 32
BLOCK_BITS = 16


class Kind(IntEnum):
    """What a stream is for. The numbers are part of every generated table: never change one."""

    CUSTOMER = 1
    TERMINAL = 2
    DAY_COUNT = 3
    PAYMENT = 4
    PLACE = 5
    TAKEOVER = 6
    LEAK = 7
    CLONE = 8
    CLONED_PAYMENT = 9
    LABEL_DELAY = 10


@dataclass(frozen=True, kw_only=True)
class Streams:
    """All random streams of one seed (0 to 2^64 - 1)."""

    seed: int

    def words(
        self, kind: Kind, entity: Any, *, day: Any = 0, index: Any = 0, block: int = 0
    ) -> Words:
        """Return four random 32-bit words per entity, uint64 [4, n].

        ``entity``, ``day`` and ``index`` are whole numbers below 2^32, arrays [n] or one for all.
        """
        key = (self.seed & 0xFFFFFFFF, self.seed >> 32)
        return philox(key, (entity, day, index, kind << BLOCK_BITS | block))

    def uniforms(
        self, kind: Kind, entity: Any, *, day: Any = 0, index: Any = 0, block: int = 0
    ) -> tuple[Floats, Floats]:
        """Return two independent uniforms in [0, 1) per entity, float64 [n] each, 53 bits."""
        words = self.words(kind, entity, day=day, index=index, block=block)
        return unit(words[0], words[1]), unit(words[2], words[3])

    def normals(
        self, kind: Kind, entity: Any, *, day: Any = 0, index: Any = 0, block: int = 0
    ) -> tuple[Floats, Floats]:
        """Return two independent standard normals per entity (Box-Muller), float64 [n] each."""
        first, second = self.uniforms(kind, entity, day=day, index=index, block=block)
        radius = np.sqrt(-2.0 * np.log1p(-first))
        angle = 2.0 * np.pi * second
        return radius * np.cos(angle), radius * np.sin(angle)


def unit(high: Words, low: Words) -> Floats:
    """Return uniforms in [0, 1) made of 53 bits of two 32-bit words."""
    bits = (high << np.uint64(21)) | (low >> np.uint64(11))
    return np.asarray(bits.astype(np.float64) * 2.0**-53)


def philox(key: tuple[int, int], counter: tuple[Any, Any, Any, Any]) -> Words:
    """Return Philox4x32-10 of each counter, uint64 [4, n], every word below 2^32."""
    parts = [np.asarray(part, dtype=np.uint64) for part in counter]
    size = int(np.prod(np.broadcast_shapes((1,), *(part.shape for part in parts))))
    out = np.empty((4, size), dtype=np.uint64)
    for start in range(0, size, CHUNK):
        stop = min(start + CHUNK, size)
        chunk = out[:, start:stop]
        for row, part in zip(chunk, parts, strict=True):
            row[:] = part[start:stop] if part.ndim else part
        _rounds(key, list(chunk))
    return out


def _rounds(key: tuple[int, int], words: list[Words]) -> None:
    """Turn counters into random words in place."""
    w0, w1, w2, w3 = words
    a, b = np.empty_like(w0), np.empty_like(w0)
    k0, k1 = key
    for _ in range(ROUNDS):
        np.multiply(w0, MULTIPLIERS[0], out=a)
        np.multiply(w2, MULTIPLIERS[1], out=b)
        np.right_shift(b, HALF, out=w0)
        np.bitwise_xor(w0, w1, out=w0)
        np.bitwise_xor(w0, np.uint64(k0), out=w0)
        np.right_shift(a, HALF, out=w2)
        np.bitwise_xor(w2, w3, out=w2)
        np.bitwise_xor(w2, np.uint64(k1), out=w2)
        np.bitwise_and(b, LOW, out=w1)
        np.bitwise_and(a, LOW, out=w3)
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF

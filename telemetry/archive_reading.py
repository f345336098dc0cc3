"""What is read of an archive from somebody else: the files that a run has, within bounds.

Whatever else is in one is refused before its data are read: files of other names and kinds, more
than ``MOST_BYTES`` in all, and samples whose size in memory is not that in the archive.
"""

from __future__ import annotations

import lzma
import re
import struct
import tarfile
from pathlib import Path

import pyarrow as pa

from telemetry.replay import EVENTS
from telemetry.segments import META, SUFFIX, SampleSet

ABOUT = "archive.json"
MOST_BYTES = 4 << 30
"""Unpacked, with the headers of the files: what has more is no run's archive."""
_MEMBER = re.compile(rf"run\.json|{ABOUT}|samples/(?:{EVENTS}|[\w.-]+{re.escape(SUFFIX)})")
_DICTIONARY, _BATCH = 2, 3
"""Kinds of an Arrow message that have a body (format/Message.fbs, MessageHeader)."""


def members(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, bytes]:
    """The files of an archive by name; all of them are in memory at once.

    Raises ValueError for a file that is no archive of a run.
    """
    found: dict[str, bytes] = {}
    left = most_bytes
    try:
        with lzma.open(path) as stream:
            while any(header := stream.read(tarfile.BLOCKSIZE)):
                entry = _entry(header)
                left -= tarfile.BLOCKSIZE + entry.size
                if left < 0:
                    raise ValueError(f"there are more than {most_bytes:,} bytes in it")
                if entry.name in found:
                    raise ValueError(f"{entry.name!r} is in it twice")
                found[entry.name] = stream.read(entry.size)
                if len(found[entry.name]) < entry.size:
                    raise ValueError(f"{entry.name!r} is not whole")
                stream.read(-entry.size % tarfile.BLOCKSIZE)
        for name, data in found.items():
            if name.endswith(SUFFIX):
                _check(name, data)
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is no archive of a run: {error}") from error
    return found


def _entry(header: bytes) -> tarfile.TarInfo:
    """A file's name and size, bytes. Raises ValueError for any that ``pack`` does not write.

    Those are also GNU's and POSIX's own: sparse files, and headers that are as long as they say.
    """
    entry = tarfile.TarInfo.frombuf(header, "ascii", "surrogateescape")
    if entry.type != tarfile.REGTYPE or not _MEMBER.fullmatch(entry.name) or entry.size < 0:
        raise ValueError(f"{entry.name!r} is in it")
    return entry


def _check(name: str, data: bytes) -> None:
    """Raises ValueError for a segment that ``pack`` does not write: packed once more, or broken."""
    try:
        for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(data)):
            if _is_compressed(message):
                raise ValueError("it is compressed once more")
        with pa.ipc.open_stream(pa.BufferReader(data)) as reader:
            if reader.schema != SampleSet.empty().table.schema or META not in (
                reader.schema.metadata or {}
            ):
                raise ValueError("it has other columns than samples have")
            for batch in reader:
                batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        raise ValueError(f"{name!r} holds no samples: {error}") from error


def _is_compressed(message: pa.ipc.Message) -> bool:
    """Whether the body of a message is compressed, which pyarrow does not say.

    The header of a message is its field 2, the batch of a dictionary's header that one's field 1,
    and field 3 of a batch, if it is there, names the compression (format/Message.fbs).
    """
    data = memoryview(message.metadata)
    table = _table(data, 0)
    kind, header = _field(data, table, 1), _field(data, table, 2)
    if kind is None or header is None or data[kind] not in {_DICTIONARY, _BATCH}:
        return False
    batch: int | None = header
    if data[kind] == _DICTIONARY:
        batch = _field(data, _table(data, header), 1)
    return batch is not None and _field(data, _table(data, batch), 3) is not None


def _table(data: memoryview, place: int) -> int:
    """Where the table lies that the flatbuffer refers to at this place."""
    offset: int = struct.unpack_from("<I", data, place)[0]
    return place + offset


def _field(data: memoryview, table: int, number: int) -> int | None:
    """Where a field of a flatbuffer's table lies; None where it is not set."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    at = 4 + 2 * number
    if at >= struct.unpack_from("<H", data, fields)[0]:
        return None
    offset: int = struct.unpack_from("<H", data, fields + at)[0]
    return table + offset if offset else None

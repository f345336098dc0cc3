"""Which disks and interfaces of a machine are sampled, and what is taken from their rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from telemetry.samples import Metric

_NOT_DISKS = ("loop", "ram", "zram", "sr", "fd")
_IFF_UP = 1  # linux/if.h

Values = Sequence[float | None]
Parser = Callable[[bytes], Values]


def is_disk(name: str, sys: Path) -> bool:
    """Whether it is a whole disk: what is stacked on disks, or part of one, would count twice."""
    block = sys / "block" / name.replace("/", "!")
    slaves = block / "slaves"
    return (
        not name.startswith(_NOT_DISKS)
        and block.is_dir()
        and not (slaves.is_dir() and any(slaves.iterdir()))
        and int((block / "size").read_text()) > 0
    )


def counted_once(names: Sequence[str], sys: Path) -> list[str]:
    """The interfaces whose bytes add up: with hardware, and of a virtual card and the real one
    behind it the virtual one; without any (in a container) no bridge, nothing on one, no VLAN."""
    known = {name: sys / "class/net" / name for name in names if name != "lo"}
    masters = {name: (path / "master").resolve().name for name, path in known.items()
               if (path / "master").exists()}  # fmt: skip
    hardware = [name for name, path in known.items() if (path / "device").exists()]
    own = [
        name
        for name, path in known.items()
        if name not in masters and not (path / "bridge").exists() and not any(path.glob("lower_*"))
    ]
    return [one for one in hardware if masters.get(one) not in hardware] or own or list(known)


def is_up(name: str, sys: Path) -> bool:
    """Whether an interface is in use; where that cannot be told, it may be."""
    try:
        return bool(int((sys / "class/net" / name / "flags").read_text(), 16) & _IFF_UP)
    except (OSError, ValueError):
        return True


def series_of(
    kind: str, names: Iterable[str], table: Mapping[str, Metric]
) -> Iterator[tuple[str, Metric]]:
    return ((f"{kind}:{name}", metric) for name in names for metric in table.values())


def rows_of(
    parse: Callable[[bytes, Collection[str]], Mapping[str, Sequence[float]]],
    names: Sequence[str],
    width: int,
) -> Parser:
    """The rows of these names one after another; those of a device that was unplugged are None."""

    missing = (None,) * width

    def rows(data: bytes) -> Values:
        parsed = parse(data, names)
        return [value for name in names for value in parsed.get(name, missing)]

    return rows

"""What ``stagescope watch`` and ``stagescope replay`` show: a live page, or plain lines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.table import Table
from rich.text import Text

from pipeline.console import print_rows
from telemetry.replay import Replayed
from telemetry.watch import Snapshot, Value

ABSENT = "–"
PLAIN_EVERY_S = 10.0
BARS = "▁▂▃▄▅▆▇█"
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
_MARKS = {"running": "▶", "finished": "✓", "reused": "↺", "failed": "✗"}


class WatchView:
    """Shows one snapshot after the other, in place on a terminal, as lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: RichLive | None = None
        self._said: dict[str, str] = {}
        self._told_s = float("-inf")

    def __enter__(self) -> WatchView:
        if self._console.is_terminal:
            # No refreshing by itself: it would draw four times a second what has not changed.
            self._live = RichLive(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        if self._live is not None:
            self._live.update(page(snapshot, self._console), refresh=True)
        else:
            self._say(snapshot)

    def _say(self, snapshot: Snapshot) -> None:
        """A line when a stage begins or ends, and every ten seconds."""
        changed = False
        for stage in snapshot.record["stages"]:
            name, status = stage["name"], stage["status"]
            if self._said.get(name) != status:
                self._said[name] = status
                changed = True
                self._print(f"{name}: {_ended(snapshot, stage)}")
        now_s = time.monotonic()
        if not snapshot.ended and (changed or now_s - self._told_s >= PLAIN_EVERY_S):
            self._told_s = now_s
            self._print(line(snapshot))
        if snapshot.ended:
            self._print(_head(snapshot))

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def page(snapshot: Snapshot, within: Console | None = None) -> Group:
    """The whole of it: the run, its stages, the machine's main series with their last minute.

    ``within``: the terminal that it has to fit into, one line of which stays free. What goes on
    comes first: earlier stages make room, then series, and it is said how many are not shown.
    """
    series, many = list(_titled(snapshot)), len(snapshot.record["stages"])
    head = Text(_head(snapshot), style="bold")
    absent = [Text(one, style="dim") for one in absences(snapshot)]
    room = many + len(series)
    if within is not None:
        texts = sum(len(one.wrap(within, within.width)) for one in (head, *absent))
        room = max(2, within.height - texts - 2)
    stages = many if many + len(series) <= room else min(many, max(room // 2, room - len(series)))
    drawn = series if len(series) <= room - stages else series[: max(0, room - stages - 1)]
    parts: list[Table | Text] = [head, _stages(snapshot, stages), _series(snapshot, drawn)]
    if len(drawn) < len(series):
        parts.append(Text(f"… {len(series) - len(drawn)} more in a taller window", style="dim"))
    return Group(*parts, *absent)


def _head(snapshot: Snapshot) -> str:
    record = snapshot.record
    names = [one["name"] for one in record["stages"]]
    told = [f"run {record['run_id']}", str(record.get("name") or ""), str(record["status"])]
    told.append(clock(snapshot.seconds))
    if snapshot.stage:
        told.append(f"stage {snapshot.stage} ({names.index(snapshot.stage) + 1})")
    if record.get("replayed_at_speed"):
        told.append(f"a replay, {record['replayed_at_speed']:g} times as fast")
    return " · ".join(one for one in told if one)


def _stages(snapshot: Snapshot, most: int) -> Table:
    """At most so many rows: those that go on and the newest, with a row for the rest."""
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("stage", no_wrap=True)
    for head in ("time", "CPU time", "CPU", "memory", "read", "written"):
        table.add_column(head, justify="right")
    stages = snapshot.record["stages"]
    if len(stages) > most:
        table.add_row(f"… {len(stages) - most + 1} more", style="dim")
        stages = _newest(stages, most - 1)
    for stage in stages:
        name = stage["name"]
        seconds = snapshot.stage_seconds(stage)
        going = stage["status"] == "running"
        table.add_row(
            f"{_MARKS.get(stage['status'], '·')} {name}",
            str(stage["status"]) if seconds is None else clock(seconds),
            shown(snapshot.total("stage_cpu_seconds", stage=name), "seconds"),
            shown(snapshot.total("stage_cpu_busy_cores", stage=name) if going else None, "cores"),
            shown(
                snapshot.total("stage_memory_resident_bytes", stage=name) if going else None,
                "bytes",
            ),
            shown(snapshot.total("stage_storage_read_bytes", stage=name), "bytes"),
            shown(snapshot.total("stage_storage_written_bytes", stage=name), "bytes"),
            style="bold" if going else "",
        )
    return table


def _newest(stages: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """At most so many, in their order: first those that go on, then those that began last."""
    ranked = sorted(
        range(len(stages)), key=lambda place: (stages[place]["status"] == "running", place)
    )
    return [stages[place] for place in sorted(ranked[len(ranked) - most :])]


def _series(snapshot: Snapshot, series: Sequence[tuple[str, list[Value]]]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column("series", no_wrap=True)
    table.add_column("now", justify="right")
    table.add_column("last minute", no_wrap=True)
    for title, values in series:
        history = _summed(values)
        most = _most(snapshot, values)
        table.add_row(title, _of_most(values, most), sparkline(history, most))
    return table


def _titled(snapshot: Snapshot) -> Iterator[tuple[str, list[Value]]]:
    """The series of the terminal. All devices are added up, and nothing else is."""
    found: dict[tuple[str, frozenset[str]], list[Value]] = {}
    for one in snapshot.values:
        if one.main.title:
            own = frozenset(text for name, text in one.labels.items() if name != "device")
            found.setdefault((one.main.title.format(**one.labels), own), []).append(one)
    for (title, _), values in found.items():
        yield title, values


def _summed(values: Sequence[Value]) -> list[float]:
    shortest = min(len(one.history) for one in values)
    return [sum(one.history[place] for one in values) for place in range(-shortest, 0)]


def _most(snapshot: Snapshot, values: Sequence[Value]) -> float | None:
    """What a series can be at most, where that is known."""
    name, labels = values[0].main.name, dict(values[0].labels)
    if name in {"cpu_busy_cores", "cpu_steal_cores", "vm_cpu_used_cores"}:
        return snapshot.total("cpus")
    if name in {"memory_used_bytes", "memory_page_cache_bytes"}:
        return snapshot.total("memory_total_bytes")
    if name == "gpu_memory_used_bytes":
        return snapshot.total("gpu_memory_total_bytes", **labels)
    return 1.0 if values[0].main.unit == "ratio" else None


def _of_most(values: Sequence[Value], most: float | None) -> str:
    """A figure, and of how much it is where that says something."""
    unit, now = values[0].main.unit, sum(one.value for one in values)
    if most is not None and unit == "cores":
        return f"{now:.2f} of {most:.0f} cores"
    return shown(now, unit) + (f" of {shown(most, unit)}" if most and unit == "bytes" else "")


def sparkline(history: Sequence[float], most: float | None = None) -> str:
    """A bar for each value: from 0 to what it can be at most, else to the largest of them."""
    top = most or max(history, default=0.0)
    if top <= 0:
        return BARS[0] * len(history)
    steps = len(BARS) - 1
    return "".join(BARS[max(0, min(steps, round(one / top * steps)))] for one in history)


def absences(snapshot: Snapshot) -> Iterator[str]:
    """Whole worlds that are not measured, each with its reason."""
    for world, entity in (("GPU", "gpu"), ("hypervisor", "vm")):
        names = ("gpu_utilization_ratio", "gpu_memory_used_bytes")
        if world == "hypervisor":
            names = ("vm_cpu_used_cores", "vm_cpu_ready_ratio")
        if any(snapshot.of(name) for name in names):
            continue
        reasons = [
            why for (of, _), why in snapshot.absent.items() if of.partition(":")[0] == entity
        ]
        if reasons:
            yield f"{world} not measured: {reasons[0]}"


def line(snapshot: Snapshot) -> str:
    """The run in one line, for where there is no terminal."""
    told = [f"{clock(snapshot.seconds)} {snapshot.stage or 'between stages'}"]
    for title, values in _titled(snapshot):
        if values[0].main.name in _IN_A_LINE:
            told.append(f"{title} {_of_most(values, _most(snapshot, values))}")
    return ", ".join(told)


_IN_A_LINE = frozenset(
    ("cpu_busy_cores", "memory_used_bytes", "disk_read_bytes_per_second",
     "disk_written_bytes_per_second", "gpu_utilization_ratio", "gpu_power_watts",
     "vm_cpu_ready_ratio")
)  # fmt: skip


def _ended(snapshot: Snapshot, stage: Mapping[str, Any]) -> str:
    seconds = snapshot.stage_seconds(stage)
    took = "" if seconds is None or stage["status"] == "running" else f" in {seconds:.1f} s"
    reason = f": {stage['reason']}" if stage.get("reason") else ""
    return f"{'started' if stage['status'] == 'running' else stage['status']}{took}{reason}"


def clock(seconds: float) -> str:
    """Minutes and seconds, hours where there are any."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def shown(value: float | None, unit: str) -> str:
    """A figure with its unit, short."""
    if value is None:
        return ABSENT
    if unit in {"bytes", "bytes_per_second"}:
        return _size(value) + ("/s" if unit != "bytes" else "")
    if unit == "seconds" and 0 < value < 1:
        return f"{1e3 * value:.0f} ms"
    scale, form = _FORMS.get(unit, (1.0, "{:.4g}"))
    return form.format(scale * value)


_FORMS = {
    "ratio": (100.0, "{:.0f} %"),
    "watts": (1.0, "{:.0f} W"),
    "celsius": (1.0, "{:.0f} °C"),
    "seconds": (1.0, "{:.1f} s"),
    "cores": (1.0, "{:.2f} cores"),
}


def _size(value: float) -> str:
    place = 0
    while value >= 1024 and place < len(_BYTES) - 1:
        value /= 1024
        place += 1
    return f"{value:.0f} {_BYTES[place]}" if place == 0 else f"{value:.1f} {_BYTES[place]}"


def show_replayed(console: Console, replayed: Replayed) -> None:
    """Each derived file with what came of the comparison, and where the report is."""
    said = {
        "same": "the same bytes as when it was recorded",
        "new": "the same bytes as the recording gives (it had none beside it)",
        "other version": "the same bytes as the recording gives with this version; "
        "the version that recorded it made others",
        "differs": "NOT the same bytes as the recording gives",
    }
    rows = [(one.name, one.digest[:12], said[one.verdict]) for one in replayed.files]
    print_rows(console, "", ("file", "sha256", "is"), rows)
    path = replayed.folder.report_html
    console.print(f"report: {path}", highlight=False, soft_wrap=True)

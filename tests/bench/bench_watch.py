"""What looking on costs: ``stagescope watch`` on a terminal beside a run at 10 Hz."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.bench.measure import exact_cpu_s, memory_mb
from tests.nvml.build import build, environment

WATCHED_S = 30.0
WARM_S = 5.0


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="stagescope-bench-") as folder:
        for gpus in (0, 2):
            env = environment(build(Path(folder) / "nvml"), f"gpus={gpus}") if gpus else None
            for more in ((), ("--prometheus", "127.0.0.1:0")):
                share, start_s, rss_mb = cost(Path(folder) / f"runs-{gpus}{len(more)}", env, more)
                what = " and an endpoint" if more else ""
                print(
                    f"watch once a second{what}, {gpus} GPUs: {100 * share:.2f} % of a core, "
                    f"{start_s:.2f} s to start, {rss_mb:.0f} MB",
                    flush=True,
                )


def cost(
    out: Path, env: dict[str, str] | None, more: tuple[str, ...]
) -> tuple[float, float, float]:
    """Share of a core, CPU seconds of the start, and MB, of one watcher of a run that sleeps."""
    cli = [sys.executable, "-m", "pipeline.cli"]
    seconds = str(round(WATCHED_S + 2 * WARM_S))
    record = [*cli, "record", "--name", "load", "--out", str(out), "--", "sleep", seconds]
    with subprocess.Popen(
        record, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as recording:
        while not (out / "latest/run.json").is_file():
            time.sleep(0.1)
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ |= {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "50"}
            os.execv(sys.executable, [*cli, "watch", "--out", str(out), *more])
        threading.Thread(target=_drained, args=(terminal,), daemon=True).start()
        time.sleep(WARM_S)
        start_s, begin = exact_cpu_s(pid), time.perf_counter()
        time.sleep(WATCHED_S)
        share = (exact_cpu_s(pid) - start_s) / (time.perf_counter() - begin)
        rss_mb, _ = memory_mb(pid)
        recording.wait()
        os.waitpid(pid, 0)
    return share, start_s, rss_mb


def _drained(terminal: int) -> None:
    """Read what the terminal shows, as a terminal does."""
    try:
        while os.read(terminal, 1 << 16):
            pass
    except OSError:
        return  # the other side is gone


if __name__ == "__main__":
    main()

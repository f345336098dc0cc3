"""``make study``: trials whose outcome is a statistic, each written as a table to docs/."""

from __future__ import annotations

import subprocess
import sys

STUDIES = ("ledger", "skew", "sharpen", "detection", "injected", "verdicts", "reproduce")


def main() -> None:
    for name in sys.argv[1:] or STUDIES:
        print(f"\n== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"tests.study.{name}"], check=True)


if __name__ == "__main__":
    main()

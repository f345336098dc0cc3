"""Headless Chromium for the tests: a page's DOM after its scripts, a screenshot, a PDF."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--log-level=0",
)


@dataclass(frozen=True, kw_only=True)
class Page:
    """What came of a page. ``console``: the lines that the page's scripts or its errors logged."""

    dom: str
    console: list[str]


@dataclass(frozen=True, kw_only=True)
class Browser:
    """One headless browser per call, with an empty profile that is removed afterwards.

    ``wait_ms`` is virtual time that the page's timers and requests get before it is looked at;
    0 takes the page as it is at its load event.
    """

    width: int = 1440
    height: int = 900
    dark: bool = False
    wait_ms: int = 2000
    timeout_s: float = 60.0
    flags: tuple[str, ...] = field(default=())

    def open(self, url: str) -> Page:
        """Load a page and return its DOM."""
        done = self._run("--dump-dom", url)
        lines = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        return Page(dom=done.stdout, console=lines)

    def screenshot(self, url: str, target: Path) -> None:
        """Write what the window shows as PNG."""
        self._run(f"--screenshot={target.resolve()}", url)

    def pdf(self, url: str, target: Path) -> None:
        """Print the page."""
        self._run("--no-pdf-header-footer", f"--print-to-pdf={target.resolve()}", url)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        binary = shutil.which("chromium")
        assert binary is not None, "no chromium here: apt-get install chromium"
        own = [f"--window-size={self.width},{self.height}"]
        if self.wait_ms:
            own.append(f"--virtual-time-budget={self.wait_ms}")
        if self.dark:
            own.append("--blink-settings=preferredColorScheme=0")
        with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as home:
            return subprocess.run(
                [binary, *_FLAGS, f"--user-data-dir={home}", *own, *self.flags, *arguments],
                capture_output=True,
                text=True,
                timeout=self.timeout_s,
                check=True,
            )

"""Headless Chromium on a page that goes on working: its text is looked at until all is there.

A page that is looked at once, after virtual time (``tests.browser``), is not painted, and charts
that are drawn when they come into view never are.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")


def text_when_there(
    url: str, wanted: Sequence[str], *, height: int = 900, timeout_s: float = 90.0
) -> str:
    """The page's visible text once it holds every word of ``wanted``, else as it is in the end."""
    binary = shutil.which("chromium")
    assert binary is not None, "no chromium here: apt-get install chromium"
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as home:
        own = ["--remote-debugging-port=0", f"--window-size=1440,{height}"]
        process = subprocess.Popen(
            [binary, *_FLAGS, *own, f"--user-data-dir={home}", url],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return _poll(Path(home), wanted, time.monotonic() + timeout_s)
        finally:
            process.terminate()
            process.wait(30)


def _poll(home: Path, wanted: Sequence[str], deadline: float) -> str:
    text = ""
    with connect(_page(home, deadline), max_size=None) as page:
        while time.monotonic() < deadline and not all(word in text for word in wanted):
            time.sleep(0.3)
            text = _evaluate(page, "document.body ? document.body.innerText : ''", deadline)
    return text


def _page(home: Path, deadline: float) -> str:
    """The address at which the browser's first page takes orders."""
    told = home / "DevToolsActivePort"
    while time.monotonic() < deadline:
        if told.is_file() and (port := told.read_text().partition("\n")[0]):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                for one in json.load(answer):
                    if one["type"] == "page":
                        return str(one["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise TimeoutError("chromium did not start")


def _evaluate(page: Any, expression: str, deadline: float) -> str:
    """Its answer, for which a page that draws a hundred charts lets one wait."""
    order = {"id": 1, "method": "Runtime.evaluate", "params": {"expression": expression}}
    page.send(json.dumps(order))
    while True:
        answer = json.loads(page.recv(timeout=max(30.0, deadline - time.monotonic())))
        if answer.get("id") == 1:
            return str(answer.get("result", {}).get("result", {}).get("value", ""))

"""Headless Chromium by its DevTools protocol: true phones, dark, print, keys, and its requests.

``tests.browser`` looks at a page once; here a test gives orders and reads values of a live page.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
          "--disable-background-networking")  # fmt: skip


@dataclass(kw_only=True)
class LivePage:
    """A page that takes orders. ``events``: what the browser told meanwhile, by method."""

    socket: ClientConnection
    patience_s: float = 60.0
    """How long one answer may take: a page that draws a hundred charts lets one wait."""
    events: list[dict[str, Any]] = field(default_factory=list)
    _number: int = 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One order and its answer. Raises RuntimeError with what the browser refuses."""
        self._number += 1
        self.socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            answer = json.loads(self.socket.recv(timeout=self.patience_s))
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self.events.append(answer)

    def show(
        self,
        url: str,
        *,
        width: int = 1440,
        height: int = 900,
        phone: bool = False,
        dark: bool = False,
        media: str = "",
        wait: bool = True,
    ) -> None:
        """Open a page in a window of this size and wait until all its charts are drawn."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=phone)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=url)
        if wait:
            self.settle()

    def settle(self) -> None:
        """Wait until all charts of a report are drawn."""
        deadline = time.monotonic() + 60
        while not self.value("!!document.querySelector('#charts[aria-busy=false]')"):
            if time.monotonic() > deadline:
                raise TimeoutError("the page's charts were not drawn in 60 s")
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """The value of a script's expression, as JSON. Raises RuntimeError where it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                           awaitPromise=True)  # fmt: skip
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                      windowsVirtualKeyCode=9 if key == "Tab" else 0)  # fmt: skip

    def screenshot(self, target: Path) -> None:
        shot = self.call("Page.captureScreenshot", format="png")
        target.write_bytes(base64.b64decode(shot["data"]))

    def told(self, *methods: str) -> list[dict[str, Any]]:
        """The events of these methods since the page was opened."""
        self.value("1")  # whatever came before this answer is there
        return [event["params"] for event in self.events if event.get("method") in methods]


@contextmanager
def live_page() -> Iterator[LivePage]:
    """One headless browser with an empty profile, and its first page."""
    binary = shutil.which("chromium")
    assert binary is not None, "no chromium here: apt-get install chromium"
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as home:
        own = ["--remote-debugging-port=0", f"--user-data-dir={home}", "about:blank"]
        process = subprocess.Popen(
            [binary, *_FLAGS, *own], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            with connect(_address(Path(home)), max_size=None) as socket:
                page = LivePage(socket=socket)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    page.call(f"{domain}.enable")
                yield page
        finally:
            process.terminate()
            process.wait(30)


def _address(home: Path) -> str:
    told, deadline = home / "DevToolsActivePort", time.monotonic() + 60
    while time.monotonic() < deadline:
        if told.is_file() and (port := told.read_text().partition("\n")[0]):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                for one in json.load(answer):
                    if one["type"] == "page":
                        return str(one["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise TimeoutError("chromium did not start")

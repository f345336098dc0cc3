"""Headless Chromium on a page that goes on working: its text is looked at until all is there.

A page that is looked at once, after virtual time (``tests.browser``), is not painted, and charts
that are drawn when they come into view never are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.devtools import live_page


def text_when_there(
    url: str, wanted: Sequence[str], *, height: int = 900, timeout_s: float = 90.0
) -> str:
    """The page's visible text once it holds every word of ``wanted``, else as it is in the end."""
    deadline, text = time.monotonic() + timeout_s, ""
    with live_page() as page:
        page.patience_s = timeout_s
        page.show(url, height=height, wait=False)
        while time.monotonic() < deadline and not all(word in text for word in wanted):
            time.sleep(0.3)
            text = page.value("document.body ? document.body.innerText : ''")
    return text

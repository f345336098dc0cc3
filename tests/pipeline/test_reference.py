"""The reference pages are those that the code would write now."""

from __future__ import annotations

import pytest

from pipeline.reference import DOCS, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_page_is_current(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), "renew it: python -m pipeline.reference"

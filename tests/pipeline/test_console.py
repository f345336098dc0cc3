"""What people see on a terminal and where there is none."""

from __future__ import annotations

import pytest

from pipeline.console import RunListener, make_console, print_rows


def test_a_name_with_square_brackets_is_told_in_whole(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_console()
    print_rows(console, "runs [of today]", ("stage", "time"), [("train [bf16]", "[red]3 s")])
    RunListener(console).note("train [fp8] was reused")
    told = capsys.readouterr().out
    for name in ("runs [of today]", "train [bf16]", "[red]3 s", "train [fp8]"):
        assert name in told

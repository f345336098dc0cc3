"""A stage in a process of its own, without the run around it."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.recipe import read_recipe
from pipeline.stage_process import StageProcess


def test_a_stage_whose_counts_are_not_on_disk_is_done_and_says_so(tmp_path: Path) -> None:
    small = ("data.days=3", "data.customers=20", "data.terminals=20")
    recipe = read_recipe("default", ["data.source=generator", *small])
    order = {
        "run_id": "20260101T000000Z-000000",
        "stage": "ingest",
        "key": "0" * 64,
        "recipe": recipe.model_dump(mode="json"),
        "store": str(tmp_path / "store"),
        "inputs": {},
        "samples": str(tmp_path / "gone"),
        "clock_offset_ns": 0,
        "fresh": False,
    }
    (tmp_path / "order.json").write_text(json.dumps(order))
    child = StageProcess("ingest", tmp_path / "order.json", tmp_path / "log")
    child.start()
    child.follow(lambda done, total: None, lambda: None)
    assert child.reap()["exit_code"] == 0, (tmp_path / "log").read_text()
    assert child.manifest is not None
    assert child.losses == ["ingest: not all that it counted is on disk: No such file or directory"]

"""The state that the serving stage begins with, and how it tells its server where that is."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.online import OnlineFeatures
from features.online_views import open_online_store
from pipeline.stages.serving import ServingStage
from tests.online_support import DAY_NS, START_S, dense_table, offline, payments_of, times_ns

FIRST = datetime.fromtimestamp(START_S, UTC).date()


def stage(from_day: date, store: str = "sqlite") -> ServingStage:
    return ServingStage(
        from_day=from_day,
        days=7,
        store=store,  # type: ignore[arg-type]
        redis_env="OUR_REDIS",
        device="cpu",
        rates=(1.0,),
        seconds_per_rate=1.0,
        connections=1,
        p99_limit_ms=1.0,
    )


def test_a_week_of_load_is_answered_as_offline_though_nobody_sends_labels(tmp_path: Path) -> None:
    table = dense_table(days=57, per_day=60, cards=12, terminals=9, seed=3)
    day = (times_ns(table) // 10**9 - START_S) * 10**9 // DAY_NS
    clean = tmp_path / "clean"
    clean.mkdir()
    for number in range(57):
        rows = table.filter(pa.array(day == number))
        pq.write_table(rows, clean / f"{FIRST + timedelta(days=number)}.parquet")
    loaded = stage(FIRST + timedelta(days=50))._load_state(clean, tmp_path / "online")
    assert 38 * 60 <= loaded + 120 < 50 * 60, "no more of the past than a window sees"
    online = OnlineFeatures(open_online_store(tmp_path / "online", {"type": "sqlite"}))
    asked = day >= 50
    lookup = online.look_up(payments_of(table.filter(pa.array(asked))))
    expected = offline(table)[asked]
    assert np.array_equal(lookup.features, expected)
    assert np.any(expected[:, 12:] > 0)


def test_the_address_of_a_redis_is_on_no_command_line() -> None:
    assert stage(FIRST, "redis")._where() == ("--online-env", "OUR_REDIS")
    assert stage(FIRST)._where() == ("--online", "sqlite")

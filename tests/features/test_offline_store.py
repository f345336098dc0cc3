"""The offline store behind Feast: the same answers as Feast's own dask store."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import features  # noqa: F401 - Feast as the pipeline has it

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
START = datetime(2026, 3, 1, tzinfo=UTC)
ASOF = "features.offline_store.AsofOfflineStore"
REFS = ["cards:score", "cards:level", "shops:rank"]


def history(rows: int, key: str, keys: int, seed: int) -> pa.Table:
    """Rows of a view: whole minutes, so that times tie, and each version with its own creation."""
    random = np.random.default_rng(seed)
    at = random.integers(0, 600, rows) * 60
    made = at + random.permutation(rows)
    times = {
        name: (np.datetime64("2026-03-01", "us") + value.astype("timedelta64[s]"))
        for name, value in (("at", at), ("made", made))
    }
    return pa.table(
        {
            key: random.integers(0, keys, rows),
            **times,
            "points": random.random(rows),
            "level": random.integers(0, 1000, rows),
            "rank": random.integers(0, 1000, rows),
        }
    )


def open_store(folder: Path, kind: str) -> FeatureStore:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
        from feast.types import Float64, Int64
        from feast.value_type import ValueType

    def view(name: str, key: str, ttl: timedelta, fields: list[Any]) -> FeatureView:
        entity = Entity(name=f"{key}_entity", join_keys=[key], value_type=ValueType.INT64)
        return FeatureView(
            name=name,
            entities=[entity],
            ttl=ttl,
            schema=[Field(name=key, dtype=Int64), *fields],
            source=FileSource(
                path=str(folder / f"{name}.parquet"),
                timestamp_field="at",
                created_timestamp_column="made",
                field_mapping={"points": "score"} if name == "cards" else None,
            ),
        )

    views = [
        view(
            "cards",
            "card",
            timedelta(hours=1),
            [Field(name="score", dtype=Float64), Field(name="level", dtype=Int64)],
        ),
        view("shops", "shop", timedelta(0), [Field(name="rank", dtype=Int64)]),
    ]
    config = RepoConfig(
        project="asof",
        provider="local",
        registry=str(folder / f"{kind.rsplit('.', 1)[-1]}.db"),
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        offline_store={"type": kind},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    entities = [
        Entity(name=f"{key}_entity", join_keys=[key], value_type=ValueType.INT64)
        for key in ("card", "shop")
    ]
    store.apply([*entities, *views])
    return store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("asof")
    pq.write_table(history(800, "card", 12, 1), made / "cards.parquet")
    pq.write_table(history(300, "shop", 6, 2), made / "shops.parquet")
    return made


@pytest.fixture(scope="module")
def ours(folder: Path) -> FeatureStore:
    return open_store(folder, ASOF)


@pytest.fixture(scope="module")
def feasts(folder: Path) -> FeatureStore:
    return open_store(folder, "dask")


def entity_rows(rows: int, seed: int = 3) -> pd.DataFrame:
    """Asked-for rows; cards 12 to 15 and shops 6 and 7 have no history at all."""
    random = np.random.default_rng(seed)
    second = random.choice(42_000, rows, replace=False)
    second[: rows // 2] = second[: rows // 2] // 60 * 60
    frame = pd.DataFrame(
        {
            "card": random.integers(0, 16, rows),
            "shop": random.integers(0, 8, rows),
            "event_timestamp": pd.Timestamp(START) + pd.to_timedelta(second, unit="s"),
            "row": np.arange(rows),
        }
    )
    # Feast's dask store takes rows of one card and time for one, whatever their shop.
    return frame.drop_duplicates(["card", "event_timestamp"], ignore_index=True)


@pytest.fixture
def stable_sort(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Feast's dask store, in this thread, with its ties in order.

    It sorts by creation, then by time, and relies on ties keeping their order. pandas' default
    sort does not keep it, so that which version wins is left to chance (seen at 300 rows); with a
    stable sort the store does what Feast's documentation says.
    """
    plain = pd.DataFrame.sort_values

    def stable(frame: pd.DataFrame, *args: Any, **kwargs: Any) -> pd.DataFrame:
        return plain(frame, *args, **{**kwargs, "kind": "stable"})

    monkeypatch.setattr(pd.DataFrame, "sort_values", stable)
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.mark.usefixtures("stable_sort")
@pytest.mark.parametrize("known_then", [False, True])
@pytest.mark.parametrize("full_names", [False, True])
def test_the_same_answer_as_feasts_own_store(
    ours: FeatureStore, feasts: FeatureStore, full_names: bool, known_then: bool
) -> None:
    entities = entity_rows(400)
    got, wanted = (
        store.get_historical_features(
            entity_df=entities,
            features=REFS,
            full_feature_names=full_names,
            filter_by_created_timestamp=known_then,
        )
        .to_df()
        .set_index("row")
        for store in (ours, feasts)
    )
    assert list(got.index) == list(entities["row"]), "every row in its place"
    names = [ref.replace(":", "__") if full_names else ref.split(":")[1] for ref in REFS]
    for name in names:
        kept = got.loc[wanted.index, name].astype(float)
        pd.testing.assert_series_equal(
            kept, wanted[name].astype(float), check_dtype=False, check_exact=True
        )
    # Feast's dask store drops a row all of whose values have expired; ours says null for it.
    dropped = got.drop(wanted.index)
    assert 0 < len(dropped) < len(got) / 2
    lost_cards = dropped[names[:2]].isna().all(axis=1)
    lost_shops = dropped[names[2]].isna()
    assert (lost_cards | lost_shops).all()
    assert wanted[names[0]].isna().any(), "cards without any history were asked for"
    assert wanted[names[0]].notna().sum() > 100


def test_any_kind_of_entity_rows(ours: FeatureStore, tmp_path: Path) -> None:
    import polars as pl

    frame = entity_rows(50)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table, tmp_path / "rows.parquet")
    kinds = [frame, table, pl.from_pandas(frame), str(tmp_path / "rows.parquet")]
    answers = [ours.get_historical_features(entity_df=kind, features=REFS) for kind in kinds]
    frames = [answer.to_df() for answer in answers]
    for other in frames[1:]:
        pd.testing.assert_frame_equal(frames[0], other, check_dtype=False)
    assert answers[0].metadata.features == REFS
    assert answers[0].metadata.min_event_timestamp == frame["event_timestamp"].min()


def test_entity_rows_that_cannot_be(ours: FeatureStore) -> None:
    frame = entity_rows(5)
    for wrong, said in (
        (None, "joins to entity rows"),
        (42, "entity_df is a int"),
        (frame.drop(columns="card"), "lack the key"),
        (frame.drop(columns="event_timestamp"), "need their time"),
        (frame.assign(level=1), "answer twice"),
    ):
        with pytest.raises(ValueError, match=said):
            ours.get_historical_features(entity_df=wrong, features=REFS)


@pytest.mark.usefixtures("stable_sort")
def test_a_join_key_under_another_name(ours: FeatureStore, feasts: FeatureStore) -> None:
    frame = entity_rows(60).rename(columns={"shop": "place"})[["place", "event_timestamp", "row"]]
    frame = frame.drop_duplicates(["place", "event_timestamp"])
    answers = []
    for store in (ours, feasts):
        view = store.get_feature_view("shops")
        renamed = view.with_name("where").with_join_key_map({"shop": "place"})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from feast import FeatureService
        service = FeatureService(name="by_place", features=[renamed[["rank"]]])
        store.apply([service])
        answers.append(
            store.get_historical_features(entity_df=frame, features=service)
            .to_df()
            .set_index("row")
        )
    got, wanted = answers
    assert len(wanted) > 30
    assert got.loc[wanted.index, "rank"].astype(float).equals(wanted["rank"].astype(float))


@pytest.mark.usefixtures("stable_sort")
@pytest.mark.parametrize("latest", [True, False])
def test_pulling_equals_feasts_own(ours: FeatureStore, feasts: FeatureStore, latest: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from feast.infra.offline_stores.dask import DaskOfflineStore

        from features.offline_store import AsofOfflineStore
    frames = []
    for store, kind in ((ours, AsofOfflineStore), (feasts, DaskOfflineStore)):
        call = kind.pull_latest_from_table_or_query if latest else kind.pull_all_from_table_or_query
        job = call(
            config=store.config,
            data_source=store.get_feature_view("cards").batch_source,
            join_key_columns=["card"],
            feature_name_columns=["points", "level"],
            timestamp_field="at",
            created_timestamp_column="made",
            start_date=START + timedelta(hours=2),
            end_date=START + timedelta(hours=8),
        )
        frame = job.to_df()[["card", "at", "made", "points", "level"]]
        frame = frame.astype(dict.fromkeys(("at", "made"), "datetime64[us, UTC]"))
        frames.append(frame.sort_values(["card", "at", "made"], ignore_index=True))
    pd.testing.assert_frame_equal(*frames, check_dtype=False)
    assert (len(frames[0]) == 12) == latest


def test_materializing_puts_the_latest_online(ours: FeatureStore) -> None:
    ours.materialize(START, START + timedelta(hours=10))
    online = ours.get_online_features(features=["shops:rank"], entity_rows=[{"shop": 1}]).to_dict()
    table = pq.read_table(Path(ours.get_feature_view("shops").batch_source.path)).to_pandas()
    last = table[table["shop"] == 1].sort_values(["at", "made"]).iloc[-1]
    assert online["rank"] == [last["rank"]]


def test_a_result_is_kept_whole_or_not_at_all(ours: FeatureStore, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from feast.errors import SavedDatasetLocationAlreadyExists
        from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
    job = ours.get_historical_features(entity_df=entity_rows(20), features=REFS)
    storage = SavedDatasetFileStorage(path=str(tmp_path / "kept.parquet"))
    job.persist(storage)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "kept.parquet"), job.to_df())
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(storage)
    job.persist(storage, allow_overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.parquet"]


@pytest.mark.parametrize("folder_of_files", [True, False])
def test_new_rows_are_added_to_the_source(tmp_path: Path, folder_of_files: bool) -> None:
    table = history(20, "card", 3, 5)
    place = tmp_path / "cards.parquet"
    if folder_of_files:
        place.mkdir()
    pq.write_table(table, place / "a.parquet" if folder_of_files else place)
    pq.write_table(history(5, "shop", 3, 5), tmp_path / "shops.parquet")
    store = open_store(tmp_path, ASOF)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from features.offline_store import AsofOfflineStore
    written: list[int] = []
    view = store.get_feature_view("cards")
    AsofOfflineStore.offline_write_batch(store.config, view, table.slice(0, 4), written.append)
    assert pq.read_table(place).num_rows == 24
    assert written == [4]
    with pytest.raises(ValueError, match="in this order"):
        AsofOfflineStore.offline_write_batch(store.config, view, table.select(["at"]), None)

"""A Feast offline store over Parquet files whose point-in-time join is an ASOF join.

Feast's own file stores join every entity row with the whole history of its key, and then throw
away all but one row: time and memory grow with rows x history. ``asof.py`` walks both sides once.
The answer is the one of Feast's SQL stores, in the order of the entity rows. (Feast's dask store
drops an entity row whose only values have expired; here it keeps its place, with nulls.)
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_source import DataSource
from feast.errors import FeastJoinKeysDuringMaterialization, SavedDatasetLocationAlreadyExists
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL, FeatureView
from feast.infra.offline_stores.file_source import FileSource, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.utils import (
    _get_requested_feature_views_to_features_dict,
    _get_requested_on_demand_feature_views,
)

from features.asof import History, as_utc, check_names, join_asof

STORE_TYPE: Final = "features.offline_store.AsofOfflineStore"
ENTITY_TIME = "event_timestamp"
"""Feast's name for the time of an entity row; a single column of times may be named otherwise."""

EntityRows: TypeAlias = pd.DataFrame | pl.DataFrame | pa.Table | str | Path


class AsofOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """Settings of ``AsofOfflineStore``: the ``type`` by which Feast finds it."""

    type: Literal["features.offline_store.AsofOfflineStore"] = STORE_TYPE


class AsofRetrievalJob(RetrievalJob):  # type: ignore[misc]
    """A retrieval that runs when its result is asked for, each time anew."""

    def __init__(
        self,
        evaluate: Callable[[], pl.DataFrame],
        repo_path: Path | None,
        *,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._repo_path = repo_path
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._evaluate().to_arrow(compat_level=pl.CompatLevel.oldest())

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,
    ) -> None:
        """Write the result as one Parquet file, whole or not at all, where ``storage`` says."""
        if not isinstance(storage, SavedDatasetFileStorage):
            raise ValueError(
                f"a result of this store goes to a file, not to {type(storage).__name__}: "
                "give a SavedDatasetFileStorage(path=...)"
            )
        path = Path(FileSource.get_uri_for_file_path(self._repo_path, storage.file_options.uri))
        if path.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=str(path))
        _replace(path, self.to_arrow(timeout=timeout))


class AsofOfflineStore(OfflineStore):  # type: ignore[misc]
    """Feast's offline store interface over ``FileSource`` with Parquet files or folders of them."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(  # noqa: PLR0917 (Feast's interface, as are those below)
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: EntityRows | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **kwargs: Any,
    ) -> AsofRetrievalJob:
        """Join features to entity rows; see ``OfflineStore``. Row order and all columns are kept.

        ``entity_df`` may be a pandas or polars frame, an Arrow table, or the path of Parquet.
        Raises ValueError for no entity rows, no time column, or a name that is there already.
        """
        if entity_df is None:
            raise ValueError(
                "this offline store joins to entity rows: pass entity_df with the join keys and "
                f"{ENTITY_TIME} (retrieval by a range of dates alone is not supported)"
            )
        entities = _entity_frame(entity_df)
        time = _time_column(entities)
        wanted, _ = _get_requested_feature_views_to_features_dict(
            feature_refs,
            feature_views,
            _get_requested_on_demand_feature_views(feature_refs, config.project, registry),
        )
        histories = [
            _view_history(config, view, features, full_feature_names)
            for view, features in wanted.items()
        ]
        check_names(entities, histories)
        first, last = entities[time].min(), entities[time].max()
        return AsofRetrievalJob(
            lambda: join_asof(entities, time, histories, known_then=filter_by_created_timestamp),
            config.repo_path,
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(
                feature_refs, project, registry
            ),
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in entities.columns if name != time],
                min_event_timestamp=first,
                max_event_timestamp=last,
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(  # noqa: PLR0917
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> AsofRetrievalJob:
        """The latest row of each key within the two dates, both included; see ``OfflineStore``."""
        frame = _pull(
            config, data_source, join_key_columns, feature_name_columns, timestamp_field,
            created_timestamp_column, start_date, end_date,
        )  # fmt: skip
        keys = join_key_columns or [DUMMY_ENTITY_ID]
        order = [name for name in (timestamp_field, created_timestamp_column) if name]
        latest = frame.sort(order, nulls_last=False, maintain_order=True).unique(
            keys, keep="last", maintain_order=True
        )
        return AsofRetrievalJob(latest.collect, config.repo_path)

    @staticmethod
    def pull_all_from_table_or_query(  # noqa: PLR0917
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> AsofRetrievalJob:
        """All rows within the two dates, both included; see ``OfflineStore``."""
        frame = _pull(
            config, data_source, join_key_columns, feature_name_columns, timestamp_field,
            created_timestamp_column, start_date, end_date,
        )  # fmt: skip
        return AsofRetrievalJob(frame.collect, config.repo_path)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Add rows to a view's source: a new file in a folder, else the one file made anew."""
        path = Path(_source_path(config, feature_view.batch_source))
        schema = pl.scan_parquet(path).collect_schema()
        if schema.names() != table.column_names:
            raise ValueError(
                f"{path} has the columns {schema.names()} in this order, "
                f"the new rows have {table.column_names}"
            )
        if path.is_dir():
            _replace(path / f"added-{uuid.uuid4().hex}.parquet", table)
        else:
            before = pq.read_table(path)
            _replace(path, pa.concat_tables([before, table.cast(before.schema)]))
        if progress:
            progress(table.num_rows)


def _view_history(
    config: RepoConfig, view: FeatureView, features: list[str], full_feature_names: bool
) -> History:
    source = view.batch_source
    keys = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    prefix = f"{view.projection.name_to_use()}__" if full_feature_names else ""
    return History(
        rows=pl.scan_parquet(_source_path(config, source)).rename(
            source.field_mapping or {}, strict=False
        ),
        entity_keys=tuple(view.projection.join_key_map.get(name, name) for name in keys),
        keys=tuple(keys),
        time=source.timestamp_field,
        created=source.created_timestamp_column or None,
        features={name: prefix + name for name in dict.fromkeys(features)},
        ttl=view.ttl if view.ttl else None,
    )


def _source_path(config: RepoConfig, source: DataSource) -> str:
    if not isinstance(source, FileSource):
        raise ValueError(f"{source.name} is no FileSource, the one kind that this store can read")
    return str(FileSource.get_uri_for_file_path(config.repo_path, source.file_options.uri))


def _entity_frame(entity_df: EntityRows) -> pl.DataFrame:
    if isinstance(entity_df, pl.DataFrame):
        return entity_df
    if isinstance(entity_df, str | Path):
        return pl.read_parquet(entity_df)
    if isinstance(entity_df, pa.Table):
        frame = pl.from_arrow(entity_df)
        assert isinstance(frame, pl.DataFrame)
        return frame
    if isinstance(entity_df, pd.DataFrame):
        return pl.from_pandas(entity_df)
    raise ValueError(
        f"entity_df is a {type(entity_df).__name__}: give a pandas or polars frame, an Arrow "
        "table, or the path of Parquet"
    )


def _time_column(entities: pl.DataFrame) -> str:
    times = [name for name, kind in entities.schema.items() if isinstance(kind, pl.Datetime)]
    if ENTITY_TIME in times:
        return ENTITY_TIME
    if len(times) != 1:
        raise ValueError(
            f"entity rows need their time in a column {ENTITY_TIME}, or in the only column of "
            f"times: there are {times or 'none'} among {entities.columns}"
        )
    return times[0]


def _pull(  # noqa: PLR0917 (what Feast passes, passed on)
    config: RepoConfig,
    data_source: DataSource,
    join_keys: list[str],
    features: list[str],
    time: str,
    created: str | None,
    start: datetime | None,
    end: datetime | None,
) -> pl.LazyFrame:
    """Rows of a source between two dates, with the columns that Feast asks for."""
    path = _source_path(config, data_source)
    frame = pl.scan_parquet(path)
    schema = frame.collect_schema()
    if not set(join_keys) <= set(schema):
        raise FeastJoinKeysDuringMaterialization(path, set(join_keys), set(schema))
    names = [*join_keys, *features, time, *([created] if created else [])]
    frame = frame.select(list(dict.fromkeys(names)) if features else pl.all())
    frame = frame.with_columns(as_utc(name, schema) for name in (time, created) if name)
    for date, keep in ((start, pl.col(time).ge), (end, pl.col(time).le)):
        if date is not None:
            frame = frame.filter(keep(pl.lit(date if date.tzinfo else date.replace(tzinfo=UTC))))
    if join_keys:
        return frame
    return frame.with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))


def _replace(path: Path, table: pa.Table) -> None:
    """Write a Parquet file beside its place, sync it, and move it there: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with fresh.open("wb") as sink:
            pq.write_table(table, sink)
            sink.flush()
            os.fsync(sink.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)

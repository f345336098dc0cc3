"""The feature store in code: entities, views and the service that a model is trained on.

``amount`` and the calendar features are the payment's own and need no store; ``fraud_v1`` names the
other twelve of ``FEATURES``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Float64, Int32, Int64

from features.contracts import CUSTOMER_SCHEMA, TERMINAL_SCHEMA
from features.offline_store import STORE_TYPE
from features.online_views import CUSTOMER, TERMINAL, event_views

PROJECT = "stagescope"
SERVICE = "fraud_v1"
CUSTOMER_WINDOWS = "customer_windows"
TERMINAL_WINDOWS = "terminal_windows"
REGISTRY_FILE = "registry.db"
ONLINE_FILE = "online.db"
ENTITY_KEY_VERSION = 3
OWN_ROW_ONLY = timedelta(microseconds=1)
"""A window moves with the clock, so that its value holds for its own row alone. This is Feast's
shortest time to live (0 would mean for ever)."""
FIELD_TYPES = {pa.int32(): Int32, pa.int64(): Int64, pa.float64(): Float64}


def open_store(
    folder: Path, online: Mapping[str, Any] | None = None, *, tables: Path | None = None
) -> FeatureStore:
    """The feature store in ``folder``, with everything applied; opening it again changes nothing.

    ``tables`` holds the window tables that ``build_tables`` wrote (default: ``folder``). ``online``
    is Feast's own: ``{"type": "sqlite"}``, the default, a file in the folder, or ``{"type":
    "redis", "connection_string": "127.0.0.1:6379"}``.

    Raises FileNotFoundError where there are no window tables.
    """
    tables = (tables or folder).resolve()
    for name in (CUSTOMER_WINDOWS, TERMINAL_WINDOWS):
        if not (tables / name).is_dir():
            raise FileNotFoundError(f"no folder {name} in {tables}: build the feature tables first")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings = dict(online or {"type": "sqlite"})
    if settings["type"] == "sqlite":
        settings.setdefault("path", str(folder / ONLINE_FILE))
    store = FeatureStore(
        config=RepoConfig(
            project=PROJECT,
            provider="local",
            registry=str(folder / REGISTRY_FILE),
            online_store=settings,
            offline_store={"type": STORE_TYPE},
            entity_key_serialization_version=ENTITY_KEY_VERSION,
            repo_path=folder,
        )
    )
    views = window_views(tables)
    store.apply([CUSTOMER, TERMINAL, *event_views(), *views, feature_service(views)])
    return store


def window_views(tables: Path) -> list[FeatureView]:
    """The views of the window tables in the folder ``tables``, offline only."""
    return [
        _view(CUSTOMER_WINDOWS, CUSTOMER, CUSTOMER_SCHEMA, tables),
        _view(TERMINAL_WINDOWS, TERMINAL, TERMINAL_SCHEMA, tables),
    ]


def feature_service(views: list[FeatureView]) -> FeatureService:
    """What a model of version 1 takes from the store."""
    return FeatureService(name=SERVICE, features=list(views))


def _view(name: str, entity: Entity, schema: pa.Schema, tables: Path) -> FeatureView:
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=OWN_ROW_ONLY,
        schema=[
            Field(name=field.name, dtype=FIELD_TYPES[field.type])
            for field in schema
            if field.name != "event_time"
        ],
        source=FileSource(
            name=f"{name}_parquet", path=str(tables / name), timestamp_field="event_time"
        ),
        online=False,
    )

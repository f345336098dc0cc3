"""The two online views of Feast that hold recent events, and the entities that they hang on.

A view has one feature, ``events``: the entity's recent payments as packed bytes (``events.py``).
They are written by ``online.py`` alone, so each view's source is a push source; the batch file
that Feast wants behind it is a name only and is never read.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig
from feast.types import Bytes, Int64
from feast.value_type import ValueType

CUSTOMER = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
TERMINAL = Entity(name="terminal", join_keys=["terminal_id"], value_type=ValueType.INT64)
CARD_EVENTS = "card_events"
TERMINAL_EVENTS = "terminal_events"
EVENTS = "events"


def event_views() -> list[FeatureView]:
    """``card_events`` and ``terminal_events``, to be applied with ``CUSTOMER`` and ``TERMINAL``."""
    return [_view(CARD_EVENTS, CUSTOMER), _view(TERMINAL_EVENTS, TERMINAL)]


def open_online_store(folder: Path, online: Mapping[str, Any]) -> FeatureStore:
    """A feature store of the event views alone, in ``folder``, for a server that needs no more.

    ``online`` is Feast's: ``{"type": "sqlite"}`` (a file in the folder) or ``{"type": "redis",
    "connection_string": "127.0.0.1:6379"}``. Raises OSError, or the store's own error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = dict(online)
    if settings["type"] == "sqlite":
        settings.setdefault("path", str(folder.resolve() / "online.db"))
    config = RepoConfig(
        project="stagescope",
        provider="local",
        registry=str(folder.resolve() / "online_registry.db"),
        online_store=settings,
        offline_store={"type": "dask"},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    store.apply([CUSTOMER, TERMINAL, *event_views()])
    return store


def _view(name: str, entity: Entity) -> FeatureView:
    unread = FileSource(
        name=f"{name}_file", path=f"{name}.parquet", timestamp_field="event_timestamp"
    )
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=timedelta(0),
        schema=[Field(name=entity.join_key, dtype=Int64), Field(name=EVENTS, dtype=Bytes)],
        source=PushSource(name=f"{name}_push", batch_source=unread),
        online=True,
    )

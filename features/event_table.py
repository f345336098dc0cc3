"""Packed lists of one Feast view by entity id, read and written through Feast's online store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

Lists = dict[int, bytes]
REDIS_TIMEOUT_S = 2.0
SYNCHRONOUS_NORMAL = 1
"""What ``PRAGMA synchronous`` answers where a commit in the write-ahead log does not sync."""


class StoreUnavailableError(ConnectionError):
    """The online store did not answer; the message says what it said."""


class EventTable:
    """The packed lists of one Feast view, by entity id, through Feast's online store."""

    def __init__(self, store: Any, view: str, join_key: str) -> None:
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value

        self._entity_key, self._value = EntityKey, Value
        self._provider, self._config = store.provider, store.config
        self._view, self._join_keys = store.get_feature_view(view), [join_key]
        self._stamp = datetime.fromtimestamp(0, UTC)

    def read(self, ids: Iterable[int]) -> Lists:
        """The list of each distinct id, empty where there is none; raises StoreUnavailableError."""
        distinct = list(dict.fromkeys(ids))
        if not distinct:
            return {}
        keys = [self._key(entity) for entity in distinct]
        with _store_errors():
            answers = self._provider.online_read(self._config, self._view, keys, ["events"])
        lists: Lists = {}
        for entity, (stamp, values) in zip(distinct, answers, strict=True):
            lists[entity] = values["events"].bytes_val if values else b""
            if stamp is not None and stamp > self._stamp:
                self._stamp = stamp
        return lists

    def write(self, lists: Mapping[int, bytes]) -> None:
        """Replace the lists of these entities; raises StoreUnavailableError."""
        if not lists:
            return
        stamp = self._next_stamp()
        rows = [
            (self._key(entity), {"events": self._value(bytes_val=packed)}, stamp, None)
            for entity, packed in lists.items()
        ]
        with _store_errors():
            self._provider.online_write_batch(self._config, self._view, rows, None)

    def confirm(self, lists: Mapping[int, bytes]) -> None:
        """Raise ValueError if the last of these lists is not what the store holds."""
        entity, packed = list(lists.items())[-1]
        if self.read([entity])[entity] != packed:
            raise ValueError(
                f"the online store kept an older {self._view.name} of {self._join_keys[0]} {entity}"
                f": it was written by a clock ahead of {self._stamp}; empty the store first"
            )

    def _next_stamp(self) -> datetime:
        """Later than any stamp seen: Redis drops a write that is not newer than what it holds."""
        self._stamp = max(datetime.now(UTC), self._stamp + timedelta(microseconds=2))
        return self._stamp

    def _key(self, entity: int) -> Any:
        return self._entity_key(
            join_keys=self._join_keys, entity_values=[self._value(int64_val=entity)]
        )


def make_quick(store: Any) -> None:
    """Set what an online answer needs and Feast's settings do not reach.

    SQLite writes ahead, as a sync at each commit would cost 12 to 40 ms: a killed process loses
    nothing, a power cut may lose the last commits, never the file. Redis is tried twice without
    the seconds of redis-py's backoff, and is waited for ``REDIS_TIMEOUT_S`` if nothing else is set.
    """
    settings = store.config.online_store
    if settings.type == "sqlite":
        connection = store.provider.online_store._get_conn(store.config)
        connection.execute("PRAGMA journal_mode = WAL")
        if connection.execute("PRAGMA synchronous").fetchone()[0] != SYNCHRONOUS_NORMAL:
            # Not again where it is so already: SQLite refuses while somebody's write is going on.
            connection.execute("PRAGMA synchronous = NORMAL")
    elif settings.type == "redis" and settings.redis_type == "redis":
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        client = store.provider.online_store._get_client(settings)
        given = client.connection_pool.connection_kwargs
        for name in ("socket_timeout", "socket_connect_timeout"):
            if given.get(name) is None:
                given[name] = REDIS_TIMEOUT_S
        client.set_retry(Retry(NoBackoff(), 1))


@contextmanager
def _store_errors() -> Iterator[None]:
    from redis.exceptions import RedisError

    try:
        yield
    except (sqlite3.Error, RedisError, OSError) as error:
        raise StoreUnavailableError(f"the online store does not answer: {error}") from error

"""The feature store in code: what is registered, and that opening again changes nothing."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from features.contracts import CALENDAR_FEATURES, FEATURES

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from features import definitions


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    folder = tmp_path / "tables"
    for name in (definitions.CUSTOMER_WINDOWS, definitions.TERMINAL_WINDOWS):
        (folder / name).mkdir(parents=True)
    return folder


def test_the_service_holds_every_feature_that_is_not_the_payments_own(
    tables: Path, tmp_path: Path
) -> None:
    store = definitions.open_store(tmp_path / "store", tables=tables)
    service = store.get_feature_service(definitions.SERVICE)
    names = [f.name for projection in service.feature_view_projections for f in projection.features]
    own = {"amount", *CALENDAR_FEATURES}
    assert names == [name for name in FEATURES if name not in own]
    assert {entity.name: entity.join_key for entity in store.list_entities()} == {
        "customer": "customer_id",
        "terminal": "terminal_id",
    }
    view = store.get_feature_view(definitions.CUSTOMER_WINDOWS)
    assert view.ttl == definitions.OWN_ROW_ONLY, "the shortest time to live survives the registry"
    assert not view.online


def test_opening_again_changes_nothing(tables: Path) -> None:
    def seen() -> list[tuple[str, object]]:
        store = definitions.open_store(tables)
        return sorted((view.name, view.created_timestamp) for view in store.list_feature_views())

    first = seen()
    assert seen() == first
    assert [name for name, _ in first] == [
        "card_events",
        "customer_windows",
        "terminal_events",
        "terminal_windows",
    ]
    assert not list(tables.rglob("*.yaml"))


def test_redis_by_settings(tables: Path) -> None:
    online = {"type": "redis", "connection_string": "127.0.0.1:1"}
    store = definitions.open_store(tables, online)
    assert store.config.online_store.connection_string == "127.0.0.1:1"


def test_without_window_tables_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder customer_windows .*build the feature"):
        definitions.open_store(tmp_path)

"""The profiles in docs/profiles: whole, of this schema, the same as themselves, without names."""

from __future__ import annotations

import getpass
import json
import platform
import re
from pathlib import Path

import jsonschema
import pytest

from telemetry.compare import TOLERANCE, compare
from telemetry.publish import LEAST_RUNS
from telemetry.reference import SCHEMA as NEWEST
from telemetry.reference import read_reference

DOCS = Path(__file__).parents[2] / "docs"
FILES = sorted((DOCS / "profiles").glob("*.profile.json"))
SCHEMA = json.loads((DOCS / "reference.schema.json").read_text())
NAMES = (
    r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b",
    r"\b(?:\d{1,3}\.){3}\d{1,3}\b",
    r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b",
    r"/(?:home|root|work|tmp|srv|mnt|Users)/",
)
"""UUIDs, IP and MAC addresses, and folders that are somebody's."""
MADE_UP = "its values are made up"


def test_there_are_published_profiles() -> None:
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_published_profile_is_by_its_schema(file: Path) -> None:
    """One that an earlier version published is read as the newest."""
    document = json.loads(file.read_text())
    if document["schema"] != NEWEST:
        document = read_reference(file).to_json()
    jsonschema.validate(document, SCHEMA)


def test_one_was_published_by_this_version() -> None:
    assert NEWEST in {json.loads(file.read_text())["schema"] for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_published_profile_is_the_same_as_itself(file: Path) -> None:
    reference = read_reference(file)
    assert reference.runs >= LEAST_RUNS
    if json.loads(file.read_text())["schema"] == NEWEST:
        assert reference.to_text() == file.read_text()
    # One with made-up values shows the form, and no machine's quiet.
    got = compare(reference, reference, tolerance=1.0 if MADE_UP in reference.name else TOLERANCE)
    assert got.found == []
    assert got.open_points() == []
    assert got.outcome == "same"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_published_profile_names_nobody(file: Path) -> None:
    text = file.read_text()
    for pattern in NAMES:
        assert re.findall(pattern, text) == []
    entities = {one.entity for stage in read_reference(file).stages for one in stage.metrics}
    told = {entity for entity in entities if entity.startswith(("vm:", "esxi:"))}
    assert all(re.match(r"vm:vm-\d+@host-\d+|esxi:host-\d+", entity) for entity in told)
    words = set(re.findall(r"[\w.-]+", text))
    own = {platform.node(), getpass.getuser()} - {"", "root", "localhost", "vm"}
    assert not own & words


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_page_says_what_each_file_is(file: Path) -> None:
    assert f"`{file.name}`" in (file.parent / "README.md").read_text()


def test_what_was_not_seen_on_a_gpu_says_so() -> None:
    for file in FILES:
        reference = read_reference(file)
        gpus = (reference.environment.get("gpu") or {}).get("gpus")
        assert not gpus or MADE_UP in reference.name or file.name.startswith("gpu")
        if MADE_UP in reference.name:
            assert "not seen on a GPU" in (file.parent / "README.md").read_text()

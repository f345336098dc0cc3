"""Parts of a machine that some tests drive: without one, its tests are left out by name.

Under ``CI=true`` a missing part is a failure, so that nothing is left out unseen.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import hypothesis
import pytest

# A machine that is busy is no finding: no test is timed.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

PARTS = {
    "redis-server": ("redis-server", "apt-get install redis-server"),
    "gcc": ("gcc", "apt-get install gcc libc6-dev"),
    "go": ("go", "apt-get install golang-go golang-github-vmware-govmomi-dev"),
    "chromium": ("chromium", "apt-get install chromium"),
    "prometheus": ("prometheus", "apt-get install prometheus"),
}
GOVMOMI = Path("/usr/share/gocode/src/github.com/vmware/govmomi")
HANDBOOK_HINT = (
    "set STAGESCOPE_HANDBOOK=file to the Handbook's transactions as one Parquet file "
    "(stagescope data import makes it from the published folder of daily pickles)"
)
BESIDE = Path(__file__).resolve().parents[2] / "shared/data/handbook/transactions.parquet"


LONG = (
    "tests/pipeline/test_end_to_end.py",
    "tests/pipeline/test_kill.py",
    "tests/pipeline/test_hypervisor.py",
    "tests/training/test_published.py",
    "tests/pipeline/test_cli_compare.py",
    "tests/telemetry/test_report_hypervisor.py",
    "tests/telemetry/test_gpu.py",
)
"""Files that take a minute and more, the longest first: else the last would keep one processor busy
when all the others have nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if gone := [one for one in LONG if not (Path(__file__).parents[1] / one).is_file()]:
        raise pytest.UsageError(f"LONG in tests/conftest.py names {gone}, which are not there")
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(LONG)))


def handbook_file() -> Path | None:
    """The published table: where STAGESCOPE_HANDBOOK says, else beside the checkout."""
    named = os.environ.get("STAGESCOPE_HANDBOOK")
    if named:
        return Path(named)
    return BESIDE if BESIDE.is_file() else None


def _missing(part: str) -> str | None:
    if part == "handbook":
        path = handbook_file()
        return None if path is not None and path.is_file() else HANDBOOK_HINT
    binary, install = PARTS[part]
    if part == "go" and not GOVMOMI.is_dir():
        return f"no govmomi here: {install}"
    return None if shutil.which(binary) else f"no {binary} here: {install}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        why = _missing(mark.args[0])
        if why is None:
            continue
        if os.environ.get("CI") == "true":
            pytest.fail(f"needs {mark.args[0]}, and under CI=true it must be there. {why}")
        pytest.skip(f"needs {mark.args[0]}: {why}")


@pytest.fixture(scope="session")
def handbook() -> Path:
    """Path of the published table; use with ``@pytest.mark.needs("handbook")``."""
    path = handbook_file()
    assert path is not None, HANDBOOK_HINT
    return path

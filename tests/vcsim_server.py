"""A vCenter of the test's own on the loopback: the Go program of tests/vcsim, started and driven.

``with Vcsim(machines=4) as vcsim:`` starts one; ``vcsim.control(lag_s=900)`` changes it while it
runs. What can be told to it is in tests/vcsim/README.md.
"""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from infra.vsphere.settings import VCenterSettings
from tests.vcsim.build import build

USER = "administrator@vsphere.local"
PASSWORD = "vcsim-secret-7f9c"
READER = "reader@vsphere.local"
READER_PASSWORD = "vcsim-reader-3b1e&<"
START_LIMIT_S = 60


class Vcsim:
    """One server. The options are the program's flags: clusters, hosts, machines, light, api …

    It keeps its port and certificate over ``stop()`` and ``start()``; what ``control()`` had set
    before is set again, its inventory and sessions begin anew.
    """

    def __init__(self, **options: int | bool | str) -> None:
        self.options = options
        self.address = "127.0.0.1"
        self.user, self.password = USER, PASSWORD
        self.port = 0
        self.ca_file = ""
        self.thumbprint = ""
        self._control_port = 0
        self._kept: dict[str, Any] = {}
        self._folder: Path | None = None
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Vcsim:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What the program wrote to its standard error."""
        return (self._own_folder() / "vcsim.log").read_text()

    def start(self, **options: int | bool | str) -> Vcsim:
        """Start the server, on its old port if it had one; options are added to the former."""
        assert self._process is None, "already started"
        self.options = {**self.options, **options}
        folder = self._own_folder()
        with (folder / "vcsim.log").open("a") as log:
            self._process = subprocess.Popen(
                [str(build()), "-folder", str(folder), "-port", str(self.port), *self._flags()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError(f"the simulator did not start:\n{self.log}")
        ready = json.loads(line)
        self.port, self._control_port = ready["port"], ready["control"]
        self.ca_file, self.thumbprint = ready["ca_file"], ready["thumbprint"]
        if self._kept:
            self.control(**self._kept)
        return self

    def stop(self) -> None:
        """End the server at once: its port refuses connections until the next ``start()``."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()

    def restart(self, **options: int | bool | str) -> Vcsim:
        self.stop()
        return self.start(**options)

    def close(self) -> None:
        self.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None

    def control(self, **wanted: Any) -> dict[str, Any]:
        """Tell the server something, or nothing; returns its report (``counts``, ``inventory``)."""
        if wanted.get("reset"):
            self._kept = {}
        connection = http.client.HTTPConnection(self.address, self._control_port, timeout=60)
        try:
            connection.request("POST", "/control", json.dumps(wanted))
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise ValueError(f"control({wanted!r}): {text.strip()}")
        report: dict[str, Any] = json.loads(text)
        self._kept.update({key: wanted[key] for key in wanted if key in report["settings"]})
        return report

    @property
    def counts(self) -> dict[str, int]:
        """What the server has counted; 0 for what never happened is not in it."""
        counts: dict[str, int] = self.control()["counts"]
        return counts

    def environ(self, *, reader: bool = False) -> dict[str, str]:
        """The credentials as a process finds them; ``reader``: the account with few rights."""
        user, password = (READER, READER_PASSWORD) if reader else (self.user, self.password)
        return {"STAGESCOPE_VCENTER_USER": user, "STAGESCOPE_VCENTER_PASSWORD": password}

    def settings(self, **overrides: Any) -> VCenterSettings:
        """Settings that reach this server, verified by its own certificate."""
        fields: dict[str, Any] = {"host": self.address, "port": self.port, "timeout_s": 10.0}
        if not {"thumbprint", "insecure", "ca_file"} & overrides.keys():
            fields["ca_file"] = self.ca_file
        return VCenterSettings(**{**fields, **overrides})

    def _own_folder(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="stagescope-vcsim-"))
        return self._folder

    def _flags(self) -> list[str]:
        return [f"-{name}={_flag(value)}" for name, value in self.options.items()]


def _flag(value: int | bool | str) -> str:
    return str(value).lower()


def counts_of(report: Mapping[str, Any], prefix: str) -> dict[str, int]:
    """The counts of a report whose names begin with ``prefix``."""
    return {name: n for name, n in report["counts"].items() if name.startswith(prefix)}


@pytest.fixture(scope="session")
def vcsim_process() -> Iterator[Vcsim]:
    with Vcsim() as server:
        yield server


@pytest.fixture
def vcsim(vcsim_process: Vcsim) -> Iterator[Vcsim]:
    """A server shared by a session's tests, set back before each. Leave its inventory alone."""
    vcsim_process.control(reset=True)
    yield vcsim_process
    vcsim_process.control(reset=True)


@pytest.fixture
def own_vcsim() -> Iterator[Vcsim]:
    """A server of this test's own: for what is created, moved, stopped or restarted."""
    with Vcsim() as server:
        yield server

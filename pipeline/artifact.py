"""Published outputs of stages: whole or not at all, found again by the key of what made them.

Layout below the store's root::

    artifacts/<stage>/<key>-<run_id>/<output>/...   what a stage wrote, never changed again
    artifacts/<stage>/<key>.json                    the manifest that publishes it
    work/<stage>/<key>/                             survives a kill (checkpoints)
    tmp/<run_id>/<stage>/                           outputs in the making
    locks/                                          one file per key and per run
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from telemetry.runfolder import write_atomically

STORE = ".stagescope"
"""Folder of the store beside the runs."""
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A published output: where it lies, what it contains and which run made it."""

    name: str
    path: Path
    digest: str
    rows: int | None
    bytes: int
    producer: str

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Artifact:
        return cls(**{**fields, "path": Path(fields["path"])})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one execution of a stage published, and what it said about it."""

    stage: str
    key: str
    producer: str
    artifacts: dict[str, Artifact]
    result: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "key": self.key,
            "producer": self.producer,
            "artifacts": {name: one.to_json() for name, one in self.artifacts.items()},
            "result": self.result,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Manifest:
        artifacts = {name: Artifact.from_json(one) for name, one in fields["artifacts"].items()}
        return cls(**{**fields, "artifacts": artifacts})


@dataclass(frozen=True)
class Store:
    """The artifacts, work folders and locks below one root; safe for several runs at once."""

    root: Path

    def find(self, stage: str, key: str) -> Manifest | None:
        """The published outputs under this key, or None if there are none or a part is gone."""
        try:
            manifest = Manifest.from_json(json.loads(self._manifest(stage, key).read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        whole = all(artifact.path.exists() for artifact in manifest.artifacts.values())
        return manifest if whole else None

    def publish(
        self, *, stage: str, key: str, run_id: str, made: Path, result: Mapping[str, Any]
    ) -> Manifest:
        """Digest each output below ``made``, sync it, move it into place and name it by its key."""
        home = self.root / "artifacts" / stage / f"{key}-{run_id}"
        rows = result.get("rows", {})
        artifacts = {}
        for folder in sorted(made.iterdir()):
            sync_tree(folder)
            digest, size = digest_tree(folder)
            artifacts[folder.name] = Artifact(
                name=folder.name,
                path=home / folder.name,
                digest=digest,
                rows=rows.get(folder.name),
                bytes=size,
                producer=run_id,
            )
        manifest = Manifest(
            stage=stage, key=key, producer=run_id, artifacts=artifacts, result=dict(result)
        )
        home.parent.mkdir(parents=True, exist_ok=True)
        if home.exists():  # the same run measured the same key before and was killed after that
            shutil.rmtree(home)
        made.rename(home)
        sync_folder(home.parent)
        write_atomically(self._manifest(stage, key), json.dumps(manifest.to_json(), indent=1))
        return manifest

    def work(self, stage: str, key: str) -> Path:
        """The folder that outlives a kill; created if need be."""
        folder = self.root / "work" / stage / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def scratch(self, run_id: str, stage: str) -> Path:
        """An empty folder for outputs in the making."""
        folder = self.root / "tmp" / run_id / stage
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def drop_scratch(self, run_id: str) -> None:
        shutil.rmtree(self.root / "tmp" / run_id, ignore_errors=True)

    def has_lock(self, name: str) -> bool:
        """Whether the named lock was ever held."""
        return self._lock(name).exists()

    def _lock(self, name: str) -> Path:
        return self.root / "locks" / f"{name}.lock"

    @contextlib.contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold the named lock; yields False at once if ``wait`` is false and it is held."""
        path = self._lock(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    def prune(self, kept_runs: set[str]) -> int:
        """Delete outputs that no kept run made or uses; returns the bytes freed."""
        freed = 0
        for manifest_path in sorted((self.root / "artifacts").glob("*/*.json")):
            manifest = json.loads(manifest_path.read_text())
            if manifest["producer"] not in kept_runs:
                manifest_path.unlink()
        published = {
            Path(artifact["path"]).parent
            for path in (self.root / "artifacts").glob("*/*.json")
            for artifact in json.loads(path.read_text())["artifacts"].values()
        }
        for home in sorted((self.root / "artifacts").glob("*/*/")):
            if home not in published:
                freed += digest_tree(home)[1]
                shutil.rmtree(home)
        return freed

    def _manifest(self, stage: str, key: str) -> Path:
        return self.root / "artifacts" / stage / f"{key}.json"


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_tree(folder: Path) -> tuple[str, int]:
    """Digest over names and contents of all files below ``folder``, and their bytes."""
    total = hashlib.sha256()
    size = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                content.update(chunk)
                size += len(chunk)
        total.update(f"{path.relative_to(folder)}\0{content.hexdigest()}\n".encode())
    return total.hexdigest(), size


def sync_tree(folder: Path) -> None:
    """Write all files below ``folder`` through to the device."""
    for path in sorted(folder.rglob("*")):
        sync_folder(path)
    sync_folder(folder)


def sync_folder(path: Path) -> None:
    """Write one file or folder entry through to the device."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_filesystem(path: Path) -> None:
    """Write everything through that waits for the device below ``path``, whoever wrote it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        ctypes.CDLL(None).syncfs(handle)  # it only fails for a handle that is not open
    finally:
        os.close(handle)


def drop_from_page_cache(folder: Path) -> None:
    """Make the next read of these files come from storage (they must be synced)."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)

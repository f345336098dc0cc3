"""Build the simulator from the Go files beside this one, once for each state of them.

It needs Debian's ``golang-go`` and ``golang-github-vmware-govmomi-dev``; nothing is fetched.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
GOPATH = "/usr/share/gocode"


def build() -> Path:
    """Path of the program; two that ask at once wait for one build."""
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    program = cache / f"vcsim-{_digest()}"
    if program.is_file():
        return program
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.is_file():
            _compile(program, cache)
    return program


def _compile(program: Path, cache: Path) -> None:
    unfinished = program.with_suffix(".unfinished")
    environment = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": GOPATH,
        "GOCACHE": str(cache / "go-build"),
        "GOFLAGS": "",
    }
    command = ["go", "build", "-o", str(unfinished), "."]
    done = subprocess.run(
        command, cwd=SOURCES, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} in {SOURCES} failed:\n{done.stdout}{done.stderr}")
    unfinished.rename(program)


def _digest() -> str:
    digest = hashlib.sha256()
    for source in sorted(SOURCES.glob("*.go")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _cache() -> Path:
    named = os.environ.get("STAGESCOPE_VCSIM_CACHE")
    return Path(named) if named else Path(tempfile.gettempdir()) / f"stagescope-vcsim-{os.getuid()}"


if __name__ == "__main__":
    print(build())

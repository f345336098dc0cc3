"""A network of two ends with a rate: a pair of interfaces, one of them in a namespace of its own.

Needs root, iproute2 and the kernel's veth and tbf; everything is removed at the end.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
from collections.abc import Iterator

SERVER = """
import socket
server = socket.create_server(("10.213.7.2", 7000))
while True:
    peer = server.accept()[0]
    try:
        while True:
            peer.sendall(bytes(1 << 16))
    except OSError:
        pass
"""
ADDRESS = "10.213.7.2", 7000


def why_not() -> str | None:
    """Why there can be no such network here; None if there can."""
    try:
        with slow_link(10e6):
            return None
    except OSError as error:
        return f"no pair of network interfaces with a rate can be made here: {error}"


@contextlib.contextmanager
def slow_link(bits_per_s: float) -> Iterator[tuple[str, int]]:
    """Address of a server that sends as fast as the link lets it. Raises OSError without one."""
    name = f"sg{secrets.token_hex(3)}"
    near, far = f"{name}a", f"{name}b"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        _ip("addr", "add", "10.213.7.1/30", "dev", near)
        _ip("link", "set", near, "up")
        _ip("-n", name, "addr", "add", "10.213.7.2/30", "dev", far)
        _ip("-n", name, "link", "set", far, "up")
        rate = f"{round(bits_per_s)}bit"
        _run("tc", "-n", name, "qdisc", "add", "dev", far, "root", "tbf", "rate", rate,
             "burst", "128kb", "latency", "50ms")  # fmt: skip
        server = subprocess.Popen(["ip", "netns", "exec", name, sys.executable, "-c", SERVER])
        try:
            yield ADDRESS
        finally:
            server.kill()
            server.wait()
    finally:
        for leftover in (("link", "del", near), ("netns", "del", name)):
            with contextlib.suppress(OSError):
                _ip(*leftover)


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")

"""Whom the connection trusts: the system's CAs, an own CA, one pinned certificate, or anyone.

The pin is checked here, after each handshake: pyVmomi's own ``thumbprint`` is compared only where
the usual verification has failed before, so it pins nothing against a certificate that any trusted
CA signed, and nothing at all without verification.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import time
from typing import Any

from infra.vsphere.errors import VCenterUntrusted
from infra.vsphere.settings import VCenterSettings

ANSWER_TIMES = 4
"""A whole answer may take so many times the longest wait for its next bytes."""


class WrongThumbprint(ssl.SSLError):
    """The server showed another certificate than the pinned one. ``shown``: its SHA-256."""

    def __init__(self, shown: str) -> None:
        super().__init__(ssl.SSL_ERROR_SSL, "certificate is not the pinned one")
        self.shown = shown


class _Socket(ssl.SSLSocket):
    """Gives up an answer that trickles in: its time-out counts anew with each byte."""

    _asked_s = float("inf")

    def send(self, data: Any, flags: int = 0) -> int:
        self._asked_s = time.monotonic()
        return super().send(data, flags)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        timeout_s = self.gettimeout() or float("inf")
        if time.monotonic() - self._asked_s > ANSWER_TIMES * timeout_s:
            raise TimeoutError("the answer comes to no end")
        return super().recv_into(buffer, nbytes, flags)


class _PinnedContext(ssl.SSLContext):
    """Accepts one certificate and no other, before a byte is sent."""

    pinned: bytes

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        wrapped = super().wrap_socket(*args, **kwargs)
        shown = _sha256(wrapped)
        if shown != self.pinned:
            wrapped.close()
            raise WrongThumbprint(readable(shown))
        return wrapped


def state(settings: VCenterSettings) -> str:
    """How the server is verified, as probe and report say it."""
    if settings.insecure:
        return "NOT VERIFIED (insecure)"
    if settings.thumbprint:
        return "pinned thumbprint"
    return "verified by ca_file" if settings.ca_file else "verified"


def make_context(settings: VCenterSettings) -> ssl.SSLContext:
    """Return the context of all connections. Raises VCenterUntrusted for a CA file of no use."""
    context = _context(settings)
    context.sslsocket_class = _Socket
    return context


def _context(settings: VCenterSettings) -> ssl.SSLContext:
    if settings.thumbprint:
        pinned = _PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
        pinned.check_hostname, pinned.verify_mode = False, ssl.CERT_NONE  # the pin is stricter
        pinned.pinned = bytes.fromhex(settings.thumbprint.replace(":", ""))
        return pinned
    if settings.insecure:
        return _unverified()
    try:
        return ssl.create_default_context(cafile=settings.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        said = error.strerror or "it holds no PEM certificate"
        raise VCenterUntrusted(
            f"vcenter.ca_file {settings.ca_file} cannot be used: {said}; vCenter gives its CA at "
            f"https://{settings.address}/certs/download.zip"
        ) from error


def untrusted(settings: VCenterSettings, error: ssl.SSLError) -> VCenterUntrusted:
    """The sentence for a certificate that was not accepted, with the ways out."""
    if isinstance(error, WrongThumbprint):
        return VCenterUntrusted(
            f"vCenter {settings.address} shows another certificate than the pinned one: its "
            f"SHA-256 is {error.shown}; if it was renewed, compare that on the server itself and "
            "set vcenter.thumbprint anew, else somebody sits in between"
        )
    why = getattr(error, "verify_message", "") or str(error)
    shown = shown_thumbprint(settings)
    return VCenterUntrusted(
        f"the certificate of vCenter {settings.address} is not verified: {why}. Name its CA with "
        f"vcenter.ca_file (https://{settings.address}/certs/download.zip), or pin it with "
        "vcenter.thumbprint"
        + (f" (it shows SHA-256 {shown}: compare that on the server itself)" if shown else "")
    )


def shown_thumbprint(settings: VCenterSettings) -> str | None:
    """SHA-256 of the certificate that the server shows; None where it shows none.

    Nothing is sent over this connection: it trusts nobody.
    """
    address = (settings.host.strip("[]"), settings.port)
    try:
        with (
            socket.create_connection(address, settings.timeout_s) as plain,
            _unverified().wrap_socket(plain, server_hostname=address[0]) as wrapped,
        ):
            return readable(_sha256(wrapped))
    except (OSError, ValueError):
        return None


def readable(digest: bytes) -> str:
    return digest.hex(":").upper()


def _sha256(wrapped: ssl.SSLSocket) -> bytes:
    return hashlib.sha256(wrapped.getpeercert(binary_form=True) or b"").digest()


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context

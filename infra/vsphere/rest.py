"""vCenter's REST interface, for what its SOAP API lacks: content libraries.

``/rest`` is spoken, which vCenter 6.5 brought and 7 and 8 still answer beside the newer ``/api``.
Trust, time-out and credentials are those of ``infra.vsphere.session``; the session is its own, and
ended whatever happened. Each question has its own connection: they are few, and may come from
several threads.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPSConnection
from typing import Any
from urllib.parse import quote, urlencode

from infra.vsphere import tls
from infra.vsphere.errors import MissingSecret, VCenterError, VCenterRefused, VCenterUnreachable
from infra.vsphere.secrets import HIDDEN, Credentials, read_credentials
from infra.vsphere.settings import VCenterSettings
from infra.vsphere.transport import TRANSPORT, unreachable

ROOT = "/rest"
SESSION = "/com/vmware/cis/session"
SESSION_HEADER = "vmware-api-session-id"
CLOSE_S = 3.0
KEEP_ALIVE_S = 60
"""A firewall forgets a connection on which nothing is said while the server works for an hour."""
OK, UNAUTHORIZED, NOT_FOUND, SERVER_ERROR = 200, 401, 404, 500


class RestRefused(VCenterRefused):
    """The server answers and refuses. ``kind`` is its name for why, ``not_found`` for example."""

    def __init__(self, said: str, kind: str) -> None:
        super().__init__(said)
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class _Answer:
    status: int
    reason: str
    body: bytes


class RestSession:
    """A REST session; a context manager, for several threads at once."""

    def __init__(
        self, settings: VCenterSettings, *, environ: Mapping[str, str] = os.environ
    ) -> None:
        self.settings = settings
        self._environ = environ
        self._context: Any = None
        self._id = ""
        self._closed = True
        self._logins = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"RestSession({self.settings.address!r}, {tls.state(self.settings)})"

    def __enter__(self) -> RestSession:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Log in. Raises VCenterUnreachable, VCenterUntrusted or VCenterRefused."""
        self._context = tls.make_context(self.settings)
        self._closed = False
        try:
            self._login(self._logins)
        except BaseException:
            self.close()
            raise

    def close(self, limit_s: float = CLOSE_S) -> None:
        """Log out. Never raises; what the server does not hear of, it ends itself when idle."""
        self._closed = True
        ident, self._id = self._id, ""
        if ident:
            with suppress(Exception):
                self._exchange("DELETE", SESSION, {SESSION_HEADER: ident}, limit_s=limit_s)

    def get(self, path: str, **query: str) -> Any:
        """The value at a path below /rest; None where the server says nothing."""
        return self._ask("GET", path + (f"?{urlencode(query)}" if query else ""), None, None)

    def post(self, path: str, body: Any, *, action: str, limit_s: float | None = None) -> Any:
        """The value that an action answers with; ``limit_s`` is for one that takes its time.

        Raises RestRefused for what the server refuses, VCenterUnreachable where its answer does not
        come: the action may go on all the same.
        """
        return self._ask("POST", f"{path}?~action={quote(action)}", body, limit_s)

    def _ask(self, verb: str, path: str, body: Any, limit_s: float | None) -> Any:
        logins = self._logins
        answer = self._send(verb, path, body, limit_s)
        if answer.status == UNAUTHORIZED:  # nothing was done: the session is gone
            self._login(logins)
            answer = self._send(verb, path, body, limit_s)
        return self._value(answer)

    def _send(self, verb: str, path: str, body: Any, limit_s: float | None) -> _Answer:
        self._require_open()
        headers, wait_s = {SESSION_HEADER: self._id}, limit_s or self.settings.timeout_s
        try:
            return self._exchange(verb, path, headers, body=body, limit_s=wait_s)
        except TimeoutError as error:
            raise VCenterUnreachable(
                f"vCenter {self.settings.address} does not answer within {wait_s:g} s"
            ) from error
        except TRANSPORT as error:
            raise unreachable(self.settings, error) from error

    def _exchange(
        self,
        verb: str,
        path: str,
        headers: Mapping[str, str],
        *,
        body: Any = None,
        limit_s: float,
    ) -> _Answer:
        settings = self.settings
        connection = HTTPSConnection(
            settings.host.strip("[]"),
            settings.port,
            timeout=min(limit_s, settings.timeout_s),
            context=self._context,
        )
        try:
            connection.connect()
            _keep_alive(connection.sock)
            connection.sock.settimeout(limit_s)
            told = {"Accept": "application/json", "Connection": "close", **headers}
            content = None
            if verb == "POST":
                content = b"" if body is None else json.dumps(body).encode()
                told["Content-Type"] = "application/json"
            connection.request(verb, ROOT + path, content, told)
            answer = connection.getresponse()
            return _Answer(status=answer.status, reason=answer.reason, body=answer.read())
        finally:
            connection.close()

    def _value(self, answer: _Answer) -> Any:
        where = f"vCenter {self.settings.address}"
        if answer.status == OK:
            if not answer.body.strip():
                return None
            try:
                return json.loads(answer.body).get("value")
            except (ValueError, AttributeError):
                raise VCenterUnreachable(
                    f"{where} answers with something that is not REST; is it a vCenter?"
                ) from None
        kind, said = _refusal(answer.body)
        if answer.status >= SERVER_ERROR and not kind:
            raise VCenterUnreachable(f"{where} answers: {answer.status} {answer.reason}")
        why = said or f"{answer.status} {answer.reason}"
        raise RestRefused(f"{where} refuses: {why}" + (f" ({kind})" if kind else ""), kind)

    def _login(self, logins: int) -> None:
        """Open a session, unless another thread has done so since ``logins`` was read."""
        with self._lock:
            if self._logins != logins:
                return
            self._require_open()
            failure = self._try_login()
            if failure is not None:
                raise failure  # here, where no frame below it holds the password any more
            self._logins += 1
            if self._closed:  # while a thread logged in
                self.close()
            self._require_open()

    def _require_open(self) -> None:
        if self._closed:
            raise VCenterUnreachable(f"the REST session with {self.settings.address} is closed")

    def _try_login(self) -> VCenterError | None:
        """Log in; return what went wrong instead of raising it, as ``VCenter._try_login`` does."""
        try:
            credentials = read_credentials(self.settings, self._environ)
        except MissingSecret as missing:
            return missing.with_traceback(None)
        token = base64.b64encode(f"{credentials.user}:{credentials.password}".encode()).decode()
        headers, limit_s = {"Authorization": f"Basic {token}"}, self.settings.timeout_s
        try:
            answer = self._exchange("POST", SESSION, headers, limit_s=limit_s)
        except TRANSPORT as error:
            failure = unreachable(self.settings, error)
            return type(failure)(_hidden(str(failure), credentials, token))
        except Exception as error:  # noqa: BLE001 - whatever it is, its frames hold the password
            said = _hidden(f"{type(error).__name__}: {error}", credentials, token)
            return VCenterUnreachable(f"vCenter {self.settings.address}: no REST login: {said}")
        try:
            self._id = self._session_in(answer, credentials.user)
        except VCenterError as error:
            return type(error)(_hidden(str(error), credentials, token))
        return None

    def _session_in(self, answer: _Answer, user: str) -> str:
        where = f"vCenter {self.settings.address}"
        if answer.status == UNAUTHORIZED:
            raise VCenterRefused(f"{where} refuses {user}: wrong user or password, or locked")
        if answer.status == NOT_FOUND:
            raise VCenterRefused(
                f"{where} has no REST interface at {ROOT}, which content libraries need; vCenter "
                "6.5 to 8 have it"
            )
        try:
            value = self._value(answer)
        except RestRefused as refused:
            raise VCenterRefused(str(refused)) from None
        if not isinstance(value, str) or not value:
            raise VCenterUnreachable(f"{where} answers a REST login without a session")
        return value


def _hidden(text: str, credentials: Credentials, token: str) -> str:
    return credentials.hide(text.replace(token, HIDDEN))


def _keep_alive(sock: Any) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_S)


def _refusal(body: bytes) -> tuple[str, str]:
    """The server's name for an error, ``not_found``, and what it says; empty where it is none."""
    try:
        told = json.loads(body)
        kind = str(told["type"]).rpartition(".")[2]
    except (ValueError, KeyError, TypeError):
        return "", ""
    return kind, "; ".join(messages(told.get("value")))


def messages(told: Any) -> list[str]:
    """All that the server says to people in an answer, whatever it is wrapped in."""
    if isinstance(told, list):
        return list(dict.fromkeys(said for one in told for said in messages(one)))
    if not isinstance(told, dict):
        return []
    said = told.get("default_message")
    own = [" ".join(str(said).split())] if said else []
    return list(dict.fromkeys([*own, *messages(list(told.values()))]))

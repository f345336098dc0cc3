"""One logged-in session with a vCenter: opened, renewed when it is gone, and always ended.

pyVmomi's ``SmartConnect`` is not used: it asks for the server's versions without a time-out,
believes any certificate on localhost, compares a thumbprint only after the usual verification has
failed, and keeps the session in a global. Its stub and its types are used as they are.
"""

from __future__ import annotations

import os
import re
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from typing import IO, Any, TypeVar

from pyVmomi import SoapStubAdapter, vim, vmodl
from pyVmomi.VmomiSupport import GetServiceVersions, versionIdMap

from infra.vsphere import soap, tls
from infra.vsphere.backoff import REFUSED_S, UNREACHABLE_S, Backoff
from infra.vsphere.errors import (
    MissingSecret,
    VCenterError,
    VCenterRefused,
    VCenterUnreachable,
    VCenterUntrusted,
    sentence,
)
from infra.vsphere.properties import collect, everything_in, only
from infra.vsphere.rest import RestSession
from infra.vsphere.secrets import Credentials, read_credentials
from infra.vsphere.settings import VCenterSettings
from infra.vsphere.transport import TRANSPORT, unreachable

__all__ = [
    "MissingSecret",
    "VCenter",
    "VCenterError",
    "VCenterRefused",
    "VCenterUnreachable",
    "VCenterUntrusted",
    "sentence",
]

T = TypeVar("T")
DROPPED = (ConnectionError, ssl.SSLEOFError)
"""What a kept connection gives that the server closed meanwhile (RemoteDisconnected is one)."""
POOL_IDLE_S = 15
"""Kept connections are dropped after it: a proxy before vCenter closes them without a word, and
pyVmomi (which keeps them for 15 minutes) would then fail on the first question of a query round."""
CLOSE_S = 3.0
LOCALE = "en"
VERSIONS_PATH = "/sdk/vimServiceVersions.xml"
OLDEST = "vim.version.version9"


class VCenter:
    """A session; a context manager. May be opened again after it was closed.

    ``tls`` says how the server is verified, ``user`` as whom we are logged in, ``version`` which
    API both sides speak. ``content``, ``service`` and ``stub`` are pyVmomi's, there while open.
    """

    content: Any
    service: Any
    stub: Any

    def __init__(
        self, settings: VCenterSettings, *, environ: Mapping[str, str] = os.environ
    ) -> None:
        self.settings = settings
        self.tls = tls.state(settings)
        self.user: str | None = None
        self.content = self.service = self.stub = None
        self._environ = environ
        self._lock = threading.RLock()
        self._logins = 0
        self._views: list[Any] = []
        self._backoff = Backoff()
        self._refused_hash: int | None = None

    def __repr__(self) -> str:
        return f"VCenter({self.settings.address!r}, {self.tls}, user={self.user!r})"

    def __enter__(self) -> VCenter:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def logins(self) -> int:
        """How often it has logged in: with each the server may be another, as after a restart."""
        return self._logins

    @property
    def version(self) -> str:
        """Product and version of the server, for example ``VMware vCenter Server 8.0.3``."""
        about = self.content.about
        return f"{about.name} {about.version}"

    def open(self) -> None:
        """Connect and log in; nothing where that is done already.

        Raises VCenterUnreachable, VCenterUntrusted or VCenterRefused.
        """
        with self._lock:
            if self.content is not None:
                return
            try:
                self._require_credentials()
                with self._transport():
                    self._connect()
                self._login()
            except BaseException:
                self.close()
                raise

    def close(self, limit_s: float = CLOSE_S) -> None:
        """Destroy the views, log out and drop the connections. Never raises.

        Returns after ``limit_s`` even if the server no longer answers: it then ends the session
        itself, after its own idle time.
        """
        stub, content, views = self.stub, self.content, self._views
        self.content = self.service = self.stub = self.user = None
        self._views = []
        if stub is None:
            return
        farewell = threading.Thread(
            target=_farewell,
            args=(stub, content, views, limit_s),
            name="vcenter-close",
            daemon=True,
        )
        with suppress(RuntimeError):  # no new threads while the interpreter shuts down
            farewell.start()
            farewell.join(limit_s)
        stub.DropConnections()

    def call(self, ask: Callable[[], T], *, read_only: bool = False) -> T:
        """Run ``ask``; where the session is gone, log in again and run it once more.

        ``read_only``: ``ask`` changes nothing, so it may be repeated on a connection that the
        server had dropped. Raises VCenterUnreachable for what lies on the way, VCenterRefused
        where the login fails or the session is lost again; other faults are pyVmomi's own.
        """
        logins = self._logins
        try:
            return self._ask(ask, read_only)
        except vim.fault.NotAuthenticated:
            pass
        self._login_again(logins)
        try:
            return self._ask(ask, read_only)
        except vim.fault.NotAuthenticated:
            raise VCenterRefused(
                f"vCenter {self.settings.address} took the login and ended the session at once"
            ) from None

    def rest(self) -> RestSession:
        """A REST session with the same server, trust and credentials; not opened yet."""
        return RestSession(self.settings, environ=self._environ)

    def post(self, envelope: bytes) -> IO[bytes]:
        """Post a raw SOAP envelope to /sdk; return the body of the answer as it comes. Close it.

        The body may be a fault: whoever reads it raises NotAuthenticated for that one, within
        ``call``, which then logs in again.
        """
        return self._ask(lambda: soap.post(self._opened(), envelope, self._unreachable), True)

    def retrieve(
        self, kind: type, properties: Sequence[str], container: Any = None
    ) -> list[tuple[Any, dict[str, Any]]]:
        """All objects of ``kind`` below ``container`` (None: everywhere) with these properties.

        A property that is not set, or that the account may not read, is not in the dict.
        """
        return self.call(lambda: self._sweep(kind, properties, container), read_only=True)

    def read(
        self, objects: Sequence[Any], properties: Sequence[str]
    ) -> list[tuple[Any, dict[str, Any]]]:
        """Properties of these objects, in one question.

        An object that is gone raises ManagedObjectNotFound, as pyVmomi has it.
        """
        if not objects:
            return []
        chosen = [only(one) for one in objects]
        kinds = list(dict.fromkeys(map(type, objects)))
        return self.call(lambda: collect(self.content, chosen, kinds, properties), read_only=True)

    def _opened(self) -> Any:
        if self.stub is None:
            raise VCenterUnreachable(f"the session with vCenter {self.settings.address} is closed")
        return self.stub

    def _connect(self) -> None:
        settings = self.settings
        self.stub = SoapStubAdapter(
            host=settings.host.strip("[]"),
            port=settings.port,
            version=OLDEST,
            sslContext=tls.make_context(settings),
            httpConnectionTimeout=settings.timeout_s,
            connectionPoolTimeout=POOL_IDLE_S,
        )
        self.stub.ComputeVersionInfo(_negotiate(self.stub))
        self.service = vim.ServiceInstance("ServiceInstance", self.stub)
        content = self.service.RetrieveContent()
        if content is None:
            raise HTTPException("an answer that is none of vCenter's")
        self.content = content

    def _login(self) -> None:
        failure = self._try_login()
        if failure is not None:
            raise failure  # here, where no frame below it holds the password any more
        self._logins += 1

    def _require_credentials(self) -> None:
        """Before anybody is asked for anything."""
        credentials = self._credentials()
        if isinstance(credentials, MissingSecret):
            raise credentials

    def _credentials(self) -> Credentials | MissingSecret:
        try:
            return read_credentials(self.settings, self._environ)
        except MissingSecret as missing:
            return missing.with_traceback(None)  # its frames hold the environment

    def _try_login(self) -> VCenterError | None:
        """Log in; return what went wrong instead of raising it.

        A raised error would carry the frames of this function and of pyVmomi with it, in which
        the password lies.
        """
        credentials = self._credentials()
        if isinstance(credentials, MissingSecret):
            return credentials
        digest = hash((credentials.user, credentials.password))
        if digest == self._refused_hash and self._backoff.left_s():
            return VCenterRefused(
                f"vCenter {self.settings.address} has refused these credentials; not tried again "
                f"within {REFUSED_S[1] / 60:.0f} minutes, so that the account is not locked"
            )
        failure = self._ask_login(credentials)
        if isinstance(failure, VCenterRefused):
            self._refused_hash = digest
            self._backoff.failed(*REFUSED_S)
        elif failure is not None:
            self._backoff.failed(*UNREACHABLE_S)
        else:
            self._refused_hash = None
            self._backoff.succeeded()
        return failure

    def _ask_login(self, credentials: Credentials) -> VCenterError | None:
        where, user = f"vCenter {self.settings.address}", credentials.user
        try:
            session = self.content.sessionManager.Login(user, credentials.password, LOCALE)
        except vim.fault.InvalidLogin:
            return VCenterRefused(f"{where} refuses {user}: wrong user or password, or locked")
        except vim.fault.NoPermission:
            return VCenterRefused(
                f"{where} refuses {user}: it knows the account, which has no permission anywhere; "
                "grant it a role (Read-only at least) on the vCenter or on the cluster"
            )
        except vmodl.MethodFault as fault:
            said = credentials.hide(sentence(fault))
            return VCenterRefused(f"{where} refuses the login of {user}: {said}")
        except TRANSPORT as error:
            failure = self._unreachable(error)
            return type(failure)(credentials.hide(str(failure)))
        except Exception as error:  # noqa: BLE001 - whatever it is, its frames hold the password
            said = credentials.hide(f"{type(error).__name__}: {sentence(error)}")
            return VCenterUnreachable(f"{where} answers a login with something unreadable: {said}")
        self.user = session.userName if session else user
        return None

    def _login_again(self, logins: int) -> None:
        """Renew the session, unless another thread has done so since ``logins`` was read."""
        with self._lock:
            if self._logins != logins:
                return
            stub = self._opened()
            if self._refused_hash is None and self._backoff.left_s():
                raise VCenterUnreachable(
                    f"the session with vCenter {self.settings.address} is gone and could not be "
                    f"renewed; it is tried again within {UNREACHABLE_S[1]:.0f} s"
                )
            with suppress(vmodl.MethodFault, *TRANSPORT):
                self.content.sessionManager.Logout()  # leaves none behind if it was not quite gone
            stub.SetSessionId(None)
            self._views = []  # they went with their session
            self._login()

    def _ask(self, ask: Callable[[], T], read_only: bool) -> T:
        self._opened()
        with self._transport():
            try:
                return ask()
            except VCenterError:
                raise
            except DROPPED:
                if not read_only:
                    raise
                return ask()

    @contextmanager
    def _transport(self) -> Any:
        try:
            yield
        except VCenterError:
            raise
        except TRANSPORT as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> VCenterError:
        return unreachable(self.settings, error)

    def _sweep(
        self, kind: type, properties: Sequence[str], container: Any
    ) -> list[tuple[Any, dict[str, Any]]]:
        with self._view(kind, container) as view:
            return collect(self.content, [everything_in(view)], [kind], properties)

    @contextmanager
    def _view(self, kind: type, container: Any) -> Any:
        """A container view that is destroyed afterwards, at the latest with the session."""
        where = container or self.content.rootFolder
        view = self.content.viewManager.CreateContainerView(where, [kind], True)
        self._views.append(view)
        try:
            yield view
        finally:
            with suppress(vmodl.MethodFault, *TRANSPORT):
                view.Destroy()
                self._views.remove(view)


def _negotiate(stub: Any) -> str:
    """The newest API version that both sides speak."""
    connection = stub.GetConnection()
    try:
        connection.request("GET", VERSIONS_PATH)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
    except BaseException:
        connection.close()
        raise
    stub.ReturnConnection(connection)
    offered = set(re.findall(r"<version>\s*([\w.]+)\s*</version>", text))
    spoken = (name for name in GetServiceVersions("vim25") if versionIdMap[name] in offered)
    return next(spoken, OLDEST)


def _farewell(stub: Any, content: Any, views: Sequence[Any], limit_s: float) -> None:
    """Leave nothing on the server; whatever fails here fails for good."""
    stub.schemeArgs["timeout"] = limit_s
    for connection, _ in list(stub.pool):
        if connection.sock is not None:
            connection.sock.settimeout(limit_s)
    if content is not None and stub.cookie:
        with suppress(Exception):
            for view in views:
                view.Destroy()
        with suppress(Exception):
            content.sessionManager.Logout()
    stub.DropConnections()

"""Somebody between us and the simulated vCenter: passes all on, and spoils what a test names."""

from __future__ import annotations

import http.client
import re
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from xml.sax.saxutils import escape

from tests.vcsim_server import Vcsim

Spoil = Callable[["Handler", bytes], bool]
"""Answers a request (or does not) and returns True; False: passed on after all."""
METHOD = re.compile(rb"<(?:\w+:)?Body>\s*<(?:\w+:)?(\w+)")
HEADERS = ("Content-Type", "SOAPAction", "Cookie", "Authorization", "vmware-api-session-id")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.between.connections += 1

    def do_GET(self) -> None:
        self._serve("GET", b"")

    def do_DELETE(self) -> None:
        self._serve("DELETE", b"")

    def do_POST(self) -> None:
        self._serve("POST", self.rfile.read(int(self.headers["Content-Length"])))

    def _serve(self, verb: str, body: bytes) -> None:
        between = self.server.between
        named = METHOD.search(body)
        method = named[1].decode() if named else self.path
        between.seen.append(method)
        spoil = between.spoil.get(method)
        if spoil is None or not spoil(self, body):
            self._pass_on(verb, body)

    def _pass_on(self, verb: str, body: bytes) -> None:
        vcsim = self.server.between.vcsim
        context = ssl.create_default_context(cafile=vcsim.ca_file)
        onward = http.client.HTTPSConnection(vcsim.address, vcsim.port, context=context)
        try:
            told = {name: self.headers[name] for name in HEADERS if name in self.headers}
            onward.request(verb, self.path, body, told)
            answer = onward.getresponse()
            self.answer(answer.status, answer.read(), answer.headers.get("Set-Cookie"))
        finally:
            onward.close()

    def answer(self, status: int, body: bytes, cookie: str | None = None, reason: str = "") -> None:
        self.send_response(status, reason or None)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/xml; charset=utf-8")
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is its own."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    between: Between

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that left is what these tests are about."""


class Between:
    """``with Between(vcsim) as between: between.spoil["Login"] = hang``."""

    def __init__(self, vcsim: Vcsim, address: str = "127.0.0.1") -> None:
        self.vcsim, self.address = vcsim, address
        self.spoil: dict[str, Spoil] = {}
        self.seen: list[str] = []
        self.connections = 0
        self.over = threading.Event()

    def __enter__(self) -> Between:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        key = Path(self.vcsim.ca_file).with_name("key.pem")
        context.load_cert_chain(self.vcsim.ca_file, key)
        self._server = _Server((self.address, 0), Handler)
        self._server.between = self
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def once(spoil: Spoil) -> Spoil:
    """Spoil the first request alone."""
    done: list[bool] = []

    def first(handler: Handler, body: bytes) -> bool:
        if done:
            return False
        done.append(True)
        return spoil(handler, body)

    return first


def hang(handler: Handler, body: bytes) -> bool:
    """Take the request and never answer."""
    handler.server.between.over.wait(30)
    handler.close_connection = True
    return True


def drop(handler: Handler, body: bytes) -> bool:
    """Close the connection without a word."""
    handler.close_connection = True
    return True


def html(handler: Handler, body: bytes) -> bool:
    handler.answer(200, b"<html><body>It works<br></body></html>")
    return True


def missing(handler: Handler, body: bytes) -> bool:
    handler.answer(404, b"not here")
    return True


def nonsense(handler: Handler, body: bytes) -> bool:
    """SOAP of a kind that pyVmomi stumbles over."""
    handler.answer(
        200, _envelope('<LoginResponse><returnval xsi:type="Nonsense"/></LoginResponse>')
    )
    return True


def echo_reason(handler: Handler, body: bytes) -> bool:
    """An HTTP error that quotes the request in its first line."""
    said = re.sub(rb"\s+", b" ", body).decode()
    handler.answer(503, b"", reason=f"cannot serve {said}")
    return True


def echo_fault(handler: Handler, body: bytes) -> bool:
    """A SOAP fault that quotes the request, as some servers do with what they cannot parse."""
    return fault("InvalidRequestFault", f"while parsing {body.decode()}")(handler, body)


def fault(name: str, said: str = "no") -> Spoil:
    def answer(handler: Handler, body: bytes) -> bool:
        handler.answer(
            500,
            _envelope(
                "<soapenv:Fault><faultcode>ServerFaultCode</faultcode>"
                f"<faultstring>{escape(said)}</faultstring>"
                f'<detail><{name} xmlns="urn:vim25" xsi:type="{name.removesuffix("Fault")}"/>'
                "</detail></soapenv:Fault>"
            ),
        )
        return True

    return answer


def _envelope(inner: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope '
        'xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" '
        'xmlns:xsd="http://www.w3.org/2001/XMLSchema" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>'
        f"{inner}</soapenv:Body></soapenv:Envelope>"
    ).encode()

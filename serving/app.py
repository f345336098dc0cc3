"""The ASGI application that speaks the Open Inference Protocol v2 over HTTP.

Every error is a reply with a status and a sentence; whatever is sent, the server goes on.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from features.event_table import StoreUnavailableError
from features.online import Labels, Payments
from serving.batcher import Batcher, OverloadedError
from serving.memory import ServingMemory
from serving.predictor import (
    PAYMENTS,
    Counting,
    Found,
    Predictor,
    Scores,
    label_spec,
    payment_spec,
    read_labels,
    read_payments,
)
from serving.protocol import (
    HEADER_LENGTH,
    ModelSpec,
    ProtocolError,
    Tensors,
    parse_infer,
    render_infer,
)
from serving.stats import ServerStats, Work

log = logging.getLogger(__name__)

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
OPEN_PATHS = ("/v2/health/live", "/v2/health/ready")
ALL_STATS = "/v2/models/stats"
CLOSE = [(b"connection", b"close")]
EXTENSIONS = ["binary_tensor_data", "statistics"]
MODEL_PATH = re.compile(
    r"/v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?(/(?P<verb>ready|infer|stats))?"
)


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How to serve. Loopback by default; ``token_env`` names the variable that holds the token."""

    host: str = "127.0.0.1"
    port: int = 0
    token_env: str | None = None
    max_body_bytes: int = 4 << 20
    max_rows: int = 4_096
    """Of one request, which is a batch by itself where it has more than ``max_batch_rows``."""
    max_batch_rows: int = 256
    """What several requests may have together to share a batch."""
    max_waiting_rows: int = 8_192
    max_ahead_s: float | None = 86_400.0
    """A payment from further in the future is refused: it would push a card's past out."""
    max_connections: int = 2_048

    @property
    def largest_batch_rows(self) -> int:
        """The most that a batch can have: of one request, or of several that share it."""
        return max(self.max_rows, self.max_batch_rows)

    def token(self) -> bytes | None:
        """The token to ask for; raises ValueError if the variable is named and not set."""
        if self.token_env is None:
            return None
        token = os.environ.get(self.token_env, "")
        if not token:
            raise ValueError(
                f"the token is to come from the environment variable {self.token_env}, which is "
                "not set: export it, or leave token_env out to serve without a token"
            )
        return token.encode()


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model as the server has it: its description, and how its tensors become a job."""

    spec: ModelSpec
    read: Callable[[Tensors, float | None], Payments | Labels]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A response before it is sent."""

    status: int
    body: bytes
    headers: Headers
    work: Work | None = None
    """What a scored request was, for the statistics."""


class App:
    """The ASGI application. Every error is a reply with a status and a sentence."""

    def __init__(
        self,
        predictor: Predictor,
        settings: ServerSettings,
        counting: Counting,
        memory: ServingMemory | None = None,
    ) -> None:
        self._predictor, self._settings = predictor, settings
        self._counting, self._memory = counting, memory
        self._token = settings.token()
        self._store_fails = False
        self._stats = ServerStats()
        version = predictor.model.version
        payments = Served(spec=payment_spec(version), read=read_payments)
        labels = Served(spec=label_spec(version), read=read_labels)
        self._models = {served.spec.name: served for served in (payments, labels)}
        self.batcher = Batcher[Payments | Labels, Scores | Found](
            predictor.answer,
            predictor.settle,
            waited=partial(self._counting.count, "queue_wait_seconds"),
            max_batch_rows=settings.max_batch_rows,
            max_waiting_rows=settings.max_waiting_rows,
        )

    def open(self) -> None:
        """Start to consume, on the running loop."""
        self.batcher.open()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"{scope['type']} is not served here")
        arrived_ns = time.monotonic_ns()
        try:
            reply = await self._reply(scope, receive)
        except ProtocolError as error:
            reply = _error(error.status, str(error))
        except OverloadedError as error:
            reply = _error(503, f"overloaded: {error}; send it again later")
        except StoreUnavailableError as error:
            self._store_fails = True
            reply = _error(503, f"{error}; send it again when it is back")
        except Exception:
            log.exception("a request could not be answered")
            reply = _error(503, "this request could not be answered; the server's log says why")
        self._counting.count(f"responses_{reply.status // 100}xx", 1)
        await send(
            {"type": "http.response.start", "status": reply.status, "headers": reply.headers}
        )
        await send({"type": "http.response.body", "body": reply.body})
        if reply.work is not None:
            self._stats.answered(arrived_ns, reply.work, time.monotonic_ns())
        elif reply.status >= 400 and self._is_scoring(_at_model(scope)):
            self._stats.failed(time.monotonic_ns() - arrived_ns)

    async def _reply(self, scope: Message, receive: Receive) -> Reply:
        path, at_model = scope["path"].rstrip("/"), _at_model(scope)
        if path not in OPEN_PATHS:
            self._check_token(scope)
        if at_model is None:
            _check_method(scope, "GET")
            return await self._about_server(path)
        if path == ALL_STATS:
            _check_method(scope, "GET")
            return self._statistics()
        served = self._find(at_model["model"], at_model["version"])
        if at_model["verb"] == "infer":
            _check_method(scope, "POST")
            return await self._infer(served, scope, receive)
        _check_method(scope, "GET")
        if at_model["verb"] == "stats":
            return self._statistics(served)
        return await self._ready() if at_model["verb"] else _json(200, served.spec.metadata())

    async def _about_server(self, path: str) -> Reply:
        match path:
            case "/v2":
                return _json(200, {"name": "stagescope", "version": "2", "extensions": EXTENSIONS})
            case "/v2/health/live":
                return _json(200, {"live": True})
            case "/v2/health/ready":
                return await self._ready()
        raise ProtocolError(
            404,
            f"there is nothing at {path[:80]!r}; the server is described at /v2, its models at "
            + ", ".join(f"/v2/models/{name}" for name in self._models),
        )

    def _find(self, name: str, version: str | None) -> Served:
        served = self._models.get(name)
        if served is None:
            raise ProtocolError(404, f"no model {name[:80]!r}; there are {', '.join(self._models)}")
        if version not in (None, served.spec.version):
            raise ProtocolError(
                404,
                f"{name} has no version {str(version)[:80]!r}; it is at {served.spec.version!r}",
            )
        return served

    def _is_scoring(self, at_model: re.Match[str] | None) -> bool:
        """Whether a path is one at which payments are scored: those that fail there are counted."""
        if at_model is None or (at_model["model"], at_model["verb"]) != (PAYMENTS, "infer"):
            return False
        return at_model["version"] in (None, self._models[PAYMENTS].spec.version)

    async def _infer(self, served: Served, scope: Message, receive: Receive) -> Reply:
        headers = dict(scope["headers"])
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise ProtocolError(415, "a compressed body is not served; send it as it is")
        length = headers.get(HEADER_LENGTH.encode())
        body = await _read_body(receive, headers, self._settings.max_body_bytes)
        request = parse_infer(
            body,
            None if length is None else length.decode("latin-1"),
            served.spec,
            max_rows=self._settings.max_rows,
        )
        job = served.read(request.tensors, self._settings.max_ahead_s)
        read_ns = time.monotonic_ns()
        answer = await self.batcher.submit(job)
        self._store_fails = False
        rendered, header_length = render_infer(served.spec, request, answer.tensors())
        work = Work(read_ns, len(job), answer.batch) if isinstance(answer, Scores) else None
        if header_length is None:
            headers_out = _headers(rendered, b"application/json")
        else:
            headers_out = _headers(rendered, b"application/octet-stream")
            headers_out.append((HEADER_LENGTH.encode(), str(header_length).encode()))
        return Reply(status=200, body=rendered, headers=headers_out, work=work)

    def _statistics(self, served: Served | None = None) -> Reply:
        """Triton's statistics extension. Only payments are counted."""
        if served is not None and served.spec.name != PAYMENTS:
            raise ProtocolError(404, f"{served.spec.name} has no statistics; {PAYMENTS} has")
        stats = self._stats.to_json(PAYMENTS, self._predictor.model.version)
        stats["payments_lost"] = self._predictor.payments_lost
        stats["labels_never_arrived"] = self._predictor.labels_never_arrived
        if self._predictor.model.copies:
            stats["copies"] = dict(self._predictor.model.copies)
        if self._memory is not None:
            stats["memory"] = self._memory.to_json()
        return _json(200, {"model_stats": [stats]})

    async def _ready(self) -> Reply:
        """Ready unless the store failed last; then it is asked again."""
        if self._store_fails:
            await self.batcher.call(self._predictor.check)
            self._store_fails = False
        return _json(200, {"ready": True})

    def _check_token(self, scope: Message) -> None:
        if self._token is None:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + self._token):
            raise ProtocolError(
                401,
                f'send the header "Authorization: Bearer TOKEN" with the token that the server '
                f"has in {self._settings.token_env}",
            )


def _at_model(scope: Message) -> re.Match[str] | None:
    """The model, version and verb in the path of a request; None where it names no model."""
    return MODEL_PATH.fullmatch(scope["path"].rstrip("/"))


async def _read_body(receive: Receive, headers: dict[bytes, bytes], limit: int) -> bytes:
    if int(headers.get(b"content-length", b"0")) > limit:
        raise _too_large(limit)
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ProtocolError(400, "the connection ended before the body did")
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
    return b"".join(parts)


def _too_large(limit: int) -> ProtocolError:
    return ProtocolError(
        413, f"the body is larger than {limit} bytes; send fewer rows in each request"
    )


def _check_method(scope: Message, method: str) -> None:
    if scope["method"] != method:
        raise ProtocolError(
            405, f"{scope['method']} is not served at {scope['path'][:80]!r}; use {method}"
        )


def _headers(body: bytes, content_type: bytes) -> Headers:
    return [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]


def _json(status: int, answer: Mapping[str, Any]) -> Reply:
    body = json.dumps(answer).encode()
    return Reply(status=status, body=body, headers=_headers(body, b"application/json"))


def _error(status: int, message: str) -> Reply:
    """An error as the protocol has it. The connection ends if a body may still be on its way."""
    reply = _json(status, {"error": message})
    extra = {
        401: [(b"www-authenticate", b"Bearer"), *CLOSE],
        413: CLOSE,
        503: [(b"retry-after", b"1")],
    }
    return Reply(status=status, body=reply.body, headers=reply.headers + extra.get(status, []))

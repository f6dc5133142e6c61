"""What every request passes: the key, the kind and size of its body, its count; and headers that every answer gets."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from machxc.server.failures import Failure, body_timeout, internal, too_large, unauthorized, wrong_media_type
from machxc.server.service import Service

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Answering = Callable[[bytes, float], Awaitable[bytes]]
"""The body of a request and when it began (time.perf_counter) to the body of its answer."""

log = logging.getLogger("machxc.server")

SEARCH = "/v1/search"
BODY_SECONDS = 10.0  # in which a body must arrive

OPEN_PATHS = frozenset(("/", "/docs", "/openapi.json", "/healthz", "/readyz"))
COUNTED_PATHS = frozenset((*OPEN_PATHS, SEARCH, "/v1/model", "/metrics"))
ASSETS = "/page/"

_POLICY = b"default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HEADERS = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Guard:
    """An ASGI application in front of another. Searches it answers itself, by ``search``."""

    def __init__(self, app: App, service: Service, search: Answering) -> None:
        self._app, self._service, self._search = app, service, search
        key = service.settings.api_key
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have it answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, path, status = time.perf_counter(), scope["path"], 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._headers()]
            await send(message)

        try:
            await self._answer(scope, receive, sending, started)
        finally:
            counted = path if path in COUNTED_PATHS else "other"
            self._service.telemetry.request(counted, status, time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, started: float) -> None:
        failure = self._refusal(scope)
        if failure is not None:
            await respond(failure, send)
        elif scope["path"] == SEARCH and scope["method"] == "POST":
            await self._answer_search(receive, send, started)
        else:
            await self._app(scope, _limited(receive, self._service.settings.max_body), send)

    async def _answer_search(self, receive: Receive, send: Send, started: float) -> None:
        try:
            body = await _body(receive, self._service.settings.max_body)
            content = await self._search(body, started)
        except Failure as failure:
            await respond(failure, send)
        except ClientDisconnected:
            return
        except Exception as error:
            log.exception("a defect")
            await respond(internal(error), send)
        else:
            await _send_json(200, content, {}, send)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        return [*_HEADERS, (b"connection", b"close")] if self._service.is_draining else _HEADERS

    def _refusal(self, scope: Scope) -> Failure | None:
        headers = dict(scope["headers"])
        path = scope["path"]
        is_open = self._key is None or path in OPEN_PATHS or path.startswith(ASSETS)
        if not is_open and not hmac.compare_digest(_key_of(headers), self._key or b""):
            return unauthorized()
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and (len(length) > 18 or int(length) > self._service.settings.max_body):
            return too_large(self._service.settings.max_body)
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and path in COUNTED_PATHS and kind != b"application/json":
            return wrong_media_type(headers.get(b"content-type", b"").decode("latin-1"))
        return None


def _key_of(headers: dict[bytes, bytes]) -> bytes:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")


def _limited(receive: Receive, limit: int) -> Receive:
    """``receive``, until the body is longer than ``limit``: then a Failure."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise too_large(limit)
        return message

    return limited


class ClientDisconnected(Exception):  # noqa: N818 (nothing went wrong here)
    """Nobody waits for an answer any more."""


async def _body(receive: Receive, limit: int) -> bytes:
    """The whole body of a request. Failure: it is too long, or does not come."""
    limited, parts, more = _limited(receive, limit), [], True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await limited()
                if message["type"] != "http.request":
                    raise ClientDisconnected
                parts.append(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        raise body_timeout(BODY_SECONDS) from None
    return b"".join(parts)


async def respond(failure: Failure, send: Send) -> None:
    """Send a failure."""
    await _send_json(failure.status, failure.body(), failure.headers, send)


async def _send_json(status: int, body: bytes, headers: dict[str, str], send: Send) -> None:
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    encoded += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})

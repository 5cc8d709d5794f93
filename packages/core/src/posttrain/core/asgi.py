"""One ASGI middleware that gives every service the same manners, on every route.

It demands the API key (without a key: peers and Host must be loopback), limits bodies also when their length is not
announced, and puts `X-Posttrain-Contract` on every response. `/livez`, `/readyz` and `/healthz` are open to all.
It knows nothing of BentoML; any ASGI server can carry it.
"""

import hmac
import ipaddress
import json
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from posttrain.core.wire import CONTRACT, CONTRACT_HEADER, error_body

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

OPEN_PATHS = {"/livez", "/readyz", "/healthz"}
MIB = 1 << 20


class ServiceMiddleware:
    """Key, loopback rule, body limits and contract header around an ASGI application.

    `api_key` None reads `POSTTRAIN_API_KEY`; empty means no key. `upload_limits` maps path prefixes to limits in
    bytes that hold there instead of `max_body_bytes`.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        api_key: str | None = None,
        max_body_bytes: int = 64 * MIB,
        upload_limits: Mapping[str, int] | None = None,
    ) -> None:
        self.app = app
        self.api_key = os.environ.get("POSTTRAIN_API_KEY", "") if api_key is None else api_key
        self.max_body_bytes = max_body_bytes
        self.upload_limits = dict(upload_limits or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = _with_contract(send)
        headers = {name.lower(): value for name, value in scope["headers"]}
        if scope["path"] not in OPEN_PATHS and (refusal := self._refusal(scope, headers)):
            await _respond(send, *refusal)
            return
        limit = next(
            (size for prefix, size in self.upload_limits.items() if scope["path"].startswith(prefix)),
            self.max_body_bytes,
        )
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > limit:
            await _respond(send, 413, f"the body is larger than {limit} bytes", "request_too_large")
            return
        limited = _LimitedBody(receive, send, limit)
        await self.app(scope, limited.receive, limited.send)

    def _refusal(self, scope: Scope, headers: Mapping[bytes, bytes]) -> tuple[int, str, str] | None:
        if self.api_key:
            given = headers.get(b"authorization", b"")
            if hmac.compare_digest(given, b"Bearer " + self.api_key.encode()):
                return None
            return 401, "a bearer token is needed; send the service's POSTTRAIN_API_KEY", "invalid_api_key"
        peer = scope.get("client")
        host = headers.get(b"host", b"").decode("latin-1")
        # The Host is checked as well, or a web page could reach the service through DNS rebinding.
        if peer and _is_loopback(peer[0]) and _is_loopback(_without_port(host)):
            return None
        return 403, "without POSTTRAIN_API_KEY this service answers only on loopback; set a key", "loopback_only"


class _LimitedBody:
    """Counts a body that may not announce its length, and answers 413 itself when it grows too large."""

    def __init__(self, receive: Receive, send: Send, limit: int) -> None:
        self._receive, self._send, self._left, self._limit = receive, send, limit, limit
        self._refused = self._started = False

    async def receive(self) -> Event:
        if self._refused:
            return {"type": "http.disconnect"}
        event = await self._receive()
        if event["type"] == "http.request":
            self._left -= len(event.get("body", b""))
            if self._left < 0:
                self._refused = True
                if not self._started:
                    message = f"the body is larger than {self._limit} bytes"
                    await _respond(self._send, 413, message, "request_too_large")
                return {"type": "http.disconnect"}
        return event

    async def send(self, event: Event) -> None:
        if not self._refused:  # after a 413 whatever the application still says has no reader
            self._started = True
            await self._send(event)


def _with_contract(send: Send) -> Send:
    async def sending(event: Event) -> None:
        if event["type"] == "http.response.start":
            header = (CONTRACT_HEADER.lower().encode(), str(CONTRACT).encode())
            event = {**event, "headers": [*event.get("headers", []), header]}
        await send(event)

    return sending


async def _respond(send: Send, status: int, message: str, code: str) -> None:
    kind = {401: "authentication_error", 403: "permission_error"}.get(status, "invalid_request_error")
    body = json.dumps(error_body(message, kind, code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False

"""One ASGI middleware that gives every service the same manners, on every route.

It demands the API key (without a key: peers and Host must be loopback), refuses requests of another contract, limits
bodies also when their length is not announced, ends those that hardly come, has what is in flight answered before the
server ends where that is wanted (`draining.py`), and puts `X-Posttrain-Contract` on every response. `/livez`, `/readyz`
and `/healthz` are open to all. It knows nothing of BentoML; any ASGI server can carry it.
"""

import asyncio
import hmac
import ipaddress
import re
import time
from collections.abc import Collection, Mapping
from typing import Any

from posttrain.core.asgi_answers import App, Event, Receive, Scope, Send, respond
from posttrain.core.draining import Draining
from posttrain.core.keys import SERVICE_KEY, read_key
from posttrain.core.wire import CONTRACT, CONTRACT_HEADER, DEADLINE_EXCEEDED

CONTRACT_NAME, CONTRACT_NUMBER = CONTRACT_HEADER.lower().encode(), str(CONTRACT).encode()
OPEN_PATHS = {"/livez", "/readyz", "/healthz"}
MIB = 1 << 20

BODY_GRACE_SECONDS = 30.0
SLOWEST_BODY = 64 << 10
"""A body has `BODY_GRACE_SECONDS` and a second more for each so many bytes that have come; then 408 ends it."""
BODIES_AT_ONCE = 8
"""Bodies of the largest size that may lie in memory at a time, over all requests; beyond them 503."""


class ServiceMiddleware:
    """Key, loopback rule, body limits and contract header around an ASGI application.

    `api_key` None reads `POSTTRAIN_API_KEY` or its file (`keys.py`); empty means no key. `upload_limits` maps path
    prefixes to limits in bytes that hold there instead of `max_body_bytes`. `pages` are paths that are read without
    the key where there is one: a browser that opens a page has none to send, and the page asks for it.
    `drains`: its server ends as `Draining` has it, and the process with it. Without it the server's own ways hold.
    """

    def __init__(
        self,
        app: App,
        *,
        api_key: str | None = None,
        max_body_bytes: int = 64 * MIB,
        upload_limits: Mapping[str, int] | None = None,
        pages: Collection[str] = (),
        drains: bool = False,
    ) -> None:
        self.app = Draining(app) if drains else app
        self.pages = frozenset(pages)
        self.api_key = (read_key(SERVICE_KEY) or "") if api_key is None else api_key
        self.max_body_bytes = max_body_bytes
        self.upload_limits = dict(upload_limits or {})
        self._in_memory = _Budget(BODIES_AT_ONCE * max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = _with_contract(send)
        headers = {name.lower(): value for name, value in scope["headers"]}
        if scope["path"] not in OPEN_PATHS and (refusal := self._refusal(scope, headers)):
            await respond(send, *refusal)
            return
        upload = next((size for prefix, size in self.upload_limits.items() if scope["path"].startswith(prefix)), None)
        limit = self.max_body_bytes if upload is None else upload
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or len(announced) > 18 or int(announced) > limit:
            await respond(send, *_too_large(limit))
            return
        # Uploads go to disk as they come, so they do not count as memory.
        limited = _LimitedBody(receive, send, limit, self._in_memory if upload is None else _Budget(limit))
        try:
            await self.app(scope, limited.receive, limited.send)
        finally:
            limited.release()

    def _refusal(self, scope: Scope, headers: Mapping[bytes, bytes]) -> tuple[int, str, str] | None:
        if self.api_key:
            if scope["path"] in self.pages and scope["method"] in ("GET", "HEAD"):
                return None
            given = headers.get(b"authorization", b"")
            if hmac.compare_digest(given, b"Bearer " + self.api_key.encode()):
                return _other_contract(headers)
            return 401, "a bearer token is needed; send the service's POSTTRAIN_API_KEY", "invalid_api_key"
        peer = scope.get("client")
        host = headers.get(b"host", b"").decode("latin-1")
        # The Host is checked as well, or a web page could reach the service through DNS rebinding.
        if peer and _is_loopback(peer[0]) and _is_loopback(_without_port(host)):
            return _other_contract(headers)
        return 403, "without POSTTRAIN_API_KEY this service answers only on loopback; set a key", "loopback_only"


class ResponseTimeout:
    """504 in OpenAI's form where no response has begun after `timeout` seconds; the application is cancelled then.

    Takes the place of BentoML's TimeoutMiddleware, whose timer outlives its request and holds what that held. Uploads
    (PUT) take as long as their bodies keep coming.
    """

    def __init__(self, app: App, timeout: float) -> None:
        self.app, self.timeout = app, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "PUT":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.timeout) as timer:

                async def sending(event: Event) -> None:
                    timer.reschedule(None)
                    await send(event)

                await self.app(scope, receive, sending)
        except TimeoutError:
            if not timer.expired():
                raise
            await respond(_with_contract(send), 504, f"no answer within {self.timeout:.0f} seconds", DEADLINE_EXCEEDED)


def seeing_only(middleware: type, names: Collection[str]) -> type:
    """A class like `middleware` that sees of a request's path which of `names` it is, or "other".

    A name that ends in "/" stands for all that it begins. For BentoML's metrics, whose labels hold the path itself:
    every version pushed and every path that somebody makes up would stay in memory for good.
    """

    class Seeing(middleware):
        def __init__(self, app: App, **options: Any) -> None:
            async def restored(scope: Scope, receive: Receive, send: Send) -> None:
                await app({**scope, "path": scope.get("posttrain.path", scope.get("path"))}, receive, send)

            super().__init__(restored, **options)

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                path = scope["path"]
                known = [name for name in names if path == name or (name.endswith("/") and path.startswith(name))]
                scope = {**scope, "path": max(known, key=len, default="other"), "posttrain.path": path}
            await super().__call__(scope, receive, send)

    return Seeing


class _Budget:
    """Bytes that may be held at once."""

    def __init__(self, size: int) -> None:
        self.left = size


class _LimitedBody:
    """Counts a body that may not announce its length; answers 413, 408 or 503 itself when there is too much of it,
    too little, or too many others."""

    def __init__(self, receive: Receive, send: Send, limit: int, budget: _Budget) -> None:
        self._receive, self._send, self._limit, self._budget = receive, send, limit, budget
        self._size = 0
        self._began = time.monotonic()
        self._refused = self._started = self._complete = False

    async def receive(self) -> Event:
        if self._refused:
            return {"type": "http.disconnect"}
        if self._complete:
            return await self._receive()
        due = self._began + BODY_GRACE_SECONDS + self._size / SLOWEST_BODY
        try:
            async with asyncio.timeout(due - time.monotonic()):
                event = await self._receive()
        except TimeoutError:
            return await self._refuse(408, "the body comes too slowly; send it again", "request_timeout")
        if event["type"] == "http.request":
            size = len(event.get("body", b""))
            self._size += size
            self._budget.left -= size
            self._complete = not event.get("more_body", False)
            if self._size > self._limit:
                return await self._refuse(*_too_large(self._limit))
            if self._budget.left < 0:
                return await self._refuse(503, "too many large requests at once; come again in a while", "overloaded")
        return event

    async def _refuse(self, status: int, message: str, code: str) -> Event:
        self._refused = True
        if not self._started:
            await respond(self._send, status, message, code)
        return {"type": "http.disconnect"}

    async def send(self, event: Event) -> None:
        if not self._refused:  # after a refusal whatever the application still says has no reader
            self._started = True
            await self._send(event)

    def release(self) -> None:
        """Gives back what the body took of the budget."""
        self._budget.left += self._size


def _too_large(limit: int) -> tuple[int, str, str]:
    return 413, f"the body is larger than {limit} bytes", "request_too_large"


def _other_contract(headers: Mapping[bytes, bytes]) -> tuple[int, str, str] | None:
    """The refusal of a request that says a contract which this service does not speak. Who says none, as openai's
    client and curl, means the routes that the contract shares with others."""
    spoken = headers.get(CONTRACT_NAME)
    if spoken is None or spoken == CONTRACT_NUMBER:
        return None
    number = spoken.decode() if re.fullmatch(rb"[0-9]{1,9}", spoken) else "that is no number"
    message = f"the client speaks contract {number}, this service {CONTRACT}; install matching versions of both"
    return 400, message, "contract_mismatch"


def _with_contract(send: Send) -> Send:
    async def sending(event: Event) -> None:
        if event["type"] == "http.response.start":
            event = {**event, "headers": [*event.get("headers", []), (CONTRACT_NAME, CONTRACT_NUMBER)]}
        await send(event)

    return sending


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

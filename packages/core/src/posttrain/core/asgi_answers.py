"""What a middleware answers by itself, in the form of error that every route has."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from posttrain.core.wire import error_body

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def respond(send: Send, status: int, message: str, code: str, *, close: bool = False) -> None:
    """A refusal; `close`: the connection is not to be used again."""
    kind = {401: "authentication_error", 403: "permission_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    body = json.dumps(error_body(message, kind, code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if close or status == 408:  # who sends a byte now and then may hold no connection; after a 413 the rest is dropped
        headers.append((b"connection", b"close"))
    if status == 503:
        headers.append((b"retry-after", b"1"))
    if status == 504:  # OpenAI's clients would repeat it otherwise
        headers.append((b"x-should-retry", b"false"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

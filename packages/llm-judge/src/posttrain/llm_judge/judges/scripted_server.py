"""The scripted judge as an OpenAI-compatible server: an ASGI application that answers `POST /v1/chat/completions`.

It reads the two answers back out of the prompt that a protocol made, which works because quotations cannot be closed
from within. Errors of every kind that real servers have are injected at given rates: 429 with Retry-After, 500, and
requests that hang. Every request leaves a line in the log, written before its response is sent.
"""

import asyncio
import hashlib
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from pydantic import BaseModel, Field, ValidationError, model_validator

from posttrain.core.asgi import Receive, Scope, Send
from posttrain.core.config import Settings
from posttrain.core.errors import RequestError
from posttrain.core.files import disk_errors
from posttrain.core.hashing import digest_json
from posttrain.core.wire import Message, error_body
from posttrain.llm_judge.judges.qualities import Quality
from posttrain.llm_judge.judges.script import Script
from posttrain.llm_judge.judges.scripted_reply import Reply, reply, tokens_in
from posttrain.llm_judge.protocols import Protocol

MODEL = "scripted"


class Faults(Settings):
    """What goes wrong, as shares of requests, and how long things take."""

    latency: float = Field(default=0.0, ge=0)
    """Seconds from a request to its response."""
    rate_limited: float = Field(default=0.0, ge=0, le=1)
    """429 with Retry-After."""
    retry_after: float = Field(default=1.0, ge=0)
    """Seconds."""
    errors: float = Field(default=0.0, ge=0, le=1)
    """500."""
    hangs: float = Field(default=0.0, ge=0, le=1)
    """No response for `hang_seconds`, then 504."""
    hang_seconds: float = Field(default=60.0, gt=0)
    random: bool = False
    """Other faults in every run of the server; else they belong to the game and how often it was asked."""

    @model_validator(mode="after")
    def _rates_leave_answers(self) -> "Faults":
        if self.rate_limited + self.errors + self.hangs > 1:
            raise ValueError("the rates of faults add up to more than 1")
        return self


class ChatRequest(BaseModel):
    """What of a request is read; the rest is for models that sample."""

    messages: list[Message] = Field(min_length=2)
    model: str = MODEL
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    n: int | None = Field(default=1, ge=1, le=1)
    stream: bool | None = False


class Refused(Exception):
    """A response that is no answer."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class ScriptedServer:
    """The application. `log`: a file that lines are added to: `time`, `game` as `logged_game` has it, `status`,
    `reminded`, and for answers `garbled`."""

    def __init__(
        self, protocols: Sequence[Protocol], script: Script, quality: Quality, faults: Faults, log: Path | None = None
    ) -> None:
        self.by_system = {protocol.template.system: protocol for protocol in protocols}
        self.script, self.quality, self.faults = script, quality, faults
        self._asked: Counter[str] = Counter()
        self._random = random.Random(os.urandom(16))
        self._log: BinaryIO | None = None
        if log:
            with disk_errors(log):
                log.parent.mkdir(parents=True, exist_ok=True)
                self._log = log.open("ab", buffering=0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = time.monotonic()
        try:
            answer = await self._route(scope, receive, began)
        except Refused as refused:
            kind = "server_error" if refused.status >= 500 else "invalid_request_error"
            await _respond(send, refused.status, error_body(str(refused), kind), refused.headers)
        else:
            await _respond(send, 200, answer, {})

    async def _route(self, scope: Scope, receive: Receive, began: float) -> Any:
        match scope["method"], scope["path"]:
            case "POST", "/v1/chat/completions":
                return await self._complete(await _body(receive), began)
            case "GET", "/v1/models":
                # What decides its verdicts, as weights do: at another port it is the same judge.
                sha256 = digest_json([self.script.definition(), self.quality.name])
                model = {"id": MODEL, "object": "model", "owned_by": "posttrain", "sha256": sha256}
                return {"object": "list", "data": [model]}
            case "GET", "/livez" | "/readyz":
                return {"status": "ok"}
        raise Refused(404, f"there is no {scope['method']} {scope['path']}")

    async def _complete(self, body: bytes, began: float) -> dict[str, Any]:
        try:
            request = ChatRequest.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise Refused(400, f"the request's {where or 'body'} is wrong: {first['msg']}") from None
        if request.stream:
            raise Refused(400, "the scripted judge does not stream; leave 'stream' out")
        protocol = self.by_system.get(request.messages[0].content)
        if protocol is None:
            raise Refused(400, "the system message is none of a known protocol's; name its template with --protocol")
        reminded = len(request.messages) > 2
        line: dict[str, Any] = {"game": logged_game(request.model, request.messages), "reminded": reminded}
        try:
            game, nonce = protocol.parse(request.messages)
            said = reply(self.script, self.quality, protocol, game, nonce, reminded=reminded)
        except (ValueError, RequestError) as error:
            raise Refused(400, f"the prompt cannot be judged: {error}") from None
        try:
            await self._fault(line["game"], nonce)
            await asyncio.sleep(began + self.faults.latency - time.monotonic())
        except Refused as refused:
            self._note(line | {"status": refused.status})
            raise
        self._note(line | {"status": 200, "garbled": said.garbled})
        return _completion(request, said, line["game"])

    async def _fault(self, game: str, nonce: str) -> None:
        self._asked[game] += 1
        faults, attempt = self.faults, self._asked[game]
        u = self._random.random() if faults.random else self.script.uniform("fault", nonce, attempt)
        if u < faults.rate_limited:
            raise Refused(429, "too many requests", **{"retry-after": f"{faults.retry_after:g}"})
        if u < faults.rate_limited + faults.errors:
            raise Refused(500, "an injected error")
        if u < faults.rate_limited + faults.errors + faults.hangs:
            await asyncio.sleep(faults.hang_seconds)
            raise Refused(504, "an injected timeout")
        if self.script.fails(nonce, attempt):
            raise Refused(503, "the scripted judge fails, as its failure rate says")

    def _note(self, line: dict[str, Any]) -> None:
        if self._log:
            self._log.write(orjson.dumps({"time": time.time()} | line) + b"\n")


def logged_game(model: str, messages: Sequence[Message]) -> str:
    """How the log calls the game that a prompt asks about, reminded or not."""
    asked = "\0".join((model, *(message.content for message in messages[:2])))
    return hashlib.sha256(asked.encode()).hexdigest()[:32]


def _completion(request: ChatRequest, said: Reply, game: str) -> dict[str, Any]:
    asked, written = tokens_in(request.messages), len(said.tokens)
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": said.text},
        "finish_reason": "stop",
        "logprobs": None,
    }
    if request.logprobs:
        choice["logprobs"] = {
            "content": [
                {
                    **_logprob(token.text, dict(token.top)[token.text]),
                    "top_logprobs": [_logprob(text, value) for text, value in token.top[: request.top_logprobs or 0]],
                }
                for token in said.tokens
            ]
        }
    return {
        "id": f"chatcmpl-{game}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "choices": [choice],
        "usage": {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written},
    }


def _logprob(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": value, "bytes": list(text.encode())}


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise Refused(400, "the body is not whole")
        parts.append(event.get("body", b""))
        if not event.get("more_body"):
            return b"".join(parts)


async def _respond(send: Send, status: int, value: Any, headers: dict[str, str]) -> None:
    body = orjson.dumps(value)
    lines = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    lines += [(name.encode(), text.encode()) for name, text in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})

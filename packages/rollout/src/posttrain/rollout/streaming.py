"""An answer as server-sent events: each step's tokens go out when the step ends.

The worker thread only notes what has come; events are written in the event loop. Whoever stops reading, or whose time
is over, ends the samples.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from posttrain.core.wire import DEADLINE_EXCEEDED, error_body
from posttrain.rollout import telemetry
from posttrain.rollout.policy import Policy
from posttrain.rollout.requests import ChatRequest, CompletionRequest
from posttrain.rollout.responses import chat_logprobs, completion_logprobs, usage
from posttrain.rollout.sample import Sample, TopLogprobs
from posttrain.rollout.scheduler import Job
from posttrain.rollout.text import TextWatcher

STALLED_SECONDS = 60.0
"""So long after a stream's time is over its client may take to read the end of it."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A token of one choice, or, with a `finish_reason`, its end."""

    index: int
    text: str
    token_id: int = -1
    logprob: float = 0.0
    top: TopLogprobs | None = None
    finish_reason: str | None = None


class _Events(StreamingResponse):
    """Ends with the connection, too, when the client does not read."""

    def __init__(self, content: AsyncIterator[bytes], due: float, cancel: Callable[[], None]) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._due, self._cancel = due, cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(max(0.0, self._due - time.monotonic()) + STALLED_SECONDS):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            telemetry.REQUESTS.labels("disconnected").inc()
        finally:
            self._cancel()  # also where nobody has begun to read


def stream(
    policy: Policy,
    request: CompletionRequest | ChatRequest,
    samples: list[Sample],
    version: int | None,
    head: dict[str, Any],
    due: float,
) -> Response:
    """Submits the samples and streams them until `due` (seconds of the monotonic clock)."""
    answer = _Stream(policy, request, samples)
    head["model"] = policy.model_id(policy.scheduler.submit(answer.job, version))
    if isinstance(request, ChatRequest):
        head["object"] = "chat.completion.chunk"
    return _Events(answer.events(head, due), due, partial(policy.scheduler.cancel, answer.job))


class _Stream:
    """One request on its way: the worker's pieces in, events out."""

    def __init__(self, policy: Policy, request: CompletionRequest | ChatRequest, samples: list[Sample]) -> None:
        self.policy, self.request, self.samples = policy, request, samples
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[_Piece] = deque()
        self._ready = asyncio.Event()
        self._offsets = [0] * len(samples)
        self._index = {sample: index for index, sample in enumerate(samples)}
        for index, sample in enumerate(samples):
            on_token = partial(self._on_token, index, sample)
            sample.watcher = TextWatcher(policy.tokenizer, sample.sampling.stop, on_token)
        self.job = Job(samples, on_sample=self._on_sample, after_step=self._wake)
        self.job.finished.add_done_callback(lambda _: self._wake())

    def _on_token(self, index: int, sample: Sample, token_id: int, text: str) -> None:
        top = sample.top_logprobs[-1] if sample.top_logprobs else None
        self._pieces.append(_Piece(index, text, token_id, sample.logprobs[-1], top))

    def _on_sample(self, sample: Sample) -> None:
        assert isinstance(sample.watcher, TextWatcher)
        self._pieces.append(_Piece(self._index[sample], sample.watcher.finish(), finish_reason=sample.finish_reason))

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ready.set)

    def _choice(self, piece: _Piece) -> dict[str, Any]:
        ended = piece.finish_reason is not None
        choice: dict[str, Any] = {"index": piece.index, "logprobs": None, "finish_reason": piece.finish_reason}
        ids, values, tops = [piece.token_id], [piece.logprob], [piece.top] if piece.top is not None else []
        token_text = self.policy.token_texts.__getitem__
        if isinstance(self.request, ChatRequest):
            choice["delta"] = {} if ended and not piece.text else {"content": piece.text}
            if self.request.wants_logprobs and not ended:
                choice["logprobs"] = chat_logprobs(token_text, ids, values, tops)
        else:
            choice["text"] = piece.text
            if self.request.wants_logprobs and not ended:
                offset = self._offsets[piece.index]
                self._offsets[piece.index] += len(token_text(piece.token_id))
                tokens = self.request.return_tokens
                choice["logprobs"] = completion_logprobs(token_text, ids, values, tops, offset, tokens=tokens)
        if self.request.return_token_ids and not ended:
            choice["token_ids"] = ids
        return choice

    async def events(self, head: dict[str, Any], due: float) -> AsyncIterator[bytes]:
        """The events of the stream; whoever stops iterating cancels the samples."""
        usages = bool(self.request.stream_options and self.request.stream_options.include_usage)
        empty = {"usage": None} if usages else {}
        outcome = "disconnected"
        try:
            if isinstance(self.request, ChatRequest):
                for index in range(len(self.samples)):
                    delta = {"role": "assistant", "content": ""}
                    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
                    yield _event({**head, "choices": [choice], **empty})
            while True:
                ended = self.job.finished.done()
                # Taken out one by one: the worker may be adding to this very deque.
                pieces = [self._pieces.popleft() for _ in range(len(self._pieces))]
                if pieces:
                    yield b"".join(_event({**head, "choices": [self._choice(piece)], **empty}) for piece in pieces)
                elif ended:
                    break
                else:
                    try:
                        async with asyncio.timeout(max(0.0, due - time.monotonic())):
                            await self._ready.wait()
                    except TimeoutError:
                        outcome = "deadline"
                        # The status line is gone; an error event is what OpenAI's clients understand.
                        yield _event(error_body("the stream's time is over", "server_error", DEADLINE_EXCEEDED))
                        return
                    self._ready.clear()
            if (error := self.job.finished.exception()) is not None:
                outcome = "failed"
                yield _event(error_body(str(error), "server_error", "generation_failed"))
                return
            if usages:
                yield _event({**head, "choices": [], "usage": usage(self.samples, self.request.n or 1)})
            outcome = "completed"
            yield b"data: [DONE]\n\n"
        finally:
            self.policy.scheduler.cancel(self.job)
            telemetry.REQUESTS.labels(outcome).inc()


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"

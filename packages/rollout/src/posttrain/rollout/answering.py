"""From an accepted request to its HTTP answer: waits for the samples, or streams them as they come.

A client that goes away ends its samples at the next step. The event loop is never held: decoding of large answers
and everything of the model happen in threads.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from posttrain.core.wire import error_body
from posttrain.rollout import telemetry
from posttrain.rollout.policy import Policy
from posttrain.rollout.requests import ChatRequest, CompletionRequest
from posttrain.rollout.responses import (
    chat_choice,
    chat_logprobs,
    completion_choice,
    completion_logprobs,
    usage,
)
from posttrain.rollout.sample import Sample
from posttrain.rollout.scheduler import Job
from posttrain.rollout.text import TextWatcher

AnyRequest = CompletionRequest | ChatRequest


async def answer(policy: Policy, request: AnyRequest, http: Request) -> Response:
    """The response to a parsed request; RequestError, VersionNotHeld or Overloaded when it cannot be taken."""
    wanted = policy.version(request.model)
    prepare: Callable[[], list[Sample]]
    if isinstance(request, ChatRequest):
        prepare = partial(policy.chat_samples, request)
    else:
        prepare = partial(policy.completion_samples, request)
    samples = await asyncio.to_thread(prepare)
    chat = isinstance(request, ChatRequest)
    head = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
    }
    if request.stream:
        stream = _Stream(policy, request, samples)
        version = policy.scheduler.submit(stream.job, wanted)
        if chat:
            head["object"] = "chat.completion.chunk"
        head["model"] = policy.model_id(version)
        return StreamingResponse(stream.events(head), media_type="text/event-stream")
    for sample in samples:
        if sample.sampling.stop:
            sample.watcher = TextWatcher(policy.tokenizer, sample.sampling.stop)
    job = Job(samples)
    version = policy.scheduler.submit(job, wanted)
    head["model"] = policy.model_id(version)
    if not await _finished_before_disconnect(job, http):
        telemetry.REQUESTS.labels("disconnected").inc()
        return Response(status_code=499)
    body = await asyncio.to_thread(_body, policy, request, samples, head)
    telemetry.REQUESTS.labels("completed").inc()
    return Response(body, media_type="application/json")


def _body(policy: Policy, request: AnyRequest, samples: list[Sample], head: dict[str, Any]) -> bytes:
    make = chat_choice if isinstance(request, ChatRequest) else completion_choice
    token_text = policy.token_text if wants_logprobs(request) else None
    token_ids = bool(request.return_token_ids)
    choices = [
        make(policy.tokenizer, sample, index, token_text=token_text, token_ids=token_ids)
        for index, sample in enumerate(samples)
    ]
    answer: dict[str, Any] = {**head, "choices": choices, "usage": usage(samples, request.n or 1)}
    if isinstance(request, ChatRequest) and token_ids:
        answer["prompt_token_ids"] = list(samples[0].prompt)
    return json.dumps(answer, separators=(",", ":")).encode()


def wants_logprobs(request: AnyRequest) -> bool:
    """Completions give a number (0 is a wish too), chat a truth value."""
    return bool(request.logprobs) if isinstance(request, ChatRequest) else request.logprobs is not None


async def _finished_before_disconnect(job: Job, http: Request) -> bool:
    finished = asyncio.wrap_future(job.finished)
    gone = asyncio.create_task(_disconnected(http))
    try:
        await asyncio.wait({finished, gone}, return_when=asyncio.FIRST_COMPLETED)
        if finished.done():
            finished.result()  # raises what the worker met
            return True
        return False
    finally:
        gone.cancel()
        if not job.finished.done():
            job.cancel()


async def _disconnected(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


class _Stream:
    """Server-sent events of one request; the worker thread hands them over to the event loop."""

    def __init__(self, policy: Policy, request: AnyRequest, samples: list[Sample]) -> None:
        self.policy, self.request, self.samples = policy, request, samples
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._logprobs = wants_logprobs(request)
        self._index = {id(sample): index for index, sample in enumerate(samples)}
        self._offsets = [0] * len(samples)
        for sample in samples:
            watcher = TextWatcher(policy.tokenizer, sample.sampling.stop, partial(self._on_token, sample))
            sample.watcher = watcher
        self.job = Job(samples, on_sample=self._on_sample)
        self.job.finished.add_done_callback(lambda _: self._put(None))

    def _put(self, event: dict[str, Any] | None) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _on_token(self, sample: Sample, token_id: int, text: str) -> None:
        index = self._index[id(sample)]
        tops = sample.top_logprobs[-1:]
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": None}
        if isinstance(self.request, ChatRequest):
            choice["delta"] = {"content": text}
            if self._logprobs:
                choice["logprobs"] = chat_logprobs(self.policy.token_text, [token_id], sample.logprobs[-1:], tops)
        else:
            choice["text"] = text
            if self._logprobs:
                offset = self._offsets[index]
                self._offsets[index] += len(self.policy.token_text(token_id))
                choice["logprobs"] = completion_logprobs(
                    self.policy.token_text, [token_id], sample.logprobs[-1:], tops, offset
                )
        if self.request.return_token_ids:
            choice["token_ids"] = [token_id]
        self._put(choice)

    def _on_sample(self, sample: Sample) -> None:
        assert isinstance(sample.watcher, TextWatcher)
        rest = sample.watcher.finish()
        choice: dict[str, Any] = {"index": self._index[id(sample)], "logprobs": None}
        if isinstance(self.request, ChatRequest):
            choice["delta"] = {"content": rest} if rest else {}
        else:
            choice["text"] = rest
        self._put({**choice, "finish_reason": sample.finish_reason})

    async def events(self, head: dict[str, Any]) -> AsyncIterator[bytes]:
        """The events of the stream; whoever stops iterating cancels the samples."""
        usages = bool(self.request.stream_options and self.request.stream_options.include_usage)
        empty = {"usage": None} if usages else {}
        try:
            if isinstance(self.request, ChatRequest):
                for index in range(len(self.samples)):
                    delta = {"role": "assistant", "content": ""}
                    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
                    yield _event({**head, "choices": [choice], **empty})
            while (choice_or_end := await self._events.get()) is not None:
                yield _event({**head, "choices": [choice_or_end], **empty})
            if (error := self.job.finished.exception()) is not None:
                # The status line is gone; an error event is what OpenAI's clients understand.
                yield _event(error_body(str(error), "server_error", "generation_failed"))
                return
            if usages:
                yield _event({**head, "choices": [], "usage": usage(self.samples, self.request.n or 1)})
            yield b"data: [DONE]\n\n"
        finally:
            self.job.cancel()
            telemetry.REQUESTS.labels("completed" if self.job.finished.done() else "disconnected").inc()


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def refusal(status: int, message: str, code: str | None = None, kind: str | None = None) -> JSONResponse:
    """An error in OpenAI's form."""
    kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
    telemetry.REQUESTS.labels("refused" if status < 500 else "failed").inc()
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse(error_body(message, kind, code), status, headers)

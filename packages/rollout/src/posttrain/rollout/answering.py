"""From an accepted request to its HTTP answer: waits for the samples and writes them down.

A client that goes away, or whose time is over, leaves the queue at once and its slots at the next step. The event
loop is never held for long: what is large is prepared and written in threads, and so is everything of the model.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
from fastapi import Request
from fastapi.responses import JSONResponse, Response

from posttrain.core.errors import WorkError
from posttrain.core.wire import DEADLINE_EXCEEDED, error_body
from posttrain.rollout import telemetry
from posttrain.rollout.policy import Policy
from posttrain.rollout.requests import ChatRequest, CompletionRequest, timeout_seconds
from posttrain.rollout.responses import chat_choice, completion_choice, sample_texts, usage
from posttrain.rollout.sample import Sample
from posttrain.rollout.scheduler import Job
from posttrain.rollout.streaming import stream
from posttrain.rollout.text import TextWatcher

AnyRequest = CompletionRequest | ChatRequest
ResultT = TypeVar("ResultT")

INLINE_TOKENS = 16384
"""Up to so many are prepared and written in the event loop, a few milliseconds: a thread that wants the interpreter may
wait longer than that for it."""


class DeadlineExceeded(WorkError):
    """The request took longer than it was allowed to; its samples are ended."""


async def answer(policy: Policy, request: AnyRequest, http: Request) -> Response:
    """The response to a parsed request; RequestError, VersionNotHeld, Overloaded or DeadlineExceeded."""
    due = time.monotonic() + timeout_seconds(http.headers, policy.settings.max_seconds)
    wanted = policy.version(request.model)
    samples = await _off_loop(policy.prompt_tokens(request), policy.samples, request)
    chat = isinstance(request, ChatRequest)
    head = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
    }
    if request.stream:
        return stream(policy, request, samples, wanted, head, due)
    job = Job(_watched(policy, samples))
    if wanted is None:
        job.again = lambda: _watched(policy, [Sample(s.prompt, s.sampling, s.seed) for s in samples])
    policy.scheduler.submit(job, wanted)
    if not await _finished(policy, job, http, due):
        telemetry.REQUESTS.labels("disconnected").inc()
        return Response(status_code=499)
    tokens = sum(len(sample.prompt) + len(sample.token_ids) for sample in job.samples)
    body = await _off_loop(tokens, _body, policy, request, job, head)
    telemetry.REQUESTS.labels("completed").inc()
    return Response(body, media_type="application/json")


async def _off_loop(tokens: int, work: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """Does work on so many tokens: in a thread unless they are few."""
    return await asyncio.to_thread(work, *arguments) if tokens > INLINE_TOKENS else work(*arguments)


def _watched(policy: Policy, samples: list[Sample]) -> list[Sample]:
    for sample in samples:
        if sample.sampling.stop:
            sample.watcher = TextWatcher(policy.tokenizer, sample.sampling.stop)
    return samples


def _body(policy: Policy, request: AnyRequest, job: Job, head: dict[str, Any]) -> bytes:
    shown: dict[str, Any] = {
        "token_text": policy.token_texts.__getitem__,
        "logprobs": request.wants_logprobs,
        "token_ids": bool(request.return_token_ids),
    }
    make: Callable[..., dict[str, Any]] = chat_choice
    if isinstance(request, CompletionRequest):
        make, shown["tokens"] = completion_choice, request.return_tokens
    texts = sample_texts(policy.tokenizer, job.samples)
    choices = [
        make(policy.tokenizer, sample, index, text, **shown)
        for index, (sample, text) in enumerate(zip(job.samples, texts, strict=True))
    ]
    answer: dict[str, Any] = {
        **head,
        "model": policy.model_id(job.version),
        "choices": choices,
        "usage": usage(job.samples, request.n or 1),
    }
    if isinstance(request, ChatRequest) and request.return_token_ids:
        answer["prompt_token_ids"] = job.samples[0].prompt
    return orjson.dumps(answer)


async def _finished(policy: Policy, job: Job, http: Request, due: float) -> bool:
    """True when the job has ended, False when its client has gone; DeadlineExceeded when its time is over."""
    loop = asyncio.get_running_loop()
    finished = loop.create_future()
    job.finished.add_done_callback(lambda _: loop.call_soon_threadsafe(_resolve, finished))
    gone = asyncio.create_task(_disconnected(http))
    try:
        left = max(0.0, due - time.monotonic())
        await asyncio.wait({finished, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if finished.done():
            job.finished.result()  # raises what the worker met
            return True
        if gone.done():
            return False
        raise DeadlineExceeded("the request took longer than it may; allow it more time, or ask for less")
    finally:
        gone.cancel()
        policy.scheduler.cancel(job)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def _disconnected(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def refusal(
    status: int, message: str, code: str | None = None, kind: str | None = None, retry_after: int | None = None
) -> JSONResponse:
    """An error in OpenAI's form."""
    kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
    outcome = {DEADLINE_EXCEEDED: "deadline", "overloaded": "overloaded"}.get(
        code or "", "refused" if status < 500 else "failed"
    )
    telemetry.REQUESTS.labels(outcome).inc()
    headers = {}
    if status == 503:
        headers["Retry-After"] = str(retry_after or 1)
    if code == DEADLINE_EXCEEDED:
        # OpenAI's own clients would repeat it, with the same end.
        headers["x-should-retry"] = "false"
    return JSONResponse(error_body(message, kind, code), status, headers)

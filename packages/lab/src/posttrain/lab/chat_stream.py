"""One answer of a model, piece by piece as it is generated, from any OpenAI-compatible server.

An answer is read in a thread of its own, so that whoever waits for it can stop waiting at any time (Ctrl-C), and so
that two can be read at once. Knows neither conversations nor terminals.
"""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from posttrain.core.errors import PosttrainError, RequestError, WorkError
from posttrain.core.serving import is_loopback
from posttrain.lab.chat_models import ChatModel

TIMEOUT = 660.0
"""Seconds without a byte of an answer: a minute more than our services allow a request."""


@dataclass(frozen=True)
class ChatSampling:
    """How answers are drawn; None leaves it to the server."""

    temperature: float = 0.7
    max_tokens: int | None = None
    seed: int | None = None

    def plain(self) -> dict[str, Any]:
        """As a request has it."""
        named = {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": self.seed}
        return {name: value for name, value in named.items() if value is not None}


@dataclass
class Answer:
    """What has come of one answer so far."""

    model: ChatModel
    text: str = ""
    finish_reason: str | None = None
    """`stop`, `length`; None while it comes, and of one that was stopped."""
    error: PosttrainError | None = None
    stopped: threading.Event = field(default_factory=threading.Event, repr=False)
    """Set when nobody waits for the rest."""


@dataclass(frozen=True)
class _Piece:
    text: str
    finish_reason: str | None


_Arrived = queue.SimpleQueue[tuple[Answer, _Piece | None]]
"""What the threads have read; None when an answer ends."""


def stream_answers(
    models: Sequence[ChatModel], conversations: Sequence[Sequence[Mapping[str, str]]], sampling: ChatSampling
) -> Iterator[list[Answer]]:
    """The answers of all models at once, again whenever one of them has grown, and finally complete.

    `conversations[i]` are the messages that `models[i]` answers. A model's failure stands in its answer's `error`.
    Leaving the iteration early stops what is under way.
    """
    answers = [Answer(model) for model in models]
    arrived: _Arrived = queue.SimpleQueue()
    for answer, messages in zip(answers, conversations, strict=True):
        threading.Thread(target=_read, args=(answer, messages, sampling, arrived), daemon=True).start()
    under_way = len(answers)
    try:
        while under_way:
            answer, piece = arrived.get()
            if piece is None:
                under_way -= 1
            else:
                answer.text += piece.text
                answer.finish_reason = piece.finish_reason or answer.finish_reason
                yield answers
        yield answers
    finally:
        for answer in answers:
            answer.stopped.set()


def _read(
    answer: Answer,
    messages: Sequence[Mapping[str, str]],
    sampling: ChatSampling,
    arrived: _Arrived,
) -> None:
    try:
        for piece in _pieces(answer, messages, sampling):
            arrived.put((answer, piece))
    except PosttrainError as error:
        answer.error = error
    finally:
        arrived.put((answer, None))


def _pieces(answer: Answer, messages: Sequence[Mapping[str, str]], sampling: ChatSampling) -> Iterator[_Piece]:
    import openai  # half a second, which `--help` need not wait for

    endpoint = answer.model.endpoint
    # A proxy of the environment is for the world outside, not for this machine.
    outside = not is_loopback(httpx.URL(endpoint.base_url).host)
    client = openai.OpenAI(
        base_url=endpoint.base_url,
        api_key=endpoint.api_key or "none",
        timeout=TIMEOUT,
        http_client=openai.DefaultHttpxClient(trust_env=outside),
    )
    complete = False
    asked: dict[str, Any] = {"model": endpoint.model, "messages": list(messages), **sampling.plain()}
    try:
        with client, client.chat.completions.create(**asked, stream=True) as stream:
            for chunk in stream:
                if answer.stopped.is_set():
                    return
                for choice in (chunk.choices or [])[:1]:
                    complete = complete or choice.finish_reason is not None
                    yield _Piece(choice.delta.content or "", choice.finish_reason)
    except openai.APIStatusError as error:
        kind = RequestError if error.status_code < 500 else WorkError
        raise kind(f"{answer.model.label} refused (status {error.status_code}): {_said(error)}") from None
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        raise WorkError(
            f"{answer.model.label} does not answer ({type(cause).__name__}: {cause}); is the server running?"
        ) from None
    except openai.APIError as error:  # an error in the middle of a stream
        raise WorkError(f"{answer.model.label} broke off: {_said(error)}") from None
    except (ValueError, TypeError, AttributeError) as error:  # openai takes a chunk for what it should be
        raise WorkError(f"{answer.model.label} sends what is no stream of chat completions: {_said(error)}") from None
    if not complete:
        raise WorkError(f"{answer.model.label} broke off: its stream ended without a reason to finish")


def _said(error: Any) -> str:
    """The message of an error, of OpenAI's form or any other, in one line."""
    body = getattr(error, "body", None)
    body = body.get("error", body) if isinstance(body, dict) else None
    message = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(message or error).split())[:300]

"""A chat model as judge: asks as its protocol says, and takes the verdict from where the protocol puts it."""

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from pydantic import Field, field_validator

from posttrain.core.config import Settings
from posttrain.core.hashing import digest_json
from posttrain.core.wire import Message
from posttrain.llm_judge.comparisons import Comparison, Game
from posttrain.llm_judge.judgements import Decision
from posttrain.llm_judge.judges.completions import OPENAI_URL, ChatServer, Completion, estimated_tokens
from posttrain.llm_judge.protocols import Prompt, Protocol

TOP_LOGPROBS = 5
"""Likeliest tokens asked for in the place of a verdict: as many as every server that has them gives."""
SET_BY = {
    "model": "--judge",
    "messages": "--protocol",
    "temperature": "--judge-temperature",
    "seed": "--judge-seed",
    "max_tokens": "--judge-max-tokens",
    "max_completion_tokens": "--judge-max-tokens",
    "logprobs": "--protocol",
    "top_logprobs": "--protocol",
}
"""What a request has from the judge's own settings, and the option of `judge run` for each."""
ASKED_AGAIN = "\n\n[asked again]\n\n"
"""Between two replies to one game, as they are kept."""


class ChatSettings(Settings):
    """The model and how it is sampled from: all of it defines the judge."""

    model: str = Field(min_length=1)
    """As the server calls it; a name with a date is worth more than one that changes what it means."""
    temperature: float | None = Field(default=0.0, ge=0)
    """None: not sent, for models that refuse it."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Of a reply, reasoning included; None: the protocol's."""
    seed: int | None = None
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request, `reasoning_effort` for example; none that the judge sets itself."""
    sha256: str | None = None
    """Of the model's weights, where its server tells it: other weights may get the same name."""

    @field_validator("extra")
    @classmethod
    def _replaces_nothing(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name in extra.keys() & SET_BY.keys():
            raise ValueError(f"may not set '{name}': {SET_BY[name]} does; leave it out")
        return extra


class ChatJudge:
    """Judges by one model at one server under one protocol."""

    def __init__(self, settings: ChatSettings, protocol: Protocol, server: ChatServer) -> None:
        self.settings, self.protocol, self.server = settings, protocol, server
        self._max_tokens = settings.max_tokens or protocol.max_tokens
        self._body: dict[str, Any] = {"model": settings.model, "max_tokens": self._max_tokens}
        self._body |= {
            name: value for name in ("temperature", "seed") if (value := getattr(settings, name)) is not None
        }
        if protocol.verdict_tokens:
            self._body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        self._body |= settings.extra
        self._template_tokens = self._tokens_of_the_template()

    async def __aenter__(self) -> "ChatJudge":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.server.aclose()

    @property
    def identity(self) -> Mapping[str, Any]:
        """Model, sampling, what is asked of the server, protocol with its digest. Servers other than OpenAI's may call
        anything by the model's name, so the weights are in it or, where they are not known, a digest of the address."""
        found: dict[str, Any] = {"judge": "chat", "request": self._body, "protocol": self.protocol.identity}
        if self.settings.sha256:
            found["sha256"] = self.settings.sha256
        elif self.server.url != OPENAI_URL:
            found["server"] = digest_json(self.server.url)[:16]
        return found

    def expected(self, game: Game) -> tuple[int, int, float | None]:
        """By the length of the texts; the longest answer that is allowed."""
        prompt_tokens = self._template_tokens + sum(map(estimated_tokens, _texts(game)))
        price = self.server.price
        return prompt_tokens, self._max_tokens, price.cost(prompt_tokens, self._max_tokens) if price else None

    async def decide(self, game: Game) -> Decision:
        """One request, and after a reply without a verdict one more with a reminder; then it is unparsed."""
        started = time.monotonic()
        prompt = self.protocol.render(game)
        replies = [await self._ask(prompt.messages)]
        verdict = _read(prompt, replies[0])
        if verdict is None:
            replies.append(await self._ask(prompt.reminded(replies[0].text)))
            verdict = _read(prompt, replies[1])
        label, value = verdict or (None, None)
        return Decision(
            label,
            value,
            raw=ASKED_AGAIN.join(reply.text for reply in replies),
            prompt_tokens=sum(reply.prompt_tokens for reply in replies),
            completion_tokens=sum(reply.completion_tokens for reply in replies),
            cost=_sum(reply.cost for reply in replies),
            seconds=time.monotonic() - started,
        )

    async def _ask(self, messages: Sequence[Message]) -> Completion:
        said = [{"role": message.role, "content": message.content} for message in messages]
        prompt_tokens = sum(estimated_tokens(message.content) for message in messages)
        return await self.server.complete(self._body | {"messages": said}, prompt_tokens, self._max_tokens)

    def _tokens_of_the_template(self) -> int:
        plain = Comparison(questions=("q",), answers_a=("a",), answers_b=("b",))
        game = self.protocol.games(plain)[0]
        return sum(estimated_tokens(message.content) for message in self.protocol.render(game).messages)


def _read(prompt: Prompt, reply: Completion) -> tuple[str, float] | None:
    return prompt.read(reply.text, reply.tokens, cut=reply.cut)


def _texts(game: Game) -> Iterable[str]:
    asked = game.comparison
    yield from (message.content for message in asked.history)
    yield from asked.questions[: game.turns]
    for answers in game.shown:
        yield from answers
    yield from (text for text in (asked.reference, asked.rubric) if text)


def _sum(costs: Iterable[float | None]) -> float | None:
    known = list(costs)
    return None if None in known else sum(cost for cost in known if cost is not None)

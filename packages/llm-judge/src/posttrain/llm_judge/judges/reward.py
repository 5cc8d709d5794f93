"""A reward model or a verifier as judge, through the reward service: the answer with the higher score is better.

A model's scores are those of Bradley and Terry: P(second better) = σ(s₂ − s₁). A verifier's are counts of what is
right, whose difference is no log-odds: the higher one wins, equal ones tie. Neither sees an order, so both orders of a
comparison come from the same two scores, and an answer that is in many comparisons is scored once.
"""

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal

from posttrain.core.clients import RewardClient
from posttrain.core.errors import PosttrainError, RequestError, WorkError, suggest
from posttrain.core.hashing import digest_json
from posttrain.llm_judge.comparisons import Game
from posttrain.llm_judge.judgements import Decision, JudgeRefused

MOST_ITEMS = 256
"""In one request."""
GATHER = 0.005
"""Seconds in which items that are asked for gather to one request."""

Scale = Literal["model", "verifier"]
"""Whether differences of scores are log-odds, or only their sign counts."""


class RewardJudge:
    """Judges by one source of a reward service; to be used in one event loop.

    `digests`: what the service has just said of its sources; None: it is asked. `scale` of None: `scale_of` what it
    says of this one. RequestError when it has no such source. JudgeRefused once the source is another than it was at
    the start.
    """

    def __init__(
        self,
        client: RewardClient,
        source: str,
        scale: Scale | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        digests = client.sources() if digests is None else digests
        if source not in digests:
            raise RequestError(f"{client.url} has no source '{source}' {suggest(source, digests)}")
        self.source, self.digest = source, digests[source]
        self.scale: Scale = scale or scale_of(self.digest)
        self._client = client
        # The client waits in its own thread; two, so that one request is read while another is scored.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="reward")
        self._scores: dict[str, asyncio.Future[float]] = {}
        self._waiting: list[tuple[dict[str, Any], asyncio.Future[float]]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "RewardJudge":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The source with its digest or version, and how its scores are read."""
        return {"judge": "reward", "source": self.source, "digest": self.digest, "scale": self.scale}

    def expected(self, game: Game) -> tuple[int, int, float | None]:
        """Nothing: a service of one's own counts no tokens."""
        return 0, 0, 0.0

    async def decide(self, game: Game) -> Decision:
        """WorkError when the service has no score for an answer."""
        started = time.monotonic()
        scores = await asyncio.gather(*(self._score(item) for item in _items(game)))
        label, value = verdict(scores, self.scale)
        return Decision(label, value, json.dumps({"scores": scores}), seconds=time.monotonic() - started)

    async def _score(self, item: dict[str, Any]) -> float:
        key = digest_json(item)
        if key not in self._scores:
            future = self._scores[key] = asyncio.get_running_loop().create_future()
            future.add_done_callback(lambda done: self._forget_failure(key, done))
            self._waiting.append((item, future))
            if len(self._waiting) == 1 or len(self._waiting) >= MOST_ITEMS:
                send = asyncio.create_task(self._send(GATHER if len(self._waiting) == 1 else 0.0))
                self._sending.add(send)
                send.add_done_callback(self._sending.discard)
        # Others may wait for the same score: it is not for one of them to cancel.
        return await asyncio.shield(self._scores[key])

    def _forget_failure(self, key: str, done: "asyncio.Future[float]") -> None:
        if done.cancelled() or done.exception() is not None:
            self._scores.pop(key, None)

    async def _send(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        batch, self._waiting = self._waiting[:MOST_ITEMS], self._waiting[MOST_ITEMS:]
        if batch:
            await self._fill(batch)
        if self._waiting:
            await self._send(0.0)

    async def _fill(self, batch: "Sequence[tuple[dict[str, Any], asyncio.Future[float]]]") -> None:
        """Gives each item its score or its error."""
        loop = asyncio.get_running_loop()
        try:
            scores = await loop.run_in_executor(self._threads, self._ask, [item for item, _ in batch])
        except RequestError as error:
            # One item that the source cannot take has the whole request refused: halves lead to it.
            if len(batch) == 1:
                batch[0][1].set_exception(WorkError(str(error)))
                return
            middle = len(batch) // 2
            await self._fill(batch[:middle])
            await self._fill(batch[middle:])
        except PosttrainError as error:
            for _, future in batch:
                future.set_exception(error)
        else:
            for (_, future), score in zip(batch, scores, strict=True):
                if isinstance(score, WorkError):
                    future.set_exception(score)
                else:
                    future.set_result(score)

    def _ask(self, items: list[dict[str, Any]]) -> list[float | WorkError]:
        result = self._client.score([self.source], items, on_error=math.nan)
        if result.sources.get(self.source) != self.digest:
            raise JudgeRefused(
                f"source '{self.source}' of {self._client.url} changed during the run; start again for the new one"
            )
        why = {error.index: error.message for error in result.errors}
        return [
            WorkError(f"source '{self.source}' failed on an answer: {why[index]}") if index in why else row[self.source]
            for index, row in enumerate(result.scores)
        ]


def scale_of(version: str) -> Scale:
    """How the scores of a source are read, by what the reward service tells of it: a verifier has a number for its
    version, models and functions a digest."""
    return "verifier" if version.isdecimal() else "model"


def verdict(scores: Sequence[float], scale: Scale) -> tuple[str, float]:
    """The label and the value of one score, a grade, or of two, P(second better)."""
    if len(scores) == 1:
        return "grade", scores[0]
    difference = scores[1] - scores[0]
    label = "tie" if difference == 0 else "second" if difference > 0 else "first"
    if scale == "verifier":
        return label, {"first": 0.0, "tie": 0.5, "second": 1.0}[label]
    # In this form no difference overflows.
    return label, (1 + math.tanh(difference / 2)) / 2


def _items(game: Game) -> list[dict[str, Any]]:
    """Each answer shown, as the reward service takes it: the last turn after the conversation before it, and whether it
    has an end."""
    asked = game.comparison
    history = [message.model_dump() for message in asked.history]
    items = []
    for which, answers in zip(game.order, game.shown, strict=True):
        turns = list(zip(asked.questions, answers, strict=False))
        before = [
            {"role": role, "content": text}
            for question, answer in turns[:-1]
            for role, text in (("user", question), ("assistant", answer))
        ]
        prompt = [*history, *before, {"role": "user", "content": turns[-1][0]}]
        item = {"prompt": prompt, "completion": turns[-1][1], "reference": _reference(asked.reference)}
        items.append({**item, "finish_reason": "length"} if game.cut[which] else item)
    return items


def _reference(text: str | None) -> Any:
    """A verifier's reference: the JSON object that the text is, or the text."""
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text

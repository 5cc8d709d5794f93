"""Asks an OpenAI-compatible server for answers: many prompts at once, each conversation turn by turn.

What a server says wrong about one prompt costs that prompt its answer; a server that cannot be asked at all, or leaves
many prompts in a row without an answer, ends it.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from posttrain.core.clients import ServiceUnavailable
from posttrain.core.config import Settings
from posttrain.core.errors import WorkError
from posttrain.core.seeds import derive_seed
from posttrain.llm_judge.answers.file import AnswerFile
from posttrain.llm_judge.answers.rows import Answer, Prompt
from posttrain.llm_judge.judgements import JudgeRefused
from posttrain.llm_judge.judges.completions import ChatServer, estimated_tokens

GIVE_UP_AFTER = 10
"""Prompts in a row that the server did not answer, each with all its retries: it is gone."""
NAMED = 3
"""Prompts without an answer that an error names."""
SEED_BITS = 31
"""Of the seeds in requests: not every server takes more."""


class Generation(Settings):
    """How answers are sampled: all of it defines them."""

    max_new_tokens: int = Field(default=512, ge=1)
    """Of an answer, a turn."""
    temperature: float = Field(default=0.0, ge=0)
    """0: the likeliest token each time."""
    seed: int = 0
    """With a temperature: each prompt and turn has its own, which derives from it."""

    def definition(self) -> dict[str, Any]:
        """What tells answers apart: the seed only where something is drawn."""
        return self.model_dump(exclude=None if self.temperature else {"seed"})


@dataclass(frozen=True)
class Failed:
    """A prompt that has no answer."""

    prompt: Prompt
    why: str


class Generating:
    """One model at work on the prompts that it has not answered yet."""

    def __init__(
        self, server: ChatServer, model: str, settings: Generation, kept: AnswerFile, done: Callable[[], None]
    ) -> None:
        """`done` is told of every prompt that is settled."""
        self._server, self._model, self._settings, self._kept, self._done = server, model, settings, kept, done
        self.failed: list[Failed] = []
        self._gone: WorkError | None = None
        self._unanswered = 0

    async def run(self, prompts: Sequence[Prompt], interrupted: asyncio.Event) -> bool:
        """Whether every prompt was tried; False: interrupted. WorkError where the server or the disk is gone. Whatever
        was answered is kept in every case."""
        waiting = iter(prompts)
        at_once = min(len(prompts), self._server.limits.settings.concurrency)
        workers = [asyncio.create_task(self._work(waiting)) for _ in range(at_once)]
        signalled = asyncio.create_task(interrupted.wait())
        try:
            while pending := {task for task in workers if not task.done()}:
                await asyncio.wait({signalled, *pending}, return_when=asyncio.FIRST_COMPLETED)
                ended = [task for task in workers if task.done()]
                if signalled.done() or self._gone or any(task.exception() for task in ended):
                    break
        finally:
            for task in (signalled, *workers):
                task.cancel()
            outcomes = await asyncio.gather(*workers, return_exceptions=True)
            await self._server.aclose()
        errors = [self._gone, *(error for error in outcomes if isinstance(error, Exception))]
        for error in filter(None, errors):
            raise error
        return not any(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)

    async def _work(self, waiting: Iterator[Prompt]) -> None:
        for prompt in waiting:
            try:
                answer = await self._answer(prompt)
            except JudgeRefused as error:
                self._gone = error
                return
            except WorkError as error:
                self.failed.append(Failed(prompt, str(error)))
                if self._is_gone(error):
                    return
            else:
                self._unanswered = 0
                await asyncio.to_thread(self._kept.keep, prompt, answer)
            self._done()

    def _is_gone(self, error: WorkError) -> bool:
        """Whether the server has left too many prompts in a row without an answer."""
        if isinstance(error, ServiceUnavailable):
            self._unanswered += 1
            if self._unanswered >= GIVE_UP_AFTER:
                self._gone = error
        return self._gone is not None

    async def _answer(self, prompt: Prompt) -> Answer:
        messages = [message.model_dump() for message in prompt.history]
        texts: list[str] = []
        cut = False
        for turn, question in enumerate(prompt.questions, start=1):
            messages.append({"role": "user", "content": question})
            body = {"model": self._model, "messages": messages, **self._sampling(prompt, turn)}
            expected = sum(estimated_tokens(message["content"]) for message in messages)
            said = await self._server.complete(body, expected, self._settings.max_new_tokens)
            texts.append(said.text)
            cut = said.cut
            messages.append({"role": "assistant", "content": said.text})
        return Answer(tuple(texts), cut)

    def _sampling(self, prompt: Prompt, turn: int) -> Mapping[str, Any]:
        settings = self._settings
        sampling = {"max_tokens": settings.max_new_tokens, "temperature": settings.temperature}
        if not settings.temperature:
            return sampling
        return sampling | {"seed": derive_seed(settings.seed, prompt.key, turn) % (1 << SEED_BITS)}


def failure_line(failed: Sequence[Failed], name: str) -> str:
    """The prompts without an answer in a line for people."""
    first = "; ".join(f"{one.prompt.instruction[:60]!r}: {one.why}" for one in failed[:NAMED])
    more = f"; and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    return f"{name} gave no answer to {len(failed)} prompts: {first}{more}. The same command asks only these again"

"""Has the models of a match answer what they have not answered yet.

A checkpoint is `posttrain serve policy` in a process of its own, which is started only if something is missing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.core.errors import WorkError
from posttrain.core.metrics import Progress
from posttrain.llm_judge.answers.file import AnswerFile
from posttrain.llm_judge.answers.generation import Generating, Generation, failure_line
from posttrain.llm_judge.answers.rows import Answer, Prompt
from posttrain.llm_judge.answers.sides import Contestant
from posttrain.llm_judge.endpoints import Endpoint
from posttrain.llm_judge.judges.completions import NO_KEY, ChatServer
from posttrain.llm_judge.running.interruption import run_until_interrupted
from posttrain.llm_judge.running.limits import Limits, LimitSettings

ANSWERS_VERSION = 1
"""Raised when the same model and settings are asked in another way."""
ANSWER_TIMEOUT = 660.0
"""Seconds without a byte: a minute more than the policy service allows a request."""


class Answering:
    """What the models of a match are asked under, and where their answers are kept."""

    def __init__(self, folder: Path, settings: Generation, concurrency: int) -> None:
        """`folder`: of kept answers, and of the logs of servers that are started."""
        self._folder, self._settings, self._concurrency = folder, settings, concurrency

    def made_by(self, one: Contestant) -> dict[str, Any]:
        """What tells a model's answers under these settings from all others."""
        return {"version": ANSWERS_VERSION, "model": one.model, "sampling": self._settings.definition()}

    def kept(self, one: Contestant) -> AnswerFile:
        """The file of a model's answers under these settings."""
        return AnswerFile(self._folder, self.made_by(one), one.side.name)

    def to_generate(self, one: Contestant, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Those of the prompts that a model has to answer yet, each text once."""
        known = self.kept(one).read()
        return list({prompt.key: prompt for prompt in prompts if prompt.key not in known}.values())

    def answers(self, one: Contestant, prompts: Sequence[Prompt]) -> dict[int, Answer]:
        """A model's answer to every prompt, by its place.

        WorkError where some cannot be had, KeyboardInterrupt on a signal: what was answered is kept, and the next time
        asks the rest.
        """
        kept = self.kept(one)
        if wanted := self.to_generate(one, prompts):
            there = f"{len(prompts) - len(wanted)} of {len(prompts)} answers are in {kept.path}"
            print(f"{one.side.name}: {there}, {len(wanted)} to generate", file=sys.stderr, flush=True)
            with one.served(self._folder) as endpoint:
                self._generate(endpoint, one.side.name, wanted, kept)
        else:
            print(f"{one.side.name}: all answers are in {kept.path}", file=sys.stderr, flush=True)
        known = kept.read()
        return {place: known[prompt.key] for place, prompt in enumerate(prompts)}

    def _generate(self, endpoint: Endpoint, name: str, wanted: Sequence[Prompt], kept: AnswerFile) -> None:
        settled = 0

        def done() -> None:
            nonlocal settled
            settled += 1
            progress.advance(settled)

        server = ChatServer(
            Limits(LimitSettings(concurrency=self._concurrency)),
            base_url=endpoint.base_url,
            # Never the key of another kind of server.
            api_key=endpoint.api_key or NO_KEY,
            timeout=ANSWER_TIMEOUT,
        )
        generating = Generating(server, endpoint.model, self._settings, kept, done)
        with Progress(len(wanted), f"answers of {name}") as progress:
            tried = run_until_interrupted(lambda interrupted: generating.run(wanted, interrupted))
            if not tried:
                raise KeyboardInterrupt
        if generating.failed:
            raise WorkError(failure_line(generating.failed, name))

"""The answers that a model gave, kept as they arrive: a file of JSON Lines for each model and way of sampling.

A line is on the disk before its answer counts, so a kill loses what was in flight and nothing else, and what is there
is not generated again. The lines have the columns of a file of answers: such a file is itself a side to be judged.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from posttrain.core.errors import RequestError
from posttrain.core.files import append_durably, whole_lines
from posttrain.core.hashing import digest_json
from posttrain.llm_judge.answers.rows import Answer, Prompt


class AnswerFile:
    """The answers of one model under one setting in `folder`."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], generator: str) -> None:
        """`identity`: all that defines the answers, as JSON. `generator`: the model's name for people."""
        self.path = Path(folder) / f"{digest_json(dict(identity))[:16]}.jsonl"
        self._identity, self._generator = dict(identity), generator

    def read(self) -> dict[str, Answer]:
        """By `Prompt.key`. Half a line that a crash left is passed over; RequestError names a line that is none."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        answers = {}
        for number, line in enumerate(whole_lines(content), start=1):
            try:
                row = orjson.loads(line)
                answers[row["key"]] = Answer(tuple(row["outputs"]), row["finish_reason"] == "length")
            except (ValueError, LookupError, TypeError) as error:
                raise RequestError(f"{self.path}:{number} is no kept answer ({error}); remove the line") from None
        return answers

    def keep(self, prompt: Prompt, answer: Answer) -> None:
        """Adds one; it is on the disk when this returns."""
        history = [message.model_dump() for message in prompt.history]
        row = {
            "key": prompt.key,
            "questions": list(prompt.questions),
            **({"history": history} if history else {}),
            "outputs": list(answer.texts),
            "finish_reason": "length" if answer.cut else "stop",
            "generator": self._generator,
            "made_by": self._identity,
            "created": time.time(),
        }
        append_durably(self.path, row)

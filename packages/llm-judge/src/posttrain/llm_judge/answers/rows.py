"""Files of prompts and of answers: JSON Lines or one JSON array, a row a prompt.

The columns are those that such files have: AlpacaEval's outputs (`instruction`, `output`, `generator`, `dataset`),
MT-Bench's questions (`question_id`, `category`, `turns`, `reference`) and answers (`question_id`, `model_id`,
`choices`), and plain ones (`prompt` or `instruction`; `output`, `answer` or `text`). Other columns are passed over.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, FiniteFloat, JsonValue

from posttrain.core.config import validate
from posttrain.core.errors import RequestError
from posttrain.core.hashing import digest_json
from posttrain.core.wire import Message
from posttrain.llm_judge.exchange import TURNS, numbered_objects


@dataclass(frozen=True)
class Prompt:
    """What both sides are asked, and what is known about it."""

    questions: tuple[str, ...]
    """Turn by turn; one for an instruction."""
    history: tuple[Message, ...] = ()
    """What was said before the first question."""
    id: str | None = None
    category: str | None = None
    reference: str | None = None
    rubric: str | None = None
    difficulty: float | None = None
    human: float | None = None
    """What people said of A's and B's answers: 1, B is better; 0, A is; ½, neither."""

    @cached_property
    def key(self) -> str:
        """A digest of what is asked."""
        return digest_json([[message.model_dump() for message in self.history], list(self.questions)])[:32]

    @property
    def instruction(self) -> str:
        """All turns in one text, by which files of difficulties know it."""
        return TURNS.join(self.questions)


@dataclass(frozen=True)
class Answer:
    """One side's answer, a text a turn."""

    texts: tuple[str, ...]
    cut: bool = False
    """Whether the last one was cut at its greatest length."""


@dataclass(frozen=True)
class Row:
    """One row of a file."""

    where: str
    """File and place, for errors."""
    id: str | None
    prompt: Prompt | None
    """None: only the id says which prompt it is."""
    answer: Answer | None
    generator: str | None


class Choice(BaseModel):
    """An answer in MT-Bench's files."""

    turns: list[str] = Field(min_length=1)


def _named(*names: str) -> Any:
    return Field(default=None, validation_alias=AliasChoices(*names))


class FileRow(BaseModel):
    """The columns that are read, under all their names; the first one that is there counts."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    id: str | None = _named("id", "question_id", "prompt_id")
    questions: list[str] | None = _named("questions", "turns")
    instruction: str | None = _named("instruction", "question")
    input: str | None = None
    """More of the instruction, in files of AlpacaFarm."""
    prompt: str | list[Message] | None = _named("prompt", "messages")
    """A conversation ends with what is to be answered."""
    history: list[Message] | None = None
    category: str | None = _named("category", "dataset")
    reference: JsonValue = None
    rubric: str | None = None
    difficulty: FiniteFloat | None = None
    human: float | None = Field(default=None, ge=0, le=1)
    outputs: list[str] | None = _named("outputs", "answers")
    output: str | None = _named("output", "answer", "text", "completion", "response")
    choices: list[Choice] | None = Field(default=None, min_length=1)
    finish_reason: str | None = None
    generator: str | None = _named("generator", "model_id", "model")


def read_rows(path: Path) -> list[Row]:
    """All rows of a file; RequestError names the first that is wrong."""
    rows = [_row(validate(FileRow, content, where), where) for where, content in numbered_objects(path)]
    if not rows:
        raise RequestError(f"{path} has no rows")
    return rows


def _row(said: FileRow, where: str) -> Row:
    prompt, texts = _prompt(said, where), _answers(said)
    if prompt is None and said.id is None:
        raise RequestError(f"{where} has neither a prompt nor an id; name its column prompt, instruction or turns")
    if prompt and texts and len(texts) != len(prompt.questions):
        raise RequestError(f"{where}: {len(texts)} answers do not belong to {len(prompt.questions)} questions")
    answer = Answer(tuple(texts), said.finish_reason == "length") if texts else None
    return Row(where, said.id, prompt, answer, said.generator)


def _prompt(said: FileRow, where: str) -> Prompt | None:
    history = list(said.history or ())
    if said.questions:
        questions = said.questions
    elif said.instruction is not None:
        questions = [TURNS.join(filter(None, (said.instruction, said.input)))]
    elif isinstance(said.prompt, str):
        questions = [said.prompt]
    elif said.prompt:
        *before, last = said.prompt
        if last.role != "user":
            raise RequestError(f"{where}: the prompt ends with the {last.role}; it has to end with what the user asks")
        history, questions = [*history, *before], [last.content]
    else:
        return None
    return Prompt(
        questions=tuple(questions),
        history=tuple(history),
        id=said.id,
        category=said.category,
        reference=_reference(said.reference),
        rubric=said.rubric,
        difficulty=said.difficulty,
        human=said.human,
    )


def _answers(said: FileRow) -> Sequence[str]:
    if said.choices:
        return said.choices[0].turns
    if said.outputs:
        return said.outputs
    return () if said.output is None else (said.output,)


def _reference(value: Any) -> str | None:
    """A text as it is, those of several turns joined, anything else as JSON, which is how verifiers read it."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return TURNS.join(value) or None
    return json.dumps(value, ensure_ascii=False, sort_keys=True)

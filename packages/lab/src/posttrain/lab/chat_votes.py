"""Votes between two answers, kept as preference pairs: JSON Lines in the generic pairs format of `posttrain.data`.

A row has `prompt` (messages), `chosen` and `rejected` (texts) with the finish reason of each, and beside them what the
vote was about. A tie has neither of the two and `tie: true`, by which it is left out of training; of an answer that
was cut at its length no end is learnt.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from posttrain.core.files import append_durably, disk_errors
from posttrain.core.wire import FinishReason

_PLACES = {"A": 0, "B": 1}
Text = Annotated[str, Field(max_length=1 << 20)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Said(_Row):
    """One message of the prompt."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Shown(_Row):
    """One of the two answers, by the label of the model that gave it."""

    model: Annotated[str, Field(max_length=400)]
    served_as: Annotated[str, Field(max_length=400)]
    """The server's own name for it, with the version of a policy service: `policy@3`."""
    content: Text
    finish_reason: FinishReason


class Vote(_Row):
    """One row of the file, as the page makes it."""

    id: Annotated[str, Field(pattern=r"^vote-[0-9a-f]{16}$")]
    prompt: Annotated[list[Said], Field(min_length=1, max_length=4096)]
    chosen: Text | None
    rejected: Text | None
    chosen_finish_reason: FinishReason | None
    rejected_finish_reason: FinishReason | None
    tie: bool
    kind: Literal["chat"]
    vote: Literal["A", "B", "tie"]
    answers: Annotated[list[Shown], Field(min_length=2, max_length=2)]
    """What stood at A and at B."""
    temperature: float | None
    voted_at: Annotated[str, Field(max_length=40)]

    @model_validator(mode="after")
    def _says_what_was_voted(self) -> Self:
        if self.prompt[-1].role != "user":
            raise ValueError("the prompt must end with the user's message")
        place = _PLACES.get(self.vote)
        said = [(answer.content, answer.finish_reason) for answer in self.answers]
        expected = [(None, None)] * 2 if place is None else [said[place], said[1 - place]]
        told = [(self.chosen, self.chosen_finish_reason), (self.rejected, self.rejected_finish_reason)]
        if told != expected or self.tie != (place is None):
            raise ValueError("chosen, rejected, their finish reasons and tie must be what the vote says of the answers")
        return self


def store_vote(path: Path, vote: Vote, weights: dict[str, str | None]) -> None:
    """Appends a vote, on the disk when it returns; `weights` are the models' digests by label, None where not known."""
    digests: dict[str, Any] = {answer.model: weights.get(answer.model) for answer in vote.answers}
    append_durably(path, vote.model_dump() | {"weights": digests})


def refuse_unwritable(path: Path) -> None:
    """WorkError where no vote could be appended, before anybody casts one."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab"):
            pass


def count_votes(path: Path) -> int:
    """How many votes a file holds."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0

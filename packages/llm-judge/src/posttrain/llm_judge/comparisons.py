"""What is judged: a comparison of two answers, and a game, one question to a judge about it."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from posttrain.core.hashing import digest_json
from posttrain.core.wire import Message

Order = Literal["ab", "ba", "a", "b"]
"""Which answers a game shows, in this order. Two: which is better; one: a grade."""


class Comparison(BaseModel):
    """One instruction, or a conversation of several turns, with the answers of A and of B."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    questions: tuple[str, ...] = Field(min_length=1)
    """What the user says, turn by turn; one for an instruction."""
    answers_a: tuple[str, ...] = Field(min_length=1)
    """A's answer to each question."""
    answers_b: tuple[str, ...] = Field(min_length=1)
    cut_a: bool = False
    """Whether A's last answer was cut at its greatest length: a reward model reads it without an end."""
    cut_b: bool = False
    history: tuple[Message, ...] = ()
    """What was said before the first question, alike for both."""
    reference: str | None = None
    """A right answer, for protocols that show one."""
    rubric: str | None = None
    """What to judge by, for protocols that show it."""
    category: str | None = None
    generator_a: str | None = None
    """Who wrote A's answers. Never shown to a judge."""
    generator_b: str | None = None
    human: float | None = Field(default=None, ge=0, le=1)
    """What people said: 1, B is better; 0, A is; ½, neither. Never shown to a judge."""
    prompt_id: str = ""
    """What names the prompt. Comparisons of one prompt depend on each other; by default a digest of what was asked."""

    @model_validator(mode="after")
    def _turns_match(self) -> "Comparison":
        turns = {len(self.questions), len(self.answers_a), len(self.answers_b)}
        if len(turns) > 1:
            questions, of_a, of_b = map(len, (self.questions, self.answers_a, self.answers_b))
            raise ValueError(f"{questions} questions have {of_a} answers of A and {of_b} of B")
        if not self.prompt_id:
            asked = [[message.model_dump() for message in self.history], list(self.questions)]
            object.__setattr__(self, "prompt_id", digest_json(asked)[:16])
        return self


@dataclass(frozen=True, slots=True)
class Game:
    """One question to a judge. `turn` is the last one that it sees, from 1; 0 stands for the last of all."""

    comparison: Comparison
    order: Order
    turn: int = 0
    replicate: int = 0
    """Asked again from the start: 1 is a second opinion of the same judge, paid for as such."""

    @property
    def turns(self) -> int:
        """How many turns the judge sees."""
        return self.turn or len(self.comparison.questions)

    @property
    def shown(self) -> tuple[tuple[str, ...], ...]:
        """The answers in the order shown, each a text a turn."""
        a, b = self.comparison.answers_a[: self.turns], self.comparison.answers_b[: self.turns]
        return {"ab": (a, b), "ba": (b, a), "a": (a,), "b": (b,)}[self.order]

    @property
    def cut(self) -> dict[str, bool]:
        """Whether A's and B's answers end, where this game ends, because they were cut."""
        last = self.turns == len(self.comparison.questions)
        return {"a": last and self.comparison.cut_a, "b": last and self.comparison.cut_b}

    def definition(self, sees_cut: bool = True) -> dict[str, Any]:
        """All of it that a judge may see, and the replicate: what tells two games of one judge apart. A and B are not
        in it: the same two texts in the same order are the same game whoever wrote them. `sees_cut`: whether the judge
        knows which answers were cut."""
        asked = self.comparison
        found: dict[str, Any] = {
            "history": [message.model_dump() for message in asked.history],
            "questions": asked.questions[: self.turns],
            "answers": self.shown,
            "reference": asked.reference,
            "rubric": asked.rubric,
            "replicate": self.replicate,
        }
        # Left out where nothing was cut, as most files of answers have it.
        if sees_cut and (asked.cut_a or asked.cut_b) and any(cut := [self.cut[which] for which in self.order]):
            found["cut"] = cut
        return found

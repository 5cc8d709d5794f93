"""A conversation with one model or two: what was said, what is sent next, what is saved.

Pure: no terminal, no network. With two models each goes on from its own answers, and both are asked the same.
"""

from dataclasses import dataclass, field
from typing import Any

from posttrain.lab.chat_models import ChatModel
from posttrain.lab.chat_stream import Answer, ChatSampling

CUT = ("length", "content_filter")
"""Reasons to finish of an answer that the model did not end itself."""


@dataclass
class Turn:
    """One message; `interrupted` where a person or the most tokens cut it short."""

    role: str
    content: str
    interrupted: bool = False

    def plain(self) -> dict[str, str]:
        """As a server takes it."""
        return {"role": self.role, "content": self.content}


@dataclass
class Side:
    """One model and what it has said and heard, without the system message."""

    model: ChatModel
    turns: list[Turn] = field(default_factory=list)


@dataclass
class Conversation:
    """One side, or two that are asked the same."""

    sides: list[Side]
    sampling: ChatSampling = field(default_factory=ChatSampling)
    system: str | None = None

    def requests(self, text: str) -> list[list[dict[str, str]]]:
        """What each side is sent for the user's next message."""
        head = [Turn("system", self.system)] if self.system else []
        return [[turn.plain() for turn in (*head, *side.turns, Turn("user", text))] for side in self.sides]

    def add(self, text: str, answers: list[Answer], interrupted: bool) -> None:
        """Keeps the user's message and each side's answer.

        An answer that was stopped stays as far as it came, marked; a side that failed or said nothing before it was
        stopped forgets the message too, so that it can be sent again.
        """
        for side, answer in zip(self.sides, answers, strict=True):
            stopped = interrupted and answer.finish_reason is None
            if answer.error is None and (answer.text or not stopped):
                cut = stopped or answer.finish_reason in CUT
                side.turns += [Turn("user", text), Turn("assistant", answer.text, cut)]

    def reset(self) -> None:
        """Forgets what was said; models, system message and sampling stay."""
        for side in self.sides:
            side.turns.clear()

    def compare(self, model: ChatModel) -> None:
        """From here on a second model is asked as well; it has heard all that the first one has."""
        first = self.sides[0]
        self.sides = [first, Side(model, list(first.turns))]

    def alone(self) -> None:
        """From here on only the first model is asked."""
        self.sides = self.sides[:1]

    def rows(self) -> list[dict[str, Any]]:
        """A row a side in the generic conversations format, which `posttrain.data` reads as demonstrations.

        A side with an interrupted answer is marked, by which it is left out there.
        """
        return [
            {
                "messages": [
                    *([{"role": "system", "content": self.system}] if self.system else []),
                    *(t.plain() | ({"interrupted": True} if t.interrupted else {}) for t in side.turns),
                ],
                "model": side.model.label,
                **self.sampling.plain(),
            }
            for side in self.sides
        ]

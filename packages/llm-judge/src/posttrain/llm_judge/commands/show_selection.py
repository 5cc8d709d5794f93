"""Which of a record's pairs are worth reading: those on which the judge contradicts itself or people, or others.

A pair is two answers with what the judge said of them in each order, or its grade of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from posttrain.llm_judge.annotations import Paired, paired
from posttrain.llm_judge.comparisons import Comparison, Game, Order
from posttrain.llm_judge.exchange import Judged

Outcome = Literal["win", "loss", "tie", "unparsed"]
"""B's."""
Wanted = Literal["disagreements", "wins", "losses", "ties", "unparsed", "all"]
OUTCOMES: Mapping[str, Outcome] = {"wins": "win", "losses": "loss", "ties": "tie", "unparsed": "unparsed"}
ORDERS: tuple[Order, ...] = ("ab", "ba", "a", "b")


@dataclass(frozen=True)
class Pair:
    """Two answers and what was said of them."""

    said: Paired

    @property
    def game(self) -> Game:
        """One of its games: both are about the same."""
        return next(iter(self.said.values()))[1]

    @property
    def comparison(self) -> Comparison:
        return self.game.comparison

    @property
    def judged(self) -> list[tuple[Order, Judged]]:
        """What was said, A shown first before B shown first."""
        return [(order, self.said[order]) for order in ORDERS if order in self.said]

    @cached_property
    def verdicts(self) -> list[float | None]:
        """Of each order asked 1, B is better; 0, A is; ½, neither; None, no verdict. Of grades one: whose is higher."""
        values = [judgement.decision.value for _, (judgement, _) in self.judged]
        if len(self.game.order) == 1:
            known = [value for value in values if value is not None]
            return [_verdict(known[1] - known[0]) if len(known) == 2 else None]
        likes = [judgement.preference for _, (judgement, _) in self.judged]
        return [None if like is None else _verdict(like - 0.5) for like in likes]

    @property
    def outcome(self) -> Outcome:
        """What becomes of the pair in the discrete win rate: orders that disagree are a tie."""
        if None in self.verdicts:
            return "unparsed"
        first, *rest = self.verdicts
        if any(verdict != first for verdict in rest):
            return "tie"
        return "win" if first == 1 else "loss" if first == 0 else "tie"

    @property
    def contradicts_itself(self) -> bool:
        """Whether the two orders say different things."""
        return None not in self.verdicts and len(set(self.verdicts)) > 1

    @property
    def contradicts_people(self) -> bool:
        """Whether people, where they were asked, said something else."""
        human = self.comparison.human
        if human is None or None in self.verdicts:
            return False
        return {"win": 1.0, "loss": 0.0}.get(self.outcome, 0.5) != _verdict(human - 0.5)


def select(judged: Sequence[Judged], wanted: Wanted, category: str | None = None) -> list[Pair]:
    """The pairs among a record's annotations that are `wanted`, in their order; with `category` only its own."""
    pairs = [Pair(said) for said in paired(judged)]
    return [
        pair
        for pair in pairs
        if (category is None or pair.comparison.category == category) and _is_wanted(pair, wanted)
    ]


def pair_as_json(pair: Pair) -> dict[str, Any]:
    """A pair for machines."""
    asked, turns = pair.comparison, pair.game.turns
    return {
        "prompt_id": asked.prompt_id,
        "category": asked.category,
        "turn": turns,
        "replicate": pair.game.replicate,
        "questions": list(asked.questions[:turns]),
        "answers_a": list(asked.answers_a[:turns]),
        "answers_b": list(asked.answers_b[:turns]),
        "human": asked.human,
        "outcome": pair.outcome,
        "said": [
            {
                "order": order,
                "label": judgement.decision.label,
                "value": judgement.decision.value,
                "preference": judgement.preference,
                "raw": judgement.decision.raw,
            }
            for order, (judgement, _) in pair.judged
        ],
    }


def _is_wanted(pair: Pair, wanted: Wanted) -> bool:
    if wanted == "all":
        return True
    if wanted == "disagreements":
        return pair.contradicts_itself or pair.contradicts_people
    return pair.outcome == OUTCOMES[wanted]


def _verdict(difference: float) -> float:
    return 1.0 if difference > 0 else 0.0 if difference < 0 else 0.5

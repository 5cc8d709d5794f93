"""What judges say: a decision on a game, and the judgement that is kept of it."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import orjson

from posttrain.core.errors import WorkError
from posttrain.core.hashing import canonical_json, digest_json
from posttrain.llm_judge.comparisons import Game, Order


# Tuples, because runs take a hundred thousand of them from the store: frozen dataclasses need three times as long.
class Decision(NamedTuple):
    """A judge's answer to one game, with what it cost."""

    label: str | None
    """The verdict on the protocol's scale; None: it could not be read from what the judge wrote."""
    value: float | None
    """Of two answers: P(the second shown is better), 0, ½ or 1 from judges without probabilities. Of one: its grade."""
    raw: str
    """What the judge wrote, whole."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0
    """In the currency of the judge's prices; None: they are not known."""
    seconds: float = 0.0
    """From the first request to the answer, repeated requests included."""


class Judgement(NamedTuple):
    """A decision as it is stored."""

    key: str
    """`judgement_key` of the judge's identity and the game."""
    judge: Mapping[str, Any]
    """The judge's identity."""
    order: Order
    decision: Decision
    created: float
    """Unix seconds."""

    @property
    def preference(self) -> float | None:
        """P(B is better) of the comparison's own A and B, whatever the order; None where there is no verdict."""
        if self.decision.value is None or len(self.order) == 1:
            return None
        return self.decision.value if self.order == "ab" else 1 - self.decision.value

    def as_asked(self, game: Game) -> "Judgement":
        """This judgement as one of `game`, which has the same key: what was A's answer to whoever asked first may be
        B's here."""
        return self._replace(order=game.order)


class JudgeRefused(WorkError):
    """The judge cannot be had at all, a wrong key or model for example: no other game would be answered either."""


class Judge(Protocol):
    """Answers games. One object serves many games at once."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that defines its verdicts, as JSON: back-end, model, sampling settings, protocol with the digest of its
        template. Keys and addresses are not in it."""

    async def decide(self, game: Game) -> Decision:
        """WorkError where no answer is to be had: nothing is stored, and the same game may be asked again. JudgeRefused
        where none would be had for any game."""

    def expected(self, game: Game) -> tuple[int, int, float | None]:
        """About how many tokens the prompt and, at most, the answer will have, and their cost; None: not known."""


def sees_cut(identity: Mapping[str, Any]) -> bool:
    """Whether the judge of this identity knows which answers were cut at their greatest length: one that is asked by a
    protocol is shown texts alone."""
    return "protocol" not in identity


def judgement_key(identity: Mapping[str, Any], game: Game) -> str:
    """Hex SHA-256 of judge and game: what is equal here is never paid for twice."""
    return digest_json([dict(identity), game.definition(sees_cut(identity))])


def judgement_keys(identity: Mapping[str, Any], games: Iterable[Game]) -> list[str]:
    """`judgement_key` of each game, at a fifth of its time: the judge's part is made once, and a game is only texts and
    whole numbers, which orjson writes as canonical JSON has them."""
    start = hashlib.sha256(f"[{canonical_json(dict(identity))},".encode())
    keys, cut_counts = [], sees_cut(identity)
    for game in games:
        sha = start.copy()
        sha.update(orjson.dumps(game.definition(cut_counts), option=orjson.OPT_SORT_KEYS))
        sha.update(b"]")
        keys.append(sha.hexdigest())
    return keys

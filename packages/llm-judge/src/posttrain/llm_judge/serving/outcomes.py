"""From judgements to answers: what became of each comparison, and the rates over all of them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

from posttrain.llm_judge.comparisons import Game
from posttrain.llm_judge.exchange import Judged
from posttrain.llm_judge.judgements import Judgement, judgement_keys
from posttrain.llm_judge.matches import pairs_of
from posttrain.llm_judge.scores import scores
from posttrain.llm_judge.serving.answers import ComparisonAnswer, GameAnswer
from posttrain.llm_judge.serving.requests import Generated

SAID = ("label", "value", "prompt_tokens", "completion_tokens", "cost")
"""Of a decision, in an answer."""


@dataclass(frozen=True)
class Keyed:
    """The games of a match and what the store calls them; those of a comparison stand together."""

    games: Sequence[Game]
    keys: Sequence[str]

    @staticmethod
    def of(identity: Mapping[str, Any], games: Sequence[Game]) -> "Keyed":
        """`games` for the judge of this identity."""
        return Keyed(games, judgement_keys(identity, games))

    def comparisons(self) -> Iterator[list[tuple[Game, str]]]:
        """The games of each comparison."""
        for _, group in groupby(zip(self.games, self.keys, strict=True), key=lambda pair: id(pair[0].comparison)):
            yield list(group)

    def whole(self, found: Mapping[str, Judgement]) -> list[Judged]:
        """The judgements of those comparisons all of whose games have one: a pair of which one order is still to be
        asked is not one without a verdict."""
        return [
            (found[key].as_asked(game), game)
            for pairs in self.comparisons()
            if all(key in found for _, key in pairs)
            for game, key in pairs
        ]


def comparison_answer(
    games: Sequence[tuple[Game, str]],
    found: Mapping[str, Judgement],
    asked: set[str],
    failed: Mapping[str, str],
    generated: Mapping[int, Generated],
) -> ComparisonAnswer:
    """The answer on one comparison: its games with their keys, all judgements by key, which keys were asked for now and
    why others have no answer, and what policies answered for its sides."""
    answers = []
    for game, key in games:
        place: dict[str, Any] = {"order": game.order, "turn": game.turns, "replicate": game.replicate}
        if key in found:
            judgement = found[key].as_asked(game)
            said = {name: getattr(judgement.decision, name) for name in SAID}
            answers.append(GameAnswer(**place, **said, preference=judgement.preference, stored=key not in asked))
        else:
            answers.append(GameAnswer(**place, error=failed.get(key, "it was not asked")))
    texts: dict[str, Any] = {f"output_{number}": one.texts for number, one in generated.items()}
    prompt_id = games[0][0].comparison.prompt_id
    return ComparisonAnswer(prompt_id=prompt_id, preference=preference_of(answers), games=answers, **texts)


def preference_of(games: Sequence[GameAnswer]) -> float | None:
    """The mean preference of one comparison over its turns and replicates, of those that have one in both orders: half
    a pair would carry the judge's position bias. None where there is none."""
    pairs: dict[tuple[int, int], dict[str, float]] = {}
    for game in games:
        if game.preference is not None:
            pairs.setdefault((game.turn, game.replicate), {})[game.order] = game.preference
    known = [fmean(pair.values()) for pair in pairs.values() if len(pair) == 2]
    return fmean(known) if known else None


def rates_of(judged: Sequence[Judged]) -> dict[str, Any] | None:
    """`scores` of what was judged; None where nothing has a preference: grades of single answers, no verdict at all."""
    pairs = pairs_of(judged)
    return None if all(map(math.isnan, pairs.preference)) else scores(pairs)


def total_cost(found: Mapping[str, Judgement]) -> float | None:
    """What all these judgements cost; None where a price is not known."""
    costs = [judgement.decision.cost for judgement in list(found.values())]  # it grows meanwhile
    return None if None in costs else sum(cost for cost in costs if cost is not None)

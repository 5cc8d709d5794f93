"""What annotations of many models come to: a tournament for ratings, and what two judges say of the same answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from posttrain.core.errors import RequestError
from posttrain.llm_judge.annotations import Annotations
from posttrain.llm_judge.statistics.bias import Agreement, agreement
from posttrain.llm_judge.statistics.bradley_terry import Tournament
from posttrain.llm_judge.statistics.style_control import Style, style

PEOPLE = "people"
"""What human labels are called beside the judges."""

Asked = tuple[str, str, frozenset[tuple[str, ...]]]
"""A prompt, what was asked, and two answers, whichever is A's."""


@dataclass(frozen=True)
class Agreed:
    """Two judges, or a judge and people, on the pairs of answers that both have an opinion on."""

    one: str
    other: str
    agreement: Agreement


def tournament_of(tables: Sequence[Annotations]) -> Tournament:
    """All comparisons of `tables`, which are one judge's. RequestError where a model has no name."""
    models_a: list[str] = []
    models_b: list[str] = []
    for table in tables:
        if table.generator_a is None or table.generator_b is None:
            raise RequestError(
                "ratings are of models, and some annotations do not name theirs (generator_1, generator_2)"
            )
        models_a += [table.generator_a] * len(table.answers_a)
        models_b += [table.generator_b] * len(table.answers_b)
    preference = np.concatenate([table.pairs.preference for table in tables])
    return Tournament(models_a, models_b, preference, [prompt for table in tables for prompt in table.pairs.prompts])


def styles_of(tables: Sequence[Annotations]) -> tuple[list[Style], list[Style]]:
    """The styles of A's and of B's answers, in the order of `tournament_of`."""
    of_a = [style(*answer) for table in tables for answer in table.answers_a]
    return of_a, [style(*answer) for table in tables for answer in table.answers_b]


def agreements(tables: Sequence[Annotations]) -> list[Agreed]:
    """Every two of the judges in `tables`, and each with people where there are labels, on the same two answers to the
    same prompt, whichever was called A. Several opinions of one judge on them count as their mean."""
    opinions: dict[str, dict[Asked, list[float]]] = {}
    for table in tables:
        pairs = table.pairs
        rows = zip(pairs.prompts, table.instructions, table.answers_a, table.answers_b, strict=True)
        for (prompt, asked, a, b), preference, human in zip(rows, pairs.preference, pairs.human, strict=True):
            key = prompt, asked, frozenset((a, b))
            swapped = a > b
            for who, value in ((table.annotator, float(preference)), (PEOPLE, float(human))):
                if a != b and not math.isnan(value):
                    opinions.setdefault(who, {}).setdefault(key, []).append(1 - value if swapped else value)
    return [_agreed(*two) for two in combinations(opinions.items(), 2) if two[0][1].keys() & two[1][1].keys()]


def _agreed(
    one: tuple[str, Mapping[Asked, Sequence[float]]], other: tuple[str, Mapping[Asked, Sequence[float]]]
) -> Agreed:
    both = [key for key in one[1] if key in other[1]]
    of_one, of_other = ([float(np.mean(said[1][key])) for key in both] for said in (one, other))
    return Agreed(one[0], other[0], agreement(of_one, of_other, [prompt for prompt, _, _ in both]))

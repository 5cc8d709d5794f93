"""MT-Bench: grades of single answers by category and turn, and pairs in which two orders that disagree are a tie.

Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena". The score of a model is the mean grade
over all turns. Both turns of a question hang together, so standard errors are clustered by prompt.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posttrain.llm_judge.statistics.estimates import IntervalEstimate, mean, of, verdicts
from posttrain.llm_judge.statistics.pairs import Floats, Pairs
from posttrain.llm_judge.statistics.win_rate import outcomes

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Breakdown:
    """A mean over all, by category, by turn, and by both; groups in the order in which they come."""

    overall: IntervalEstimate
    by_category: Mapping[str, IntervalEstimate]
    by_turn: Mapping[int, IntervalEstimate]
    by_category_and_turn: Mapping[tuple[str, int], IntervalEstimate]
    unparsed: int
    """Answers or pairs left out, without a grade or verdict."""


@dataclass(frozen=True)
class PairwiseScore:
    """The adjusted win rate of B, (wins + ties/2) / n, and what it is made of."""

    win_rate: Breakdown
    wins: int
    losses: int
    ties: int
    disagreements: int
    """Of the ties, those whose two orders said different things."""


def grades(
    values: ArrayLike,
    turns: Sequence[int],
    prompts: Sequence[str],
    categories: Sequence[str | None] = (),
    scale: tuple[float, float] = (1, 10),
) -> Breakdown:
    """Mean grades of one model from `values` (n,) between the ends of a `scale`, NaN without a grade.

    `turns` (n,) count from 1; `categories` (n,) or none, and None where an answer is in no category. ValueError for
    grades off the scale or unequal lengths.
    """
    x = np.asarray(values, dtype=float)
    low, high = scale
    if not ((x >= low) & (x <= high) | np.isnan(x)).all():
        raise ValueError(f"grades lie between {low:g} and {high:g}, not {x[(x < low) | (x > high)][0]:g}")
    return _breakdown(x, turns, prompts, categories)


def pairwise(pairs: Pairs, turns: Sequence[int] = ()) -> PairwiseScore:
    """B against A in both orders; `turns` (n,) say which turn was judged, by default all the first.

    ValueError where only one order was asked.
    """
    if pairs.second is None:
        raise ValueError("the verdicts of MT-Bench are those that survive a swap; these pairs have one order only")
    agreed = outcomes(pairs)
    known = ~np.isnan(agreed)
    broken = known & (verdicts(pairs.first) != verdicts(pairs.second))
    wins, losses, ties = (int((agreed == value).sum()) for value in (1, 0, 0.5))
    return PairwiseScore(
        win_rate=_breakdown(agreed, turns or [1] * len(agreed), pairs.prompts, pairs.categories),
        wins=wins,
        losses=losses,
        ties=ties,
        disagreements=int(broken.sum()),
    )


def _breakdown(
    values: Floats, turns: Sequence[int], prompts: Sequence[str], categories: Sequence[str | None]
) -> Breakdown:
    named = list(categories) or [None] * len(values)
    if not len(values) == len(turns) == len(prompts) == len(named):
        raise ValueError(
            f"{len(values)} values have {len(turns)} turns, {len(prompts)} prompts and {len(named)} categories"
        )
    known = ~np.isnan(values)

    def within(chosen: NDArray[np.bool_]) -> IntervalEstimate:
        return mean(values[chosen & known], of(prompts, chosen & known))

    def grouped(keys: Sequence[Key | None]) -> dict[Key, IntervalEstimate]:
        groups = dict.fromkeys(key for key in keys if key is not None)
        return {group: within(np.array([key == group for key in keys])) for group in groups}

    both = [None if category is None else (category, turn) for category, turn in zip(named, turns, strict=True)]
    return Breakdown(
        overall=within(known),
        by_category=grouped(named),
        by_turn=grouped(turns),
        by_category_and_turn=grouped(both),
        unparsed=int((~known).sum()),
    )

"""How often a reward model prefers the answer that people preferred.

Pure functions of two arrays of scores; training and reporting of reward models are the trainers'.
"""

import math
from collections.abc import Sequence


def pairwise_accuracy(chosen_scores: Sequence[float], rejected_scores: Sequence[float]) -> tuple[float, float]:
    """Mean over pairs of [chosen > rejected], a tie counting ½, and its standard error.

    Takes two sequences of n scores, pair by pair. The standard error is the sample deviation over √n (n − 1 in the
    deviation; for n = 1 it is nan: one pair says nothing of its spread). ValueError for no pairs, unequal lengths or
    a score that is not finite.
    """
    if len(chosen_scores) != len(rejected_scores) or not len(chosen_scores):
        raise ValueError(f"{len(chosen_scores)} chosen and {len(rejected_scores)} rejected scores do not make pairs")
    if not all(math.isfinite(score) for score in (*chosen_scores, *rejected_scores)):
        raise ValueError("a score is not finite")
    wins = [(c > r) + 0.5 * (c == r) for c, r in zip(chosen_scores, rejected_scores, strict=True)]
    n = len(wins)
    mean = math.fsum(wins) / n
    if n == 1:
        return mean, math.nan
    variance = math.fsum((win - mean) ** 2 for win in wins) / (n - 1)
    return mean, math.sqrt(variance / n)

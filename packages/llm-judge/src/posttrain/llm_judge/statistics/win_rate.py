"""How often B's answers are preferred to A's: the rate with its standard error, and counted in wins and losses.

Comparisons without a verdict are in none of it; the bias report counts them.
"""

import math
from dataclasses import dataclass

import numpy as np

from posttrain.core.statistics import mean_and_se
from posttrain.llm_judge.statistics.estimates import IntervalEstimate, mean, of, verdicts
from posttrain.llm_judge.statistics.pairs import Floats, Pairs


@dataclass(frozen=True)
class WinRate:
    """B's win rate over A, between 0 and 1, ties counting half."""

    rate: IntervalEstimate
    """Mean preference, with the standard error that is robust to comparisons of one prompt; NaN where all are of one
    prompt. Equal to `independent_error` where each prompt occurs once."""
    independent_error: float
    """s / √n, s² with n − 1, as if all comparisons were independent: what AlpacaEval prints. NaN for n = 1."""
    wins: int
    losses: int
    draws: int
    """Neither; with two orders also the pairs whose orders disagree."""

    @property
    def discrete(self) -> float:
        """(wins + draws / 2) / n."""
        return (self.wins + self.draws / 2) / self.rate.n


def win_rate(pairs: Pairs) -> WinRate:
    """The win rate over the pairs that have a preference; ValueError where none has."""
    judged = ~np.isnan(pairs.preference)
    if not judged.any():
        raise ValueError("no comparison has a verdict in all the orders that were asked")
    preference, outcome = pairs.preference[judged], outcomes(pairs)[judged]
    return WinRate(
        rate=mean(preference, of(pairs.prompts, judged)),
        independent_error=mean_and_se(preference).standard_error if len(preference) > 1 else math.nan,
        wins=int((outcome == 1).sum()),
        losses=int((outcome == 0).sum()),
        draws=int((outcome == 0.5).sum()),
    )


def outcomes(pairs: Pairs) -> Floats:
    """(n,) 1: B wins, 0: A wins, ½: a draw, NaN: no preference. An order says B above ½, A below and neither at it;
    two orders have to say the same."""
    first = verdicts(pairs.first)
    if pairs.second is None:
        return first
    both = np.where(first == verdicts(pairs.second), first, 0.5)
    return np.where(np.isnan(pairs.preference), np.nan, both)

"""What n prompts can show: the smallest win rate that is told from 50 %, and how many prompts a given one takes.

Two-sided 5 % and power 80 %, in the normal approximation, on the mathematics of `posttrain.core.statistics`. The spread
that matters is that of a prompt's preference. It is never more than ½, that of a judge who always takes sides, which
is what to plan with before anything was judged; ties and both orders make it less.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil, isclose, sqrt

import numpy as np
from numpy.typing import ArrayLike

from posttrain.core.statistics import clustered_mean, items_needed, minimum_detectable_effect

LARGEST_SPREAD = 0.5
"""Standard deviation of a fair coin: no value in [0, 1] of mean ½ varies more."""
MOST = 0.5
"""The difference from ½ of a win rate of 0 or 1."""


@dataclass(frozen=True)
class Sensitivity:
    """What a comparison could have shown, from the spread that it had."""

    prompts: int
    standard_deviation: float
    """Of a prompt's preference."""
    difference: float
    """From ½, found in four of five such comparisons."""
    prompts_needed: int | None
    """To find the observed difference with that power; None where the rate is ½."""

    @property
    def sentence(self) -> str:
        """For under a rate."""
        if isclose(self.standard_deviation, 0, abs_tol=1e-9):
            return (
                f"All of these {self.prompts:,} prompts have the same preference: without a spread nothing is known of "
                "what so many can show. It takes prompts that differ."
            )
        if self.difference > MOST:
            return (
                f"With {self.prompts:,} prompts no true win rate, not even 100 %, would be found in four of five such "
                f"comparisons (two-sided 5 %). It takes {prompts_needed(MOST, self.standard_deviation):,} at least."
            )
        found = (
            f"With {self.prompts:,} prompts a true win rate {100 * self.difference:.1f} points from 50 % would be "
            "found in four of five such comparisons (two-sided 5 %), a smaller difference is missed more often."
        )
        if self.prompts_needed is None:
            return found
        return f"{found} To find the one observed takes {self.prompts_needed:,}."


def detectable_difference(prompts: int, standard_deviation: float = LARGEST_SPREAD) -> float:
    """The difference from ½ that `prompts` show with 80 % power. ValueError for fewer than one prompt."""
    if prompts < 1:
        raise ValueError(f"{prompts} prompts show nothing")
    return minimum_detectable_effect(prompts, standard_deviation)


def prompts_needed(difference: float, standard_deviation: float = LARGEST_SPREAD) -> int:
    """Prompts that show a `difference` from ½, of either sign. ValueError for none, which no number can show."""
    return max(1, ceil(items_needed(difference, standard_deviation)))


def sensitivity(preference: ArrayLike, prompts: Sequence[Hashable]) -> Sensitivity:
    """From the observed `preference` (n,), P(B is better), in `prompts` (n,), values without a verdict left out.

    Several comparisons of one prompt count as the clustered standard error says. ValueError for fewer than two prompts.
    """
    x = np.asarray(preference, dtype=float)
    known = ~np.isnan(x)
    clusters = [prompt for prompt, taken in zip(prompts, known, strict=True) if taken]
    estimate, count = clustered_mean(x[known], clusters), len(set(clusters))
    deviation, observed = estimate.standard_error * sqrt(count), estimate.value - 0.5
    needed = prompts_needed(observed, deviation) if observed else None
    return Sensitivity(count, deviation, detectable_difference(count, deviation), needed)

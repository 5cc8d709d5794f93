"""How large a difference the items at hand can show, and how many items a difference would need.

Two-sided 5 % and power 80 % unless said otherwise, in the normal approximation: a difference of
(z_{1−α/2} + z_{power}) standard errors is found with that power. Takes no account of correction for other comparisons,
which only raises what it says.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from posttrain.core.statistics.clustered import ROUNDING, paired_difference

ALPHA, POWER = 0.05, 0.8

# The fewest discordant items that an exact McNemar test can find significant at 5 %, all of them on one side:
# 2 · 2⁻⁶ = 0.031, while five give 0.0625.
FEWEST_DISCORDANT = 6


def minimum_detectable_effect(
    n: float, standard_deviation: float, *, alpha: float = ALPHA, power: float = POWER
) -> float:
    """The difference that `n` items show with the given power, in the unit of the scores.

    `standard_deviation` is that of the paired differences of single items. For right-or-wrong items it is √ψ under the
    null hypothesis, ψ being the share of discordant items (McNemar's variance; Connor 1987).
    """
    return _quantiles(alpha, power) * standard_deviation / sqrt(n)


def items_needed(effect: float, standard_deviation: float, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """The inverse of `minimum_detectable_effect`: items for an effect, of either sign; not rounded.

    ValueError for an effect of zero, which no number of items can show.
    """
    if effect == 0:
        raise ValueError("no number of items can show a difference of zero")
    return (_quantiles(alpha, power) * standard_deviation / abs(effect)) ** 2


@dataclass(frozen=True)
class Sensitivity:
    """What the items of one comparison could have shown, whatever they did show."""

    items: int
    pairs: int
    """More than items where each was answered with several seeds."""
    discordant: float | None
    """Share of the pairs on which the two methods differ; None where scores are not right or wrong."""
    standard_deviation: float
    """Of one item's difference, its pairs averaged."""
    effect: float | None
    """The minimum detectable effect, in the unit of the scores; None where the items have no spread to tell it from."""

    @property
    def sentence(self) -> str:
        """For under a table: what cannot be told from noise here."""
        of = f" in {self.pairs:,} pairs" if self.pairs > self.items else ""
        if self.discordant is not None:
            which = "the pairs" if of else "them"
            spread = f"{100 * self.discordant:.1f}".removesuffix(".0") + f" % of {which} discordant"
        else:
            spread = f"a standard deviation of {self.standard_deviation:.3g} of their differences"
        start = f"With {self.items:,} items{of} and {spread}, "
        if self.effect is None:
            return f"{start}there is no noise to compare with: all items moved alike."
        size = f"{100 * self.effect:.1f} points" if self.discordant is not None else f"{self.effect:.3g}"
        return f"{start}a difference below {size} cannot be told from noise (two-sided 5 %, power 80 %)."


def sensitivity(after: ArrayLike, before: ArrayLike, items: Sequence[Hashable]) -> Sensitivity:
    """The minimum detectable effect from the observed spread of `after − before`, each (n,), clustered by item.

    One right-or-wrong answer an item: from the share of discordant items, taken as at least 6 of them, since no test
    can find fewer significant. Otherwise, and for several seeds an item: from the standard deviation of an item's
    difference, as the clustered standard error has it. ValueError as `paired_difference` raises it.
    """
    a, b = np.asarray(after, dtype=float), np.asarray(before, dtype=float)
    compared = paired_difference(a, b, items)
    binary = bool(np.isin([a, b], (0, 1)).all())
    discordant = float((a != b).mean()) if binary else None
    if discordant is not None and compared.n == compared.clusters:
        deviation = sqrt(max(discordant, min(1.0, FEWEST_DISCORDANT / compared.n)))
    else:
        deviation = compared.standard_error * sqrt(compared.clusters)
    flat = not deviation > ROUNDING * float(np.abs(a - b).max())
    effect = None if flat else minimum_detectable_effect(compared.clusters, deviation)
    return Sensitivity(compared.clusters, compared.n, discordant, deviation, effect)


def _quantiles(alpha: float, power: float) -> float:
    """z_{1−α/2} + z_{power}; 2.80 at 5 % and 80 %."""
    if not (0 < alpha < 1 and 0 < power < 1):
        raise ValueError(f"alpha {alpha} and power {power} lie between 0 and 1")
    return float(ndtri(1 - alpha / 2) + ndtri(power))

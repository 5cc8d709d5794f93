"""What can be said of two published accuracies when only they and the number of items are known.

The per-item answers are not published, so the two rows are tested as if they came from different items. A paired test
would be sharper if the methods tend to be right on the same items, as they usually are, and duller if not; from the
margins alone it cannot be done, and only bounds on it are given.
"""

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Literal

from scipy.special import ndtr, ndtri

from posttrain.core.statistics.power import ALPHA, POWER

Kind = Literal["binary", "mean"]


@dataclass(frozen=True)
class PublishedDifference:
    """`after − before` of two published accuracies on `n` items each, unpaired."""

    value: float
    standard_error: float
    """Under no difference. For kind `mean` an upper bound: no scores in [0, 1] of that mean vary more."""
    n: int
    p_value: float
    """Two-sided, uncorrected."""
    interval: tuple[float, float]
    """95 %, Newcombe's."""
    items_needed: int | None
    """Items that an unpaired comparison needs to find the observed difference (two-sided 5 %, power 80 %); None for no
    difference."""
    best_paired_p: float | None
    """The exact McNemar p of the most favourable pairing, in which no item moves against the difference: no paired test
    of the same items can give less. None for kind `mean`."""
    discordance_limit: float | None
    """The largest share of discordant items with which a paired test would still find the difference at 5 %. None if
    even the most favourable pairing would not, and for kind `mean`."""


def unpaired_difference(after: float, before: float, n: int, kind: Kind = "binary") -> PublishedDifference:
    """Test, interval and sample size of two accuracies in [0, 1], each the mean over `n` items.

    Kind `binary`: items are right or wrong, variance p(1 − p). Kind `mean`: an item's score lies anywhere in [0, 1]
    (TruthfulQA mc2), where m(1 − m) is the largest variance that a mean of m leaves (Bhatia and Davis 2000), so that p
    is an upper bound. The test is the pooled z-test, the interval Newcombe's (1998, method 10), the sample size that of
    Fleiss, Levin and Paik (2003, chapter 4) without continuity correction. ValueError for accuracies outside [0, 1] or
    fewer than two items.
    """
    # statsmodels takes most of a second to import, and only an audit needs it here.
    from statsmodels.stats.proportion import confint_proportions_2indep

    if not (0 <= after <= 1 and 0 <= before <= 1) or n < 2:
        raise ValueError(f"accuracies {after} and {before} on {n} items: they lie in [0, 1], on two items or more")
    value, pooled = after - before, (after + before) / 2
    null_variance = 2 * pooled * (1 - pooled)
    standard_error = sqrt(null_variance / n)
    p_value = float(2 * ndtr(-abs(value) / standard_error)) if standard_error else 1.0
    low, high = confint_proportions_2indep(after * n, n, before * n, n, method="newcomb")
    needed = None
    if value:
        spread = ndtri(1 - ALPHA / 2) * sqrt(null_variance)
        spread += ndtri(POWER) * sqrt(after * (1 - after) + before * (1 - before))
        needed = ceil((spread / value) ** 2)
    best, limit = _paired_bounds(value, n) if kind == "binary" else (None, None)
    return PublishedDifference(value, standard_error, n, p_value, (float(low), float(high)), needed, best, limit)


def _paired_bounds(value: float, n: int) -> tuple[float, float | None]:
    """The p-value of the most favourable pairing, and the largest discordant share that leaves significance.

    The margins fix the net number of items that moved, k = n · |value|, so at least k are discordant. If exactly k are,
    all on one side, McNemar's exact p is 2 · 2⁻ᵏ. With d discordant items z² = k² / d, hence d ≤ k² / z²_{1−α/2}.
    """
    moved = round(n * abs(value))
    best = min(1.0, 2.0 ** (1 - moved))
    if best >= ALPHA:
        return best, None
    return best, min(1.0, moved**2 / float(ndtri(1 - ALPHA / 2)) ** 2 / n)

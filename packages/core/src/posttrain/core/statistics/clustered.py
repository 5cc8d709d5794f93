"""Means with standard errors, and paired, item-clustered differences of two methods with interval and p-value.

The house's definition of a difference: the mean over items of the paired difference, seeds pooled, clustered by item.
Uncertainty is that of the items. What the training seed moves on all items at once is not in the standard error: three
seeds are three, and their spread is shown beside it.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95

# Differences that are equal but for rounding have no spread: a standard error this far below them is arithmetic.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error, and the number of values (for differences: of pairs)."""

    value: float
    standard_error: float
    n: int

    @property
    def beyond_noise(self) -> bool:
        """Whether it lies more than two standard errors from zero."""
        return abs(self.value) > 2 * self.standard_error


@dataclass(frozen=True)
class Comparison(Estimate):
    """A paired difference of two methods, `after − before`, and what the items say about it."""

    clusters: int
    """Items: the number of independent pieces of evidence, however many seeds each was answered with."""
    p_value: float
    """Two-sided, of no difference, before any correction for other comparisons."""
    interval: tuple[float, float]
    """95 %."""


def mean_and_se(values: ArrayLike) -> Estimate:
    """Mean of `values` (n,), with standard error s / √n, s² with n − 1; ValueError for fewer than two values."""
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"a standard error needs at least two values in one dimension, not shape {x.shape}")
    return Estimate(float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))), len(x))


def clustered_mean(values: ArrayLike, items: Sequence[Hashable]) -> Estimate:
    """Mean of `values` (n,) with the standard error that is robust to clusters of equal `items` (n,).

    With r the deviations from the mean and G items, √(G/(G−1) · Σ_items (Σ_item r)²) / n: the sandwich estimator (Liang
    and Zeger 1986) of a regression on a constant, with the usual small-sample factor. With one value an item this is
    s / √n, s² with n − 1; several (seeds, or instructions of one prompt) may depend on each other in any way.
    ValueError on unequal lengths or fewer than two items.
    """
    x, numbers, clusters = _clusters(values, items)
    sums = np.bincount(numbers, weights=x - x.mean())
    variance = clusters / (clusters - 1) * float(sums @ sums)
    return Estimate(float(x.mean()), float(np.sqrt(variance)) / len(x), len(x))


def paired_difference(after: ArrayLike, before: ArrayLike, items: Sequence[Hashable]) -> Comparison:
    """Mean of `after − before`, each (n,), clustered by item as `clustered_mean` says, seeds pooled.

    p-value and interval are those of Student's t with G − 1 degrees of freedom for G items: the variance is estimated
    from G sums, and with few of them the normal distribution would promise too much (Cameron and Miller 2015, section
    VI). Where items do not differ from each other there is no t. If none moved, p is 1. If every one moved by the same
    amount, p is 2^(1−G), the chance that G fair coins fall alike: what a test that flips the signs of items can say at
    best, where division by zero would give p = 0 from two items. The interval is then a point. NaN among the values
    gives NaN, never a p-value. ValueError on unequal lengths or fewer than two items.
    """
    a, b = np.asarray(after, dtype=float), np.asarray(before, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} values after do not pair with {b.shape} before")
    estimate = clustered_mean(a - b, items)
    clusters = len(set(items))
    value, se = estimate.value, estimate.standard_error
    rounding = ROUNDING * float(np.abs(a - b).max())
    if se <= rounding:
        p_value = 1.0 if abs(value) <= rounding else 2.0 ** (1 - clusters)
    else:
        p_value = float(2 * stdtr(clusters - 1, -abs(value) / se))
    margin = float(stdtrit(clusters - 1, (1 + CONFIDENCE) / 2)) * se
    return Comparison(value, se, estimate.n, clusters, p_value, (value - margin, value + margin))


def _clusters(values: ArrayLike, items: Sequence[Hashable]) -> tuple[NDArray[Any], NDArray[Any], int]:
    """`values` as numbers (n,), the number of each one's item (n,), and how many items there are."""
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) != len(items):
        raise ValueError(f"values of shape {x.shape} do not match {len(items)} items")
    places: dict[Hashable, int] = {}
    numbers = np.array([places.setdefault(item, len(places)) for item in items], dtype=np.intp)
    if len(places) < 2:
        raise ValueError("a clustered mean needs at least two items")
    return x, numbers, len(places)

"""Means with standard errors, and paired, item-clustered differences of two methods.

Pure functions of arrays, in the definitions of the house: a difference is the mean over items of the paired
difference, seeds pooled, clustered by item, with the cluster-robust standard error.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import statsmodels.api as sm
from numpy.typing import ArrayLike


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


def mean_and_se(values: ArrayLike) -> Estimate:
    """Mean of `values` (n,), with standard error s / √n, s² with n − 1; ValueError for fewer than two values."""
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"a standard error needs at least two values in one dimension, not shape {x.shape}")
    return Estimate(float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))), len(x))


def clustered_mean(values: ArrayLike, items: Sequence[str]) -> Estimate:
    """Mean of `values` (n,) with the standard error that is robust to clusters of equal `items` (n,).

    With one value an item this is s / √n, s² with n − 1. With several (seeds, or instructions of one prompt) they may
    depend on each other, which the sandwich estimator (Liang and Zeger 1986, with the usual small-sample factor)
    allows for. ValueError on unequal lengths or fewer than two items.
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) != len(items):
        raise ValueError(f"values of shape {x.shape} do not match {len(items)} items")
    _, clusters = np.unique(np.asarray(items), return_inverse=True)
    if clusters.max(initial=0) < 1:
        raise ValueError("a clustered mean needs at least two items")
    fit = sm.OLS(x, np.ones(len(x))).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    return Estimate(float(fit.params[0]), float(fit.bse[0]), len(x))


def paired_difference(after: ArrayLike, before: ArrayLike, items: Sequence[str]) -> Estimate:
    """Mean of `after − before`, each (n,), clustered by item as `clustered_mean` says.

    ValueError on unequal lengths or fewer than two items.
    """
    a, b = np.asarray(after, dtype=float), np.asarray(before, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} values after do not pair with {b.shape} before")
    return clustered_mean(a - b, items)

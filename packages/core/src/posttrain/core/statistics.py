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


def paired_difference(after: ArrayLike, before: ArrayLike, items: Sequence[str]) -> Estimate:
    """Mean of `after − before`, each (n,), with the standard error that is robust to clusters of equal `items`.

    With one pair an item this is s / √n of the differences, s² with n − 1. With several seeds an item appears once a
    seed: errors of one item may then depend on each other, which the sandwich estimator (Liang and Zeger 1986, with
    the usual small-sample factor) allows for. ValueError on unequal lengths or fewer than two items.
    """
    differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    if differences.ndim != 1 or len(differences) != len(items):
        raise ValueError(f"{differences.shape} differences do not match {len(items)} items")
    _, clusters = np.unique(np.asarray(items), return_inverse=True)
    if clusters.max(initial=0) < 1:
        raise ValueError("a paired difference needs at least two items")
    fit = sm.OLS(differences, np.ones(len(differences))).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    return Estimate(float(fit.params[0]), float(fit.bse[0]), len(differences))

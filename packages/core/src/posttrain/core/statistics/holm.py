"""Holm's correction: p-values that stay honest when a table asks many questions at once."""

from collections.abc import Mapping

import numpy as np


def holm(family: Mapping[str, float]) -> dict[str, float]:
    """The adjusted p-value of every comparison in `family`, in its order (Holm 1979).

    The k-th smallest of m becomes the largest of (m − j + 1) · p_(j) over j ≤ k, at most 1: monotone in p, never below
    it, never above Bonferroni's m · p. Comparing the results with 0.05 bounds the chance of any false positive in the
    whole family by 5 %, however its members depend on each other.

    NaN, a comparison that could not be made, stays NaN and still counts as a member: leaving it out would make the
    others look better for its failure. ValueError for a p-value outside 0 to 1, by name.
    """
    for name, p in family.items():
        if not (np.isnan(p) or 0 <= p <= 1):
            raise ValueError(f"the p-value of '{name}' is {p}; p-values lie between 0 and 1")
    p_values = np.array(list(family.values()), dtype=float)
    missing = np.isnan(p_values)
    counted = np.where(missing, 1.0, p_values)
    ascending = np.argsort(counted, kind="stable")
    steps = np.arange(len(family), 0, -1) * counted[ascending]
    adjusted = np.empty(len(family))
    adjusted[ascending] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return {name: float(p) for name, p in zip(family, np.where(missing, np.nan, adjusted), strict=True)}

"""What the best of n samples is worth, estimated without bias from N >= n scored samples; and how far it is from the
policy that sampled them.

Of every subset of n of the N samples, the one with the highest score is taken; the estimate is the mean of its value
over all C(N, n) subsets (a U-statistic, so unbiased, and of less variance than cutting the samples into N / n groups).
In ascending order of score the sample of rank i is the best of C(i − 1, n − 1) subsets, hence a weighted sum (Hilton
and Gao 2022, "Measuring Goodhart's law"; Nakano et al. 2021, WebGPT). Pure functions of arrays.
"""

import math

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike


def best_of_n_weights(scores: ArrayLike, n: int) -> Float[np.ndarray, " N"]:
    """For each of N samples the share of subsets of `n` that it is the best of; they sum to 1.

    Equal scores share their weights equally, which is what a coin toss among the best of each subset gives on average.
    −∞ is a score: such a sample is the best only among its like. ValueError for NaN, or n outside 1 … N.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise ValueError(f"scores must be numbers in one dimension, not {scores}")
    of_rank = _rank_weights(len(scores), n)
    _, tied_with, count = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    shared = np.array([of_rank[end - size : end].mean() for end, size in zip(last, count, strict=True)])
    return shared[tied_with]


def best_of_n(scores: ArrayLike, values: ArrayLike, n: int) -> float:
    """Unbiased estimate of the expected value of the best of `n` samples, from N samples' `scores` and `values` (N,).

    The values are whatever is asked of the chosen sample: its score itself, or what a truer judge gives it.
    """
    values = np.asarray(values, dtype=float)
    if values.shape != np.shape(scores):
        raise ValueError(f"{np.shape(scores)} scores and {values.shape} values; each sample needs one of both")
    return float(best_of_n_weights(scores, n) @ values)


def best_of_n_kl(n: int) -> float:
    """ln n − (n − 1)/n, in nats a sequence: KL of the best of `n` samples from the policy that sampled them.

    Exact as long as no two samples are alike in score, as for a policy over ever so many answers; in general an upper
    bound, and a loose one where a few answers have most of the probability (Beirami et al. 2024, "Theoretical
    guarantees on the best-of-n alignment policy"). The samples must be the policy's own, at temperature 1.
    """
    if n < 1:
        raise ValueError(f"the best of {n} samples does not exist; n is at least 1")
    return math.log(n) - (n - 1) / n


def _rank_weights(total: int, n: int) -> Float[np.ndarray, " N"]:
    """C(i − 1, n − 1) / C(N, n) for rank i = 1 … N, downwards from n / N by quotients: no factorial is ever formed."""
    if not 1 <= n <= total:
        raise ValueError(f"the best of {n} cannot be estimated from {total} samples; n is between 1 and that")
    ranks = np.arange(total, 1, -1)
    quotients = np.maximum(ranks - n, 0) / (ranks - 1)
    return n / total * np.concatenate([[1.0], np.cumprod(quotients)])[::-1]

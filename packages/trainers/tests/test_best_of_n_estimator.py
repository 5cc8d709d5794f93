"""The best of n samples from N of them: by hand, against all subsets, at its ends, with ties, for large N."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.trainers.best_of_n_estimator import best_of_n, best_of_n_kl, best_of_n_weights

finite = st.floats(-100, 100)
levels = st.sampled_from([-math.inf, 0.0, 1.0, 2.0])  # few levels: ties are the rule
samples = st.lists(st.tuples(levels | finite, finite), min_size=1, max_size=8)


def over_all_subsets(scores, values, n):
    """The definition: of each subset the value of the best one, the mean of the values of several best ones."""
    chosen = []
    for subset in combinations(range(len(scores)), n):
        best = max(scores[i] for i in subset)
        of_best = [values[i] for i in subset if scores[i] == best]
        chosen.append(sum(of_best) / len(of_best))
    return sum(chosen) / len(chosen)


@given(samples, st.data())
def test_the_estimate_is_the_mean_over_all_subsets(rows, data):
    scores, values = [s for s, _ in rows], [v for _, v in rows]
    n = data.draw(st.integers(1, len(rows)))
    assert best_of_n(scores, values, n) == pytest.approx(over_all_subsets(scores, values, n), abs=1e-9)


def test_three_samples_by_hand():
    # Pairs of scores 1 < 2 < 3: {1,2} gives 20, {1,3} and {2,3} give 60. Order of the samples is of no matter.
    assert best_of_n([3, 1, 2], [60, 10, 20], 2) == pytest.approx((20 + 60 + 60) / 3)
    assert best_of_n_weights([3, 1, 2], 2) == pytest.approx([2 / 3, 0, 1 / 3])


def test_ties_by_hand():
    # Pairs of scores 1, 2, 2: the two with the 1 give 20 and 60, the third is a coin toss between them.
    assert best_of_n_weights([1, 2, 2], 2) == pytest.approx([0, 1 / 2, 1 / 2])
    assert best_of_n([1, 2, 2], [10, 20, 60], 2) == pytest.approx(40)


@given(samples)
def test_the_best_of_one_is_the_mean(rows):
    scores, values = zip(*rows, strict=True)
    assert best_of_n(scores, values, 1) == pytest.approx(np.mean(values), abs=1e-9)


def test_the_best_of_all_is_the_value_of_the_highest_score():
    assert best_of_n([0.1, 0.9, 0.5], [7, -3, 5], 3) == -3


@given(samples, st.data())
def test_weights_are_a_distribution_in_which_equal_scores_have_equal_shares_and_higher_ones_no_less(rows, data):
    scores = [s for s, _ in rows]
    weights = best_of_n_weights(scores, data.draw(st.integers(1, len(rows))))
    assert weights.sum() == pytest.approx(1)
    for a, weight in zip(scores, weights, strict=True):
        for b, other in zip(scores, weights, strict=True):
            assert a != b or weight == other
            assert a >= b or weight <= other + 1e-12


def test_the_estimate_is_unbiased():
    # Scores and values of a die of four sides; all 4³ triples of rolls are equally likely.
    value = [5.0, 0.0, 1.0, 2.0]
    rolls = [(a, b, c) for a in range(4) for b in range(4) for c in range(4)]
    estimates = [best_of_n(roll, [value[side] for side in roll], 2) for roll in rolls]
    truth = sum(value[max(a, b)] for a in range(4) for b in range(4)) / 16
    assert np.mean(estimates) == pytest.approx(truth)


@pytest.mark.parametrize("n", [1, 2, 100, 2500, 4999, 5000])
def test_thousands_of_samples_overflow_nowhere(n):
    scores = np.arange(5000.0)
    weights = best_of_n_weights(scores, n)
    assert np.isfinite(weights).all()
    assert weights.sum() == pytest.approx(1)
    # The expected highest rank of n out of N is n (N + 1) / (n + 1).
    assert best_of_n(scores + 1, scores + 1, n) == pytest.approx(n * 5001 / (n + 1))


def test_kl_by_hand():
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(2) == pytest.approx(0.193147, abs=1e-6)
    assert best_of_n_kl(16) == pytest.approx(4 * math.log(2) - 15 / 16)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 20))
def test_kl_bounds_that_of_any_policy_over_a_few_answers(odds, n):
    # Answer k is the better the higher k: the best of n is k with probability F(k)ⁿ − F(k − 1)ⁿ.
    p = np.array(odds) / sum(odds)
    below = np.concatenate([[0.0], np.cumsum(p)])
    best = below[1:] ** n - below[:-1] ** n
    kl = sum(q * math.log(q / policy) for q, policy in zip(best, p, strict=True) if q > 0)
    assert kl <= best_of_n_kl(n) + 1e-9


def test_kl_is_exact_in_the_limit_of_many_answers():
    p = np.full(200_000, 1 / 200_000)
    below = np.concatenate([[0.0], np.cumsum(p)])
    best = np.clip(below[1:] ** 4 - below[:-1] ** 4, 1e-300, None)
    assert float((best * np.log(best / p)).sum()) == pytest.approx(best_of_n_kl(4), abs=1e-4)


def test_wrong_requests_are_told():
    with pytest.raises(ValueError, match="best of 4 cannot be estimated from 3"):
        best_of_n_weights([1, 2, 3], 4)
    with pytest.raises(ValueError, match="best of 0 cannot"):
        best_of_n_weights([1, 2, 3], 0)
    with pytest.raises(ValueError, match="numbers in one dimension"):
        best_of_n_weights([1, math.nan], 1)
    with pytest.raises(ValueError, match="each sample needs one of both"):
        best_of_n([1, 2], [1], 1)
    with pytest.raises(ValueError, match="at least 1"):
        best_of_n_kl(0)

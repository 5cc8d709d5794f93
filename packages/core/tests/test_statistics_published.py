"""Published accuracies: what their margins can and cannot say."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportions_ztest

from posttrain.core.statistics import mcnemar, unpaired_difference

accuracies = st.floats(0.01, 0.99)


def test_difference_by_hand():
    # 60 % against 50 % of 200: pooled 0.55, standard error √(2·0.55·0.45/200) = 0.04975, z = 2.010, p = 0.0444.
    seen = unpaired_difference(0.6, 0.5, 200)
    assert seen.standard_error == pytest.approx(0.04975, abs=1e-5)
    assert seen.p_value == pytest.approx(0.0444, abs=1e-4)
    # (1.95996·√0.495 + 0.84162·√(0.24 + 0.25))² / 0.01 = (1.37896 + 0.58913)² / 0.01 = 387.3: the textbook's 388.
    assert seen.items_needed == 388


def test_interval_combines_the_wilson_limits_of_both_rows():
    # Newcombe 1998, method 10: each row's distance to its Wilson limit, added as squares.
    def wilson(p: float, n: int) -> tuple[float, float]:
        z = 1.959964
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)

    (low1, high1), (low2, high2) = wilson(0.8, 70), wilson(0.6, 70)
    expected = (0.2 - math.hypot(0.8 - low1, high2 - 0.6), 0.2 + math.hypot(high1 - 0.8, 0.6 - low2))
    assert unpaired_difference(0.8, 0.6, 70).interval == pytest.approx(expected, abs=1e-6)


@given(accuracies, accuracies, st.integers(2, 20_000))
@settings(deadline=None, max_examples=40)
def test_test_is_that_of_statsmodels(after, before, n):
    _, p = proportions_ztest([after * n, before * n], [n, n])
    assert unpaired_difference(after, before, n).p_value == pytest.approx(p, abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50))
@settings(deadline=None, max_examples=50)
def test_no_scores_between_zero_and_one_vary_more_than_right_or_wrong_ones(scores):
    mean = float(np.mean(scores))
    assert np.var(scores) <= mean * (1 - mean) + 1e-12


def test_sample_size_finds_the_difference_in_four_of_five_comparisons():
    rng = np.random.default_rng(31)
    n = unpaired_difference(0.35, 0.30, 500).items_needed
    after, before = rng.binomial(n, [[0.35], [0.30]], size=(2, 3000)) / n
    pooled = (after + before) / 2
    found = np.abs(after - before) > 1.959964 * np.sqrt(2 * pooled * (1 - pooled) / n)
    assert 0.77 <= found.mean() <= 0.83


def test_most_favourable_pairing_is_mcnemar_with_every_item_on_one_side():
    seen = unpaired_difference(0.34, 0.33, 1000)
    after, before = np.zeros(1000), np.zeros(1000)
    after[:10] = 1
    assert seen.best_paired_p == pytest.approx(mcnemar(after, before).exact)


def test_discordance_limit_is_where_mcnemar_turns():
    # 14 of 1,319 items: z² = 14²/d ≥ 3.8415 for d ≤ 51.02, which is 3.87 % of the items.
    seen = unpaired_difference(0.3389 + 14 / 1319, 0.3389, 1319)
    assert seen.discordance_limit == pytest.approx(196 / 3.8415 / 1319, rel=1e-4)
    assert (196 / 51) ** 0.5 > 1.96 > (196 / 52) ** 0.5


def test_two_items_are_too_few_for_any_pairing():
    seen = unpaired_difference(69 / 541, 67 / 541, 541)
    assert (seen.best_paired_p, seen.discordance_limit) == (0.5, None)


def test_equal_accuracies_need_no_number_of_items():
    seen = unpaired_difference(0.5, 0.5, 100)
    assert (seen.value, seen.p_value, seen.items_needed, seen.best_paired_p) == (0, 1, None, 1)


def test_nothing_right_on_either_side_tells_nothing():
    seen = unpaired_difference(0.0, 0.0, 100)
    assert seen.p_value == 1
    assert seen.interval[1] > 0.03, "none of 100 right leaves room for a few percent"


def test_means_have_no_bound_by_pairing():
    seen = unpaired_difference(0.39, 0.40, 817, "mean")
    assert (seen.best_paired_p, seen.discordance_limit) == (None, None)


@pytest.mark.parametrize(("after", "n"), [(48.1, 100), (-0.1, 100), (0.5, 1)])
def test_what_is_no_accuracy_is_refused(after, n):
    with pytest.raises(ValueError, match="they lie in"):
        unpaired_difference(after, 0.5, n)

"""The paired, clustered comparison of two methods: against plain loops, statsmodels and numbers derived by hand."""

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.statistics import clustered_mean, paired_difference

scores = st.floats(-10, 10)
pairs = st.lists(st.tuples(st.integers(0, 5), scores, scores), min_size=4, max_size=40).filter(
    lambda rows: len({row[0] for row in rows}) > 1
)


def test_comparison_by_hand():
    # Differences 1, 0, 1, 0: mean ½, s² = 1/3, standard error √(1/12) = 0.2887, t = √3 with 3 degrees of freedom.
    # The t distribution with 3 degrees of freedom has P(T > √3) = ½ − (arctan 1 + ½)/π = ¼ − 1/(2π).
    compared = paired_difference([1, 1, 1, 0], [0, 1, 0, 0], ["a", "b", "c", "d"])
    assert (compared.value, compared.n, compared.clusters) == (0.5, 4, 4)
    assert compared.standard_error == pytest.approx(math.sqrt(1 / 12))
    assert compared.p_value == pytest.approx(0.5 - 1 / math.pi)
    # The 97.5 % quantile of that distribution is 3.182 in every table.
    assert compared.interval == pytest.approx((0.5 - 3.1824 / math.sqrt(12), 0.5 + 3.1824 / math.sqrt(12)), abs=1e-4)


@given(pairs)
@settings(deadline=None, max_examples=50)
def test_pooled_difference_is_the_plain_loop(rows):
    items = [str(row[0]) for row in rows]
    compared = paired_difference([row[1] for row in rows], [row[2] for row in rows], items)
    mean = sum(after - before for _, after, before in rows) / len(rows)
    squares = 0.0
    for item in set(items):
        squares += sum(row[1] - row[2] - mean for row in rows if str(row[0]) == item) ** 2
    clusters = len(set(items))
    assert compared.value == pytest.approx(mean, abs=1e-9)
    assert compared.standard_error == pytest.approx(
        math.sqrt(clusters / (clusters - 1) * squares) / len(rows), abs=1e-9
    )
    assert (compared.n, compared.clusters) == (len(rows), clusters)


@given(pairs)
@settings(deadline=None, max_examples=50)
def test_closed_form_is_the_sandwich_of_statsmodels(rows):
    groups, values = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": groups})
    assert clustered_mean(values, list(groups)).standard_error == pytest.approx(float(fit.bse[0]), abs=1e-9)


def test_p_value_and_interval_are_those_of_statsmodels_with_t():
    rng = np.random.default_rng(3)
    items = np.repeat(np.arange(30), 3)
    after, before = rng.normal(size=90) + rng.normal(size=30)[items], rng.normal(size=90)
    fit = sm.OLS(after - before, np.ones(90)).fit(cov_type="cluster", cov_kwds={"groups": items}, use_t=True)
    compared = paired_difference(after, before, list(items))
    assert compared.p_value == pytest.approx(float(fit.pvalues[0]))
    assert compared.interval == pytest.approx(tuple(fit.conf_int()[0]))


def test_interval_holds_zero_exactly_when_p_is_above_five_percent():
    rng = np.random.default_rng(4)
    seen = set()
    for _ in range(100):
        compared = paired_difference(rng.normal(0.4, 1, 20), np.zeros(20), list(range(20)))
        low, high = compared.interval
        assert (compared.p_value > 0.05) == (low < 0 < high)
        seen.add(compared.p_value > 0.05)
    assert seen == {True, False}


def test_swapping_the_methods_changes_the_sign_and_nothing_else():
    rng = np.random.default_rng(5)
    a, b, items = rng.random(20), rng.random(20), list(range(10)) * 2
    forth, back = paired_difference(a, b, items), paired_difference(b, a, items)
    assert back.value == pytest.approx(-forth.value)
    assert back.p_value == pytest.approx(forth.p_value)


def test_equal_answers_have_p_of_one():
    compared = paired_difference([1, 0, 1], [1, 0, 1], ["a", "b", "c"])
    assert (compared.value, compared.standard_error, compared.p_value) == (0, 0, 1)
    assert compared.interval == (0, 0)


def test_seeds_that_cancel_on_every_item_have_p_of_one():
    """Even where 0.1 + 0.2 − 0.3 is 5.6e-17 to the machine."""
    compared = paired_difference([0.1, 0.2, 0] * 2, [0, 0, 0.3] * 2, list("aaabbb"))
    assert 0 < abs(compared.value) < 1e-15
    assert compared.p_value == 1


@pytest.mark.parametrize(("items", "p"), [(2, 0.5), (4, 0.125), (6, 1 / 32)])
def test_equal_shift_of_every_item_is_as_sure_as_that_many_coins(items, p):
    """The standard error is zero, yet a handful of items that moved alike is no proof: 2 · (½)^G, not 0."""
    shifted = np.full(items, 0.1) + np.arange(items)
    compared = paired_difference(shifted, np.arange(items), list(range(items)))
    assert compared.p_value == pytest.approx(p)


def test_many_items_moved_alike_are_beyond_doubt():
    assert paired_difference(np.ones(3000), np.zeros(3000), list(range(3000))).p_value < 1e-100


def test_score_that_is_not_a_number_gives_no_p_value():
    compared = paired_difference([1.0, math.nan, 0.0], [0.0, 0.0, 0.0], ["a", "b", "c"])
    assert math.isnan(compared.p_value)
    assert math.isnan(compared.value)

"""McNemar, bootstrap and Holm: published examples, statsmodels, plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from posttrain.core.statistics import holm, mcnemar, paired_bootstrap, paired_difference

bits = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=60)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=20)


def paired(both: int, gained: int, lost: int, neither: int) -> tuple[list[int], list[int]]:
    """After and before of a 2 × 2 table."""
    after = [1] * both + [1] * gained + [0] * lost + [0] * neither
    before = [1] * both + [0] * gained + [1] * lost + [0] * neither
    return after, before


@pytest.mark.parametrize(
    ("table", "exact", "mid"),
    [
        # Bentur et al. 2009, airway hyper-responsiveness of 21 children before and after stem cell transplantation, the
        # first example of Fagerland, Lydersen and Laake 2013. By hand: 2·(C(8,0)+C(8,1))/2⁸ = 18/256 and 10/256.
        (paired(1, 7, 1, 12), 0.0703125, 0.0390625),
        # Cavo et al. 2012, complete response of 161 patients, their second: printed 0.053 and 0.035.
        (paired(59, 16, 6, 80), 0.0525, 0.0347),
    ],
)
def test_mcnemar_gives_the_published_values(table, exact, mid):
    result = mcnemar(*table)
    assert result.exact == pytest.approx(exact, abs=5e-5)
    assert result.mid == pytest.approx(mid, abs=5e-5)


@given(bits)
@settings(deadline=None, max_examples=50)
def test_exact_mcnemar_is_that_of_statsmodels_and_mid_p_lies_below(rows):
    after, before = zip(*rows, strict=True)
    result = mcnemar(after, before)
    table = [[0, result.gained], [result.lost, 0]]
    assert result.gained - result.lost == sum(after) - sum(before)
    assert result.exact == pytest.approx(reference_mcnemar(table, exact=True).pvalue)
    assert result.mid <= result.exact + 1e-12


def test_methods_that_agree_on_every_item_are_not_told_apart():
    assert (mcnemar([1, 0, 1], [1, 0, 1]).exact, mcnemar([1, 0, 1], [1, 0, 1]).mid) == (1, 1)


def test_split_in_halves_has_p_of_one():
    assert (mcnemar([1, 0], [0, 1]).exact, mcnemar([1, 0], [0, 1]).mid) == pytest.approx((1, 1))


@pytest.mark.parametrize(("after", "before"), [([0.5, 1], [0, 1]), ([1, 0], [1]), ([math.nan, 1], [0, 1])])
def test_mcnemar_refuses_what_is_not_right_or_wrong(after, before):
    with pytest.raises(ValueError, match="right|pair"):
        mcnemar(after, before)


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=15)
def test_bootstrap_spread_is_the_clustered_standard_error(seed):
    rng = np.random.default_rng(seed)
    items = rng.integers(0, 150, size=400)
    difficulty = rng.random(150)[items]
    after, before = (rng.random(400) < difficulty).astype(float), rng.random(400) * difficulty
    drawn = paired_bootstrap(after, before, list(items), draws=2000, seed=seed)
    compared = paired_difference(after, before, list(items))
    assert drawn.value == pytest.approx(compared.value)
    # 2,000 draws know a standard deviation to 1.6 %; the sandwich's G/(G−1) and the spread of sizes add little.
    assert drawn.standard_error == pytest.approx(compared.standard_error, rel=0.08)
    assert drawn.interval == pytest.approx(compared.interval, abs=0.35 * compared.standard_error)


def test_bootstrap_draws_items_as_the_plain_loop_does():
    """Counting kinds of items gives the distribution of drawing items one by one, unequal sizes and all."""
    after, items = np.array([1.0, 0, 1, 1, 0, 1, 0, 0]), list("aabbbcde")
    differences = {item: after[[i == item for i in items]] for item in set(items)}
    rng = np.random.default_rng(0)
    loop = [
        np.concatenate([differences[item] for item in rng.choice(sorted(differences), size=5)]).mean()
        for _ in range(4000)
    ]
    drawn = paired_bootstrap(after, np.zeros(8), items, draws=20_000)
    assert drawn.standard_error == pytest.approx(np.std(loop), rel=0.05)
    assert drawn.interval == pytest.approx(np.percentile(loop, [2.5, 97.5]), abs=0.05)


def test_bootstrap_of_one_seed_repeats_and_another_seed_differs():
    rng = np.random.default_rng(0)
    after, before, items = rng.random(50), rng.random(50), list(range(50))
    first = paired_bootstrap(after, before, items, draws=500, seed=1)
    assert first == paired_bootstrap(after, before, items, draws=500, seed=1)
    assert first != paired_bootstrap(after, before, items, draws=500, seed=2)


def test_bootstrap_in_many_blocks_is_as_good_as_in_one(monkeypatch):
    rng = np.random.default_rng(0)
    after, items = rng.random(50), list(range(50))
    whole = paired_bootstrap(after, np.zeros(50), items, draws=500)
    monkeypatch.setattr("posttrain.core.statistics.bootstrap.BLOCK", 50 * 7)
    in_blocks = paired_bootstrap(after, np.zeros(50), items, draws=500)
    assert in_blocks.interval == whole.interval
    assert in_blocks.standard_error == pytest.approx(whole.standard_error)


def test_bootstrap_p_is_never_zero_and_one_without_difference():
    assert paired_bootstrap([1] * 9, [0] * 9, list(range(9)), draws=999).p_value == pytest.approx(0.002)
    assert paired_bootstrap([1] * 9, [1] * 9, list(range(9)), draws=999).p_value == 1


def test_holm_gives_the_textbook_example():
    # The example of Wikipedia's "Holm–Bonferroni method": 0.005·4, 0.01·3, 0.03·2, and 0.04·1 raised to 0.06; only H1
    # and H4 are rejected at 5 %.
    adjusted = holm({"H1": 0.01, "H2": 0.04, "H3": 0.03, "H4": 0.005})
    assert adjusted == pytest.approx({"H1": 0.03, "H2": 0.06, "H3": 0.06, "H4": 0.02})
    assert list(adjusted) == ["H1", "H2", "H3", "H4"]


@given(p_values)
@settings(deadline=None, max_examples=60)
def test_holm_is_the_plain_loop_between_raw_and_bonferroni_and_monotone(values):
    family = {str(number): p for number, p in enumerate(values)}
    adjusted, running = holm(family), 0.0
    for rank, (name, p) in enumerate(sorted(family.items(), key=lambda pair: pair[1])):
        running = max(running, min(1.0, (len(values) - rank) * p))
        assert adjusted[name] == pytest.approx(running, abs=1e-12)
        assert p - 1e-12 <= adjusted[name] <= min(1.0, len(values) * p) + 1e-12


def test_holm_is_that_of_statsmodels():
    values = np.random.default_rng(6).random(40) ** 3
    adjusted = holm({str(number): p for number, p in enumerate(values)})
    assert list(adjusted.values()) == pytest.approx(list(multipletests(values, method="holm")[1]))


def test_comparison_that_failed_stays_unknown_and_counts_in_the_family():
    adjusted = holm({"good": 0.02, "failed": math.nan})
    assert adjusted["good"] == pytest.approx(0.04)
    assert math.isnan(adjusted["failed"])


def test_family_of_nothing_is_nothing():
    assert holm({}) == {}


def test_what_is_no_probability_is_refused_by_name():
    with pytest.raises(ValueError, match="the p-value of 'mmlu' is 1.2"):
        holm({"mmlu": 1.2})

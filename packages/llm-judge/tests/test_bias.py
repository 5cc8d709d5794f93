"""The bias report on tables made by hand, and against statsmodels."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import cohens_kappa

from posttrain.llm_judge.statistics.bias import agreement, bias_report, length_correlation, position_log_odds
from posttrain.llm_judge.statistics.pairs import Pairs

HALVES = st.sampled_from([0.0, 0.5, 1.0])


def pairs(first, second=None, *, lengths=None, human=None) -> Pairs:
    n = len(first)
    unknown = np.full(n, np.nan)
    length_a, length_b = np.array(lengths, float).T if lengths else (unknown, unknown)
    return Pairs(
        np.array(first, float),
        None if second is None else np.array(second, float),
        [f"p{number}" for number in range(n)],
        length_a,
        length_b,
        unknown if human is None else np.array(human, float),
    )


def test_report_by_hand():
    #                           B, A, first wins twice, tie, unread
    report = bias_report(pairs([1, 0, 0, 0.5, np.nan], [1, 0, 1, 0.5, 1]))
    assert report.pairs == 5
    assert report.unparsed.value == pytest.approx(1 / 10)
    assert report.consistency.value == pytest.approx(3 / 4)
    # First shown preferred: B then A is ½, A then B is ½, both times 1, ties ½.
    assert report.first_position.value == pytest.approx((0.5 + 0.5 + 1 + 0.5) / 4)
    assert report.human is None


def test_a_judge_who_always_takes_the_first_is_never_consistent():
    report = bias_report(pairs([0] * 30, [1] * 30))
    assert report.consistency.value == 0
    assert report.first_position.value == 1
    assert report.position_log_odds.value == math.inf
    assert report.warnings()[0].startswith("Only 0.0 % of the verdicts survive the swap of the two answers (0.0 to 1")


def test_a_judge_who_always_keeps_his_verdict_has_no_warning():
    report = bias_report(pairs([0, 1] * 20, [0, 1] * 20))
    assert report.consistency.value == 1
    assert report.consistency.interval[0] > 0.9
    assert math.isnan(report.position_log_odds.value)
    assert report.warnings() == ()


def test_equal_answers_have_no_consistency_and_are_counted():
    # The third pair is one game, whose verdict "the first" means A in one order and B in the other; so is the fourth,
    # which could not be read.
    asked = pairs([1, 0, 0, np.nan], [1, 1, 1, np.nan])
    report = bias_report(replace(asked, equal=[False, False, True, True]))
    assert report.consistency.value == 1 / 2
    assert report.consistency.n == 2
    assert report.equal == 2
    # Of position they say as much as others.
    assert report.first_position == bias_report(asked).first_position


def test_where_all_answers_are_equal_there_is_no_consistency_to_warn_of():
    report = bias_report(replace(pairs([0, 0], [1, 1]), equal=[True, True]))
    assert math.isnan(report.consistency.value)
    assert report.warnings() == ()


def test_the_threshold_is_the_readers():
    report = bias_report(pairs([1, 1, 1, 0], [1, 1, 1, 1]))
    assert report.warnings() == ()
    assert len(report.warnings(threshold=0.8)) == 1


def test_one_order_says_nothing_of_position_and_says_so():
    report = bias_report(pairs([1, 0, 1]))
    assert report.consistency is report.first_position is report.position_log_odds is None
    assert report.unparsed.value == 0
    assert report.warnings()[0].startswith("Only one order was asked")


def test_position_log_odds_are_exact_for_probabilities_whatever_the_quality():
    quality, shift = np.linspace(-3, 3, 21), 0.4
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    found = position_log_odds(sigmoid(quality - shift), sigmoid(quality + shift), range(21))
    assert found.value == pytest.approx(0.4)


def test_position_log_odds_of_probabilities_weigh_pairs_by_hand():
    # Pairs of mean log-odds 0 and ln 3, so of weights 1/4 and 3/16, shifted by ln 2 and 0: 4/7 of ln 2.
    found = position_log_odds([1 / 3, 3 / 4], [2 / 3, 3 / 4], "pq")
    assert found.value == pytest.approx(4 / 7 * math.log(2))


def test_a_game_of_probability_one_counts_as_the_surest_of_the_others():
    # Pairs of (mean log-odds, shift): (0, 0) of weight 1/4, and with 1 taken for 999/1000 (½ ln 999, ½ ln 999).
    odds = math.sqrt(999)
    weight = odds / (1 + odds) ** 2
    found = position_log_odds([0.5, 0.5, 0.999], [0.5, 1.0, 0.999], "pqr")
    assert found.value == pytest.approx(weight * math.log(odds) / (0.25 + weight + 0.999 * 0.001))
    # Where no other is as sure as 99 in 100, for 99/100.
    assert position_log_odds([0, 0.6], [1, 0.6], "pq").value == pytest.approx(math.log(99) * 0.25 / (0.25 + 0.24))
    # The difference of 1e-20 from 0 is known, that of 1 − 1e-20 from 1 is not.
    assert position_log_odds([1e-20], [1e-20], "p").value == 0


def test_one_certain_game_among_thousands_does_not_move_the_position_bias():
    rng = np.random.default_rng(1)
    own, noise = rng.normal(size=2000), 2 * rng.normal(size=(2, 2000))
    first, second = 1 / (1 + np.exp(-(own + noise + [[-0.5], [0.5]])))
    without = position_log_odds(first, second, range(2000))
    second[np.argmax(second)] = 1.0
    found = position_log_odds(first, second, range(2000))
    assert found.value == pytest.approx(without.value, abs=0.001)
    assert found.interval[0] < 0.5 < found.interval[1]


def test_position_log_odds_of_verdicts_are_half_of_mcnemars():
    # 9 pairs went twice to the first, 3 twice to the second: ½ ln 3, with error ½ √(1/9 + 1/3).
    first, second = [0] * 9 + [1] * 3 + [1] * 88, [1] * 9 + [0] * 3 + [1] * 88
    found = position_log_odds(first, second, range(100))
    assert found.value == pytest.approx(math.log(3) / 2)
    assert found.standard_error == pytest.approx(math.sqrt(1 / 9 + 1 / 3) / 2, rel=0.01)


def test_length_correlation_is_pearsons():
    rng = np.random.default_rng(0)
    lengths, first = rng.integers(50, 900, (40, 2)), rng.random(40)
    first[3] = np.nan
    table = pairs(first, lengths=lengths.tolist())
    longer = (lengths[:, 1] - lengths[:, 0]) / lengths.sum(axis=1)
    known = ~np.isnan(first)
    found = length_correlation(table)
    assert found.value == pytest.approx(np.corrcoef(first[known], longer[known])[0, 1])
    assert found.n == 39
    assert -1 < found.interval[0] < found.value < found.interval[1] < 1


def test_length_correlation_needs_both_to_vary():
    assert math.isnan(length_correlation(pairs([1, 1, 1], lengths=[(1, 2), (3, 1), (5, 5)])).value)
    assert math.isnan(length_correlation(pairs([1, 0, 1])).value)


def test_empty_answers_are_of_equal_length():
    found = length_correlation(pairs([1, 0, 0.5, 1], lengths=[(0, 5), (5, 0), (0, 0), (1, 9)]))
    assert found.value > 0.9


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(HALVES, HALVES), min_size=3, max_size=40))
def test_kappa_and_its_error_are_statsmodels_where_nothing_is_clustered(opinions):
    one, other = np.array(opinions).T
    table = np.zeros((3, 3))
    for a, b in opinions:
        table[int(2 * a), int(2 * b)] += 1
    found, n = agreement(one, other, range(len(one))), len(one)
    if len({*one, *other}) == 1:
        assert math.isnan(found.kappa.value)
        return
    with np.errstate(invalid="ignore"):
        expected = cohens_kappa(table)
    assert found.kappa.value == pytest.approx(expected.kappa)
    # Of a variance of zero, rounding may leave less, and no root.
    error = math.sqrt(max(expected.var_kappa, 0) * n / (n - 1))
    assert found.kappa.standard_error == pytest.approx(error, abs=1e-6)


def test_agreement_by_hand():
    # 20 pairs both B, 15 both A, 5 and 10 apart: the textbook's κ of 0.4.
    one = [1] * 25 + [0] * 25
    other = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    found = agreement(one, other, range(50))
    assert found.share.value == pytest.approx(0.7)
    assert found.kappa.value == pytest.approx(0.4)


def test_copies_of_a_prompt_do_not_sharpen_kappa():
    one, other = np.random.default_rng(0).choice([0, 0.5, 1], (2, 60))
    once, thrice = agreement(one, other, range(60)), agreement(np.tile(one, 3), np.tile(other, 3), list(range(60)) * 3)
    assert thrice.kappa.value == pytest.approx(once.kappa.value)
    assert thrice.kappa.standard_error == pytest.approx(once.kappa.standard_error)


def test_human_labels_are_compared_where_both_have_a_verdict():
    report = bias_report(pairs([1, 0, 1, np.nan], [1, 0, 0, 1], human=[1, 1, np.nan, 1]))
    assert report.human.share.value == 0.5
    assert report.human.kappa.n == 2


def test_no_pair_in_common_is_no_agreement():
    found = agreement([np.nan, 1], [1, np.nan], ["p", "q"])
    assert (found.kappa.n, math.isnan(found.kappa.value)) == (0, True)


def test_opinions_on_other_pairs_are_refused():
    with pytest.raises(ValueError, match="not of the same pairs"):
        agreement([1, 0], [1], ["p", "q"])

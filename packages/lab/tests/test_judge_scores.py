"""Win rates over the SFT policy from preferences by item, worked out by hand."""

import pytest

from posttrain.core.statistics import holm
from posttrain.lab.judge_scores import Judges, win_rates
from posttrain.lab.table import Scores

BOTH = Judges("t", ("rm", "verifier"), "verifier")
ALONE = Judges("t", ("rm",), None)


def scores(*by_seed: list[float], shared: dict[str, str] | None = None) -> Scores:
    keyed = [(f"i{i}", seed, 0, value) for seed, values in enumerate(by_seed) for i, value in enumerate(values)]
    return Scores(*map(tuple, zip(*keyed, strict=True)), shared or {})


def test_rate_is_the_mean_preference_and_its_test_that_of_a_paired_difference_from_a_half():
    # Margins ½ ½ ½ 0 of mean 3/8: √(4/3 · (3/64 + 9/64)) / 4 = 1/8, t = 3 with 3 degrees of freedom.
    rate = win_rates({"dpo": {"rm": scores([1.0, 1.0, 1.0, 0.5])}}, ALONE)["dpo"]["rm"]
    assert (rate.rate.value, rate.rate.n) == (0.875, 4)
    assert rate.rate.standard_error == pytest.approx(0.125)
    assert rate.margin.value == pytest.approx(0.375)
    assert rate.margin.p_value == pytest.approx(0.0576688, abs=1e-6)
    assert rate.margin.beyond_noise
    assert rate.sign == 1


def test_seeds_are_pooled_and_an_item_of_several_counts_as_one():
    one, two = [1.0, 1.0, 1.0, 0.5], [0.0, 0.0, 0.0, 0.5]
    same = win_rates({"dpo": {"rm": scores(one, one)}}, ALONE)["dpo"]["rm"]
    assert (same.rate.value, same.rate.standard_error) == (0.875, pytest.approx(0.125))
    assert same.margin.clusters == 4
    opposite = win_rates({"dpo": {"rm": scores(one, two)}}, ALONE)["dpo"]["rm"]
    assert (opposite.rate.value, opposite.by_seed) == (0.5, {0: 0.875, 1: 0.125})
    assert (opposite.sign, opposite.margin.p_value) == (0, 1.0)


def test_items_that_share_a_cluster_count_as_one():
    shared = {"i0": "c", "i1": "c"}
    rate = win_rates({"dpo": {"rm": scores([1.0, 1.0, 0.0, 0.5], shared=shared)}}, ALONE)["dpo"]["rm"]
    assert rate.margin.clusters == 3


def test_p_is_corrected_over_the_rows_of_a_judge_and_not_over_its_fellows():
    clear, less, none = [1.0] * 7 + [0.5], [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.5, 0.0], [0.5] * 8
    rows = {"a": {"rm": scores(clear)}, "b": {"rm": scores(less)}, "c": {"rm": scores(none), "verifier": scores(less)}}
    rates = win_rates(rows, BOTH)
    raw = {row: rates[row]["rm"].margin.p_value for row in rows}
    assert {row: rates[row]["rm"].corrected for row in rows} == holm(raw)
    assert rates["a"]["rm"].corrected == pytest.approx(3 * raw["a"])
    assert rates["c"]["verifier"].corrected == rates["c"]["verifier"].margin.p_value == raw["b"]


def test_error_of_a_judge_is_its_kappa_with_gold_and_how_often_it_is_right_where_gold_decides():
    # Verdicts B B A A against B A A A: 3/4 alike, ½ · ¼ + ½ · ¾ = ½ by chance, κ = (¾ − ½) / (1 − ½).
    judged = {"dpo": {"rm": scores([0.9, 0.6, 0.2, 0.4]), "verifier": scores([1.0, 0.0, 0.0, 0.0])}}
    rates = win_rates(judged, BOTH)["dpo"]
    assert rates["rm"].error is not None
    assert rates["rm"].error.agreement.share.value == 0.75
    assert rates["rm"].error.agreement.kappa.value == pytest.approx(0.5)
    assert rates["rm"].error.decided is not None
    assert rates["rm"].error.decided.value == 0.75
    assert rates["verifier"].error is None
    assert (rates["rm"].sign, rates["verifier"].sign) == (1, -1)


def test_pairs_that_gold_calls_ties_are_none_that_it_decides_and_a_judge_that_shuns_it_is_wrong():
    judged = {"dpo": {"rm": scores([0.9, 0.6, 0.2, 0.5]), "verifier": scores([1.0, 0.5, 0.5, 0.0])}}
    error = win_rates(judged, BOTH)["dpo"]["rm"].error
    assert (error.decided.value, error.decided.n) == (0.5, 2)
    assert error.agreement.share.value == 0.25
    ties = {"dpo": {"rm": scores([0.9, 0.6]), "verifier": scores([0.5, 0.5])}}
    assert win_rates(ties, BOTH)["dpo"]["rm"].error.decided is None


def test_without_gold_nothing_is_held_against_it():
    assert win_rates({"dpo": {"rm": scores([0.9, 0.2])}}, ALONE)["dpo"]["rm"].error is None
    assert win_rates({"dpo": {"rm": scores([0.9, 0.2])}}, BOTH)["dpo"]["rm"].error is None


def test_row_of_a_single_item_has_no_rate():
    judged = {"dpo": {"rm": scores([1.0])}, "ppo": {"rm": scores([1.0, 0.0])}}
    assert list(win_rates(judged, ALONE)) == ["ppo"]

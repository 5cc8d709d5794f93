"""Accuracy of a reward model on pairs, by hand."""

import math

import pytest

from posttrain.reward_model.pairs import pairwise_accuracy


def test_ties_count_half_and_the_error_is_of_the_mean():
    accuracy, error = pairwise_accuracy([2.0, 1.0, 0.0, 5.0], [1.0, 1.0, 3.0, 4.0])
    # Wins 1, ½, 0, 1: mean 5/8; squared deviations 9/64 + 1/64 + 25/64 + 9/64 = 44/64, over 3, over 4.
    assert accuracy == 5 / 8
    assert error == pytest.approx(math.sqrt(44 / 64 / 3 / 4))


def test_error_of_wins_and_losses_is_the_binomial_one():
    accuracy, error = pairwise_accuracy([1.0] * 75 + [0.0] * 25, [0.5] * 100)
    assert accuracy == 0.75
    assert error == pytest.approx(math.sqrt(0.75 * 0.25 / 99))


def test_one_pair_says_nothing_of_the_spread():
    accuracy, error = pairwise_accuracy([1.0], [0.0])
    assert accuracy == 1.0
    assert math.isnan(error)


@pytest.mark.parametrize(("chosen", "rejected"), [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0])])
def test_what_does_not_make_pairs_is_refused(chosen: list[float], rejected: list[float]):
    with pytest.raises(ValueError, match=r"pairs|finite"):
        pairwise_accuracy(chosen, rejected)

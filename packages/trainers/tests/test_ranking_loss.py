"""The reward model's losses by hand and against a plain loop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.trainers.ranking_loss import bradley_terry_loss, ranking_loss

scores_lists = st.lists(st.floats(-8, 8), min_size=2, max_size=7)


def test_bradley_terry_by_hand():
    # σ(log 3) = 3/4, so the loss of a margin of log 3 is log 4/3; equal scores give log 2.
    loss = bradley_terry_loss(torch.tensor([math.log(3), 1.0]), torch.tensor([0.0, 1.0]))
    assert torch.allclose(loss, torch.tensor([math.log(4 / 3), math.log(2)]))


def test_ranking_of_three_by_hand():
    # scores log 2 · (2, 1, 0): margins log 2, log 4, log 2, so −log of 2/3, 4/5, 2/3, a third of their sum each
    expected = (2 * math.log(3 / 2) + math.log(5 / 4)) / 3
    assert ranking_loss(math.log(2) * torch.tensor([2.0, 1.0, 0.0])).item() == pytest.approx(expected, rel=1e-6)


@given(scores_lists)
@settings(deadline=None, max_examples=60)
def test_ranking_equals_the_loop_over_all_pairs(scores):
    losses = [
        math.log1p(math.exp(-(scores[better] - scores[worse])))
        for better in range(len(scores))
        for worse in range(better + 1, len(scores))
    ]
    result = ranking_loss(torch.tensor(scores, dtype=torch.float64)).item()
    assert result == pytest.approx(sum(losses) / len(losses), rel=1e-9, abs=1e-12)


@given(st.floats(-8, 8), st.floats(-8, 8))
@settings(deadline=None, max_examples=30)
def test_ranking_of_two_is_bradley_terry(chosen, rejected):
    pair = torch.tensor([chosen, rejected], dtype=torch.float64)
    assert ranking_loss(pair) == bradley_terry_loss(pair[:1], pair[1:])[0]


def test_only_differences_of_scores_count():
    scores = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    assert torch.allclose(ranking_loss(scores), ranking_loss(scores + 5))


def test_a_ranking_of_one_is_refused():
    with pytest.raises(ValueError, match="at least two scores"):
        ranking_loss(torch.tensor([1.0]))

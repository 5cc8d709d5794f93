"""The clipped losses against plain loops and by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.trainers.clipped import clipped_policy_loss, clipped_value_loss, clipped_weight_loss

logprob, number, epsilon = st.floats(-5, 0), st.floats(-4, 4), st.floats(0.01, 0.5)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(logprob, logprob, number), min_size=1, max_size=6), epsilon, epsilon)
def test_policy_loss_equals_the_plain_loop(rows, low, high):
    new, old, advantages = torch.tensor(rows, dtype=torch.float64).unbind(1)
    losses, clipped = clipped_policy_loss(new, old, advantages, low, high)
    for i, (p, q, a) in enumerate(rows):
        ratio = math.exp(p - q)
        expected = -min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)
        assert float(losses[i]) == pytest.approx(expected, rel=1e-9, abs=1e-9)
        if bool(clipped[i]):
            assert (ratio > 1 + high and a > 0) or (ratio < 1 - low and a < 0)


def test_policy_loss_by_hand():
    # ρ = 2, A = 1, ε = .2: clipped to 1.2, loss −1.2; A = −1: the larger loss 2 stands, not clipped
    new, old = torch.log(torch.tensor([2.0, 2.0])), torch.zeros(2)
    losses, clipped = clipped_policy_loss(new, old, torch.tensor([1.0, -1.0]), 0.2, 0.2)
    assert torch.allclose(losses, torch.tensor([-1.2, 2.0]))
    assert clipped.tolist() == [True, False]


def test_a_clipped_token_has_no_gradient():
    new = torch.log(torch.tensor([2.0, 1.1])).requires_grad_()
    losses, _ = clipped_policy_loss(new, torch.zeros(2), torch.tensor([1.0, 1.0]), 0.2, 0.2)
    (gradient,) = torch.autograd.grad(losses.sum(), new)
    assert gradient[0] == 0
    assert gradient[1] == pytest.approx(-1.1)


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    new = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([0.7, -0.3])
    losses, clipped = clipped_policy_loss(new, new.detach(), advantages, 0.2, 0.2)
    (gradient,) = torch.autograd.grad(losses.sum(), new)
    assert torch.allclose(gradient, -advantages)
    assert not clipped.any()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(logprob, logprob, number), min_size=1, max_size=6), epsilon, epsilon)
def test_weight_loss_and_its_gradient_equal_the_plain_loop(rows, low, high):
    new, old, advantages = torch.tensor(rows, dtype=torch.float64).unbind(1)
    new = new.clone().requires_grad_()
    losses, clipped = clipped_weight_loss(new, old, advantages, low, high)
    (gradient,) = torch.autograd.grad(losses.sum(), new)
    for i, (p, q, a) in enumerate(rows):
        weight = min(max(math.exp(p - q), 1 - low), 1 + high)
        assert losses[i].item() == pytest.approx(-weight * a * p, rel=1e-9, abs=1e-9)
        assert float(gradient[i]) == pytest.approx(-weight * a, rel=1e-9, abs=1e-9)
        assert bool(clipped[i]) == (weight != math.exp(p - q))


def test_weight_loss_by_hand_has_a_gradient_where_the_clip_acts():
    # log π = (−1, −2), ρ = (2, 1), A = (1, −1), bound 1.5: −1.5 · 1 · −1 = 1.5;  −1 · −1 · −2 = −2; gradient −1.5 and 1
    new = torch.tensor([-1.0, -2.0], requires_grad=True)
    old = new.detach() - torch.log(torch.tensor([2.0, 1.0]))
    losses, clipped = clipped_weight_loss(new, old, torch.tensor([1.0, -1.0]), 1.0, 0.5)
    (gradient,) = torch.autograd.grad(losses.sum(), new)
    assert torch.allclose(losses, torch.tensor([1.5, -2.0]))
    assert torch.allclose(gradient, torch.tensor([-1.5, 1.0]))
    assert clipped.tolist() == [True, False]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(number, number, number), min_size=1, max_size=6), epsilon)
def test_value_loss_equals_the_plain_loop(rows, clip):
    values, old, returns = torch.tensor(rows, dtype=torch.float64).unbind(1)
    losses, _ = clipped_value_loss(values, old, returns, clip)
    for i, (v, o, r) in enumerate(rows):
        near = min(max(v, o - clip), o + clip)
        assert float(losses[i]) == pytest.approx(0.5 * max((v - r) ** 2, (near - r) ** 2), abs=1e-9)


def test_value_loss_by_hand():
    # V = 1, V_old = 0, R = 1, ε = .2: unclipped 0, clipped (.2 − 1)² = .64; loss .32, clipped
    losses, clipped = clipped_value_loss(torch.ones(1), torch.zeros(1), torch.ones(1), 0.2)
    assert torch.allclose(losses, torch.tensor([0.32]))
    assert clipped.tolist() == [True]

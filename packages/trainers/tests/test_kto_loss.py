"""KTO's loss against numbers derived by hand and against a plain loop; its baseline; its weights."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.trainers.kto_loss import balanced_weights, kl_baseline, kto_losses


def test_loss_of_two_tokens_by_hand():
    # Two tokens an answer. The policy gives the first answer's 1/2 and 1/2, the reference 1/2 and 1/4:
    # r = log(1/4) − log(1/8) = log 2. On the second they agree: r = 0.
    policy = torch.tensor([[0.5, 0.5], [0.25, 0.5]]).log().sum(1)
    reference = torch.tensor([[0.5, 0.25], [0.25, 0.5]]).log().sum(1)
    # Mismatched answers have log-ratios log 4 and 0: z0 = log 2.
    kl = kl_baseline(torch.tensor([4.0, 1.0]).log())
    assert kl.item() == pytest.approx(math.log(2))
    # β = 1. Desirable: 3 (1 − σ(log 2 − log 2)) = 3/2. Undesirable: 2 (1 − σ(log 2 − 0)) = 2 (1 − 2/3) = 2/3.
    losses = kto_losses(policy - reference, torch.tensor([True, False]), kl, 1.0, 3.0, 2.0)
    assert losses.tolist() == pytest.approx([3 / 2, 2 / 3])


def test_where_policy_and_reference_agree_every_answer_costs_half_its_weight():
    zeros = torch.zeros(2)
    losses = kto_losses(zeros, torch.tensor([True, False]), kl_baseline(zeros), 0.1, 1.0, 4 / 3)
    assert losses.tolist() == pytest.approx([1 / 2, 2 / 3])


numbers = st.floats(-30, 30, width=32)
weights = st.floats(0.1, 10)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(numbers, st.booleans(), numbers), min_size=1, max_size=9), st.floats(0.01, 2), weights, weights
)
def test_losses_equal_a_plain_loop(rows, beta, desirable_weight, undesirable_weight):
    def sigma(x):
        return 1 / (1 + math.exp(-x))

    z0 = max(0.0, sum(mismatched for _, _, mismatched in rows) / len(rows))
    expected = []
    for r, desirable, _ in rows:
        if desirable:
            weight, value = desirable_weight, desirable_weight * sigma(beta * (r - z0))
        else:
            weight, value = undesirable_weight, undesirable_weight * sigma(beta * (z0 - r))
        expected.append(weight - value)
    kl = kl_baseline(torch.tensor([mismatched for _, _, mismatched in rows], dtype=torch.float64))
    found = kto_losses(
        torch.tensor([r for r, _, _ in rows], dtype=torch.float64),
        torch.tensor([desirable for _, desirable, _ in rows]),
        kl, beta, desirable_weight, undesirable_weight,
    )  # fmt: skip
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_baseline_gets_no_gradient_and_is_never_negative():
    mismatched = torch.tensor([1.0, 2.0], requires_grad=True)
    logratios = torch.tensor([0.5, -0.5], requires_grad=True)
    kl = kl_baseline(mismatched)
    kto_losses(logratios, torch.tensor([True, False]), kl, 0.1, 1.0, 1.0).sum().backward()
    assert not kl.requires_grad
    assert mismatched.grad is None
    assert (logratios.grad != 0).all()
    assert kl_baseline(torch.tensor([-3.0, 1.0])).item() == 0


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.floats(1, 4 / 3))
def test_balanced_weights_have_the_ratio_and_leave_one_at_1(desirable, undesirable, ratio):
    first, second = balanced_weights(desirable, undesirable, ratio)
    assert first * desirable / (second * undesirable) == pytest.approx(ratio)
    assert min(first, second) == 1


def test_one_to_ten_gives_the_weights_that_the_paper_names():
    # Section 4.2: with a 1:10 ratio of desirable to undesirable examples, λ_U = 1 and λ_D in [10, 13.33]
    assert balanced_weights(100, 1000) == (10, 1)
    assert balanced_weights(100, 1000, 4 / 3)[0] == pytest.approx(13.33, abs=0.01)
    with pytest.raises(ValueError, match="0 desirable and 5 undesirable"):
        balanced_weights(0, 5)

"""KL estimators and controllers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.trainers.controllers import AdaptiveKL, FixedKL
from posttrain.trainers.kl import k1, k2, k3

logprob = st.floats(-8, 0, allow_nan=False)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(logprob, logprob), min_size=1, max_size=8))
def test_estimators_equal_their_formulas(pairs):
    p, q = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    for i, (a, b) in enumerate(pairs):
        assert float(k1(p, q)[i]) == pytest.approx(a - b, abs=1e-12)
        assert float(k2(p, q)[i]) == pytest.approx((a - b) ** 2 / 2, abs=1e-12)
        assert float(k3(p, q)[i]) == pytest.approx(math.exp(b - a) - 1 - (b - a), rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.lists(logprob, min_size=1, max_size=8))
def test_estimators_are_zero_at_the_reference_and_k2_k3_never_negative(logprobs):
    p = torch.tensor(logprobs, dtype=torch.float64)
    q = p.flip(0)
    for estimator in (k1, k2, k3):
        assert (estimator(p, p) == 0).all()
    assert (k2(p, q) >= 0).all()
    assert (k3(p, q) >= -1e-12).all()


def test_expectations_of_k1_and_k3_are_the_true_kl():
    # π = (.5, .5), π_ref = (.25, .75): KL = .5 ln 2 + .5 ln(2/3) = .143841
    p, q = torch.log(torch.tensor([0.5, 0.5])), torch.log(torch.tensor([0.25, 0.75]))
    true = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert float((p.exp() * k1(p, q)).sum()) == pytest.approx(true, abs=1e-6)
    assert float((p.exp() * k3(p, q)).sum()) == pytest.approx(true, abs=1e-6)


def test_k2_gradient_is_that_of_the_true_kl():
    """E[∇ k2] over samples from π equals ∇ KL, which is not so for k1, whose expected gradient is zero."""
    logits = torch.tensor([0.3, -0.2, 0.9], requires_grad=True)
    ref = torch.log_softmax(torch.tensor([0.0, 0.5, 0.1]), 0)
    logprobs = torch.log_softmax(logits, 0)
    weights = logprobs.exp().detach()
    (expected,) = torch.autograd.grad((weights * k2(logprobs, ref)).sum(), logits, retain_graph=True)
    (of_k1,) = torch.autograd.grad((weights * k1(logprobs, ref)).sum(), logits, retain_graph=True)
    (true,) = torch.autograd.grad((logprobs.exp() * (logprobs - ref)).sum(), logits)
    assert torch.allclose(expected, true, atol=1e-6)
    assert torch.allclose(of_k1, torch.zeros(3), atol=1e-6)


def test_adaptive_coefficient_by_hand():
    controller = AdaptiveKL(0.1, target=6.0)
    controller.update(6.6)  # e = .1: .1 · (1 + .1 · .1) = .101
    assert controller.coef == pytest.approx(0.101)
    controller.update(60.0)  # e clipped to .2
    assert controller.coef == pytest.approx(0.101 * 1.02)
    controller.update(0.0)  # and to −.2
    assert controller.coef == pytest.approx(0.101 * 1.02 * 0.98)


def test_adaptive_controller_refuses_a_target_of_zero():
    with pytest.raises(ValueError, match="target"):
        AdaptiveKL(0.1, target=0.0)


def test_fixed_coefficient_stays():
    controller = FixedKL(0.1)
    controller.update(1e9)
    assert controller.coef == 0.1

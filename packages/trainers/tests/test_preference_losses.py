"""The preference losses by hand, against plain loops, and what must hold for any log-probabilities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.trainers.preference_losses import (
    dpo_loss,
    dpo_margin,
    log_odds,
    orpo_loss,
    orpo_margin,
    simpo_loss,
    simpo_margin,
)

logps = st.floats(-60, -0.01)
lengths = st.integers(1, 40)
betas = st.floats(0.01, 5)


def of(*numbers):
    return [torch.tensor([number], dtype=torch.float64) for number in numbers]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_dpo_by_hand():
    # Two tokens each: π gives the chosen ½·½, the rejected ¼·¼; π_ref gives both ½·¼.
    # Log-ratios log 2 and −log 2; with β = ½ the margin is log 2, and −log σ(log 2) = −log 2/3.
    policy, reference = (math.log(1 / 4), math.log(1 / 16)), (math.log(1 / 8), math.log(1 / 8))
    assert dpo_margin(*of(*policy, *reference), beta=0.5).item() == pytest.approx(math.log(2))
    assert dpo_loss(*of(*policy, *reference), beta=0.5).item() == pytest.approx(math.log(3 / 2))


def test_conservative_dpo_by_hand():
    # The same pair with a fifth of the labels flipped: 4/5 · log 3/2 + 1/5 · log 3.
    logs = (math.log(1 / 4), math.log(1 / 16), math.log(1 / 8), math.log(1 / 8))
    expected = 0.8 * math.log(3 / 2) + 0.2 * math.log(3)
    assert dpo_loss(*of(*logs), beta=0.5, label_smoothing=0.2).item() == pytest.approx(expected)


def test_simpo_by_hand():
    # Chosen ½·½ over two tokens: mean log ½. Rejected ¼·1/16 over two: mean log 1/8. With β = 1 the rewards differ by
    # log 4; less γ = log 2 that is log 2, and −log σ(log 2) = log 3/2.
    logs = of(math.log(1 / 4), math.log(1 / 64), 2, 2)
    assert simpo_margin(*logs, beta=1).item() == pytest.approx(math.log(4))
    assert simpo_loss(*logs, beta=1, gamma=math.log(2)).item() == pytest.approx(math.log(3 / 2))


def test_orpo_by_hand():
    # Chosen ¾·¾ over two tokens: P = ¾, odds 3. Rejected ¾·⅓ over two: P = ½, odds 1. The odds ratio is 3, σ(log 3) is
    # ¾, so the loss is log 4/3 for the likelihood and λ · log 4/3 for the odds.
    logs = of(math.log(9 / 16), math.log(1 / 4), 2, 2)
    assert log_odds(*of(math.log(9 / 16), 2)).item() == pytest.approx(math.log(3))
    assert orpo_margin(*logs).item() == pytest.approx(math.log(3))
    assert orpo_loss(*logs, lam=0.5).item() == pytest.approx(1.5 * math.log(4 / 3))


@given(logps, logps, logps, logps, betas, st.floats(0, 0.4))
@settings(deadline=None, max_examples=60)
def test_dpo_equals_its_formula_with_powers_of_ratios(chosen, rejected, ref_chosen, ref_rejected, beta, smoothing):
    # σ(β log a − β log b) = a^β / (a^β + b^β)
    a, b = math.exp(beta * (chosen - ref_chosen) / 10), math.exp(beta * (rejected - ref_rejected) / 10)
    expected = -(1 - smoothing) * math.log(a / (a + b)) - smoothing * math.log(b / (a + b))
    result = dpo_loss(*of(chosen, rejected, ref_chosen, ref_rejected), beta / 10, smoothing)
    assert result.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.lists(st.tuples(logps, logps, lengths, lengths), min_size=1, max_size=5), betas, st.floats(0, 3))
@settings(deadline=None, max_examples=60)
def test_simpo_and_orpo_equal_a_loop_over_pairs(pairs, beta, gamma):
    simpo, orpo = [], []
    for chosen, rejected, n_chosen, n_rejected in pairs:
        mean_chosen, mean_rejected = chosen / n_chosen, rejected / n_rejected
        simpo.append(-math.log(sigmoid(beta * mean_chosen - beta * mean_rejected - gamma)))
        p, q = math.exp(mean_chosen), math.exp(mean_rejected)
        ratio = (p / (1 - p)) / (q / (1 - q))
        orpo.append(-mean_chosen - 0.1 * math.log(ratio / (1 + ratio)))
    arguments = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    assert simpo_loss(*arguments, beta, gamma).tolist() == pytest.approx(simpo, rel=1e-7, abs=1e-9)
    assert orpo_loss(*arguments, lam=0.1).tolist() == pytest.approx(orpo, rel=1e-7, abs=1e-9)


@given(logps, logps, betas, st.floats(0, 0.4))
@settings(deadline=None, max_examples=30)
def test_dpo_at_the_reference_is_log_2(chosen, rejected, beta, smoothing):
    loss = dpo_loss(*of(chosen, rejected, chosen, rejected), beta, smoothing)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-12)


@given(logps, logps, logps, logps, betas)
@settings(deadline=None, max_examples=30)
def test_swapping_the_answers_negates_dpo_s_margin(chosen, rejected, ref_chosen, ref_rejected, beta):
    margin = dpo_margin(*of(chosen, rejected, ref_chosen, ref_rejected), beta)
    assert dpo_margin(*of(rejected, chosen, ref_rejected, ref_chosen), beta).item() == -margin.item()
    losses = [
        dpo_loss(*of(chosen, rejected, ref_chosen, ref_rejected), beta).item(),
        dpo_loss(*of(rejected, chosen, ref_rejected, ref_chosen), beta).item(),
    ]
    # −log σ(m) + log σ(−m) = −m
    assert losses[0] - losses[1] == pytest.approx(-margin.item(), rel=1e-9, abs=1e-9)


@given(logps, logps, lengths, lengths)
@settings(deadline=None, max_examples=30)
def test_swapping_the_answers_negates_the_margins_without_reference(chosen, rejected, n_chosen, n_rejected):
    there, back = of(chosen, rejected, n_chosen, n_rejected), of(rejected, chosen, n_rejected, n_chosen)
    assert simpo_margin(*there, beta=2.0).item() == -simpo_margin(*back, beta=2.0).item()
    assert orpo_margin(*there).item() == -orpo_margin(*back).item()


@given(logps, logps, lengths, lengths, st.floats(-3, 3))
@settings(deadline=None, max_examples=30)
def test_simpo_ignores_a_shift_of_both_means(chosen, rejected, n_chosen, n_rejected, shift):
    before = simpo_loss(*of(chosen, rejected, n_chosen, n_rejected), 2.0, 1.0)
    moved = of(chosen + shift * n_chosen, rejected + shift * n_rejected, n_chosen, n_rejected)
    assert simpo_loss(*moved, 2.0, 1.0).item() == pytest.approx(before.item(), rel=1e-8, abs=1e-9)


@given(logps, logps, lengths, lengths, st.floats(0.01, 5))
@settings(deadline=None, max_examples=30)
def test_orpo_falls_when_the_chosen_answer_gets_likelier(chosen, rejected, n_chosen, n_rejected, more):
    likelier = chosen * math.exp(-more)
    before = orpo_loss(*of(chosen, rejected, n_chosen, n_rejected), lam=0.1)
    assert orpo_loss(*of(likelier, rejected, n_chosen, n_rejected), lam=0.1).item() < before.item()


def test_answers_that_are_certain_or_impossible_have_finite_odds_and_gradients():
    for dtype in (torch.float32, torch.float64):
        total = torch.tensor([0.0, 1e-7, -1e-9, -1e-3, -50.0, -1e4], dtype=dtype, requires_grad=True)
        odds = log_odds(total, torch.full((6,), 2))
        odds.sum().backward()
        assert torch.isfinite(odds).all()
        assert torch.isfinite(total.grad).all()


def test_odds_keep_their_digits_near_certainty():
    # P = e^−ε: odds are 1 / (e^ε − 1), near 1/ε
    odds = log_odds(torch.tensor([-1e-5], dtype=torch.float32), torch.tensor([1]))
    assert odds.item() == pytest.approx(-math.log(math.expm1(1e-5)), rel=1e-6)

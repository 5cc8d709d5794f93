"""Advantages against a plain loop and numbers derived by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.trainers.advantages import gae, token_rewards


@st.composite
def episodes(draw):
    """Ragged rewards and values, right-padded, with garbage in the padding."""
    lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    number = st.floats(-5, 5, allow_nan=False, width=32)
    rows = [([draw(number) for _ in range(n)], [draw(number) for _ in range(n)]) for n in lengths]
    time = max(max(lengths), 1)
    rewards, values = torch.full((len(rows), time), 77.0), torch.full((len(rows), time), -99.0)
    mask = torch.zeros(len(rows), time, dtype=torch.bool)
    for b, (r, v) in enumerate(rows):
        rewards[b, : len(r)], values[b, : len(v)], mask[b, : len(r)] = torch.tensor(r), torch.tensor(v), True
    return rows, rewards.double(), values.double(), mask


def plain_gae(rewards, values, gamma, lam):
    """Schulman et al. 2016, eq. 16, as the sum that it is."""
    n = len(rewards)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0) - values[t] for t in range(n)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]


@settings(deadline=None, max_examples=60)
@given(episodes(), st.floats(0, 1), st.floats(0, 1))
def test_gae_equals_the_sum_of_discounted_residuals(episode, gamma, lam):
    rows, rewards, values, mask = episode
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for b, (r, v) in enumerate(rows):
        expected = torch.tensor(plain_gae(r, v, gamma, lam), dtype=torch.float64)
        assert torch.allclose(advantages[b, : len(r)], expected, atol=1e-9)
        assert torch.allclose(returns[b, : len(r)], expected + torch.tensor(v, dtype=torch.float64), atol=1e-9)
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


def test_gae_of_two_tokens_by_hand():
    # γ = 1, λ = .5, r = (0, 1), V = (.2, .6):  δ_1 = 1 − .6 = .4;  δ_0 = 0 + .6 − .2 = .4;  A_0 = .4 + .5 · .4 = .6
    mask = torch.ones(1, 2, dtype=torch.bool)
    advantages, returns = gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.2, 0.6]]), mask, 1.0, 0.5)
    assert torch.allclose(advantages, torch.tensor([[0.6, 0.4]]))
    assert torch.allclose(returns, torch.tensor([[0.8, 1.0]]))


def test_with_lambda_one_returns_are_the_rewards_to_go():
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.randn(1, 3)
    _, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 1.0, 1.0)
    assert torch.allclose(returns, torch.tensor([[6.0, 5.0, 3.0]]), atol=1e-6)


def test_gae_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match="differ"):
        gae(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, 3, dtype=torch.bool), 1.0, 1.0)


@settings(deadline=None, max_examples=60)
@given(episodes(), st.floats(0, 2))
def test_token_rewards_are_the_penalty_and_the_terminal_reward_at_the_last_token(episode, kl_coef):
    rows, log_ratio, _, mask = episode
    terminal = torch.arange(1, len(rows) + 1).double()
    rewards = token_rewards(terminal, log_ratio, mask, kl_coef)
    for b, (ratios, _) in enumerate(rows):
        expected = [-kl_coef * ratio for ratio in ratios]
        if expected:
            expected[-1] += b + 1
        assert torch.allclose(rewards[b, : len(ratios)], torch.tensor(expected, dtype=torch.float64))
    assert (rewards[~mask] == 0).all()


def test_token_rewards_by_hand():
    mask = torch.tensor([[True, True, False]])
    rewards = token_rewards(torch.tensor([1.0]), torch.tensor([[0.5, -1.0, 9.0]]), mask, 0.1)
    assert torch.allclose(rewards, torch.tensor([[-0.05, 1.1, 0.0]]))

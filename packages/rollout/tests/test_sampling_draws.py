"""Draws follow their distribution, truncation is transformers', and a row's numbers are its own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from posttrain.rollout.sampling import LARGEST_DRAW, Sampler, Sampling, inverse_cdf, truncate, uniform_draws

DRAWS = 100_000
CPU = torch.device("cpu")


def expected_distribution(logits, temperature, top_p, top_k, min_p):
    """From the definitions, one token at a time."""
    p = np.exp(logits / temperature - np.max(logits / temperature))
    p /= p.sum()
    order = np.argsort(-p)
    kept = list(order[: top_k or len(p)])
    mass, nucleus = 0.0, []
    total = p[kept].sum()
    for token in kept:
        if mass >= top_p:
            break
        nucleus.append(token)
        mass += p[token] / total
    nucleus = [token for token in nucleus if p[token] >= min_p * p[order[0]]]
    q = np.zeros_like(p)
    q[nucleus] = p[nucleus]
    return q / q.sum()


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k", "min_p"),
    [(1.0, 1.0, 0, 0.0), (0.5, 1.0, 0, 0.0), (2.0, 0.8, 0, 0.0), (1.0, 1.0, 5, 0.0), (1.3, 0.7, 8, 0.05)],
)
def test_draws_follow_the_distribution(temperature, top_p, top_k, min_p):
    logits = torch.randn(32, generator=torch.Generator().manual_seed(1)) * 1.5
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, max_tokens=DRAWS)
    sampler = Sampler([sampling], [11], CPU)
    logprobs = sampler.logprobs(logits[None])
    kept = truncate(logprobs, sampler.top_k, sampler.top_p, sampler.min_p)
    tokens = inverse_cdf(kept.exp().expand(DRAWS, -1), sampler.draws[0])
    counts = np.bincount(tokens.numpy(), minlength=32)
    expected = expected_distribution(logits.double().numpy(), temperature, top_p, top_k, min_p) * DRAWS
    assert counts[expected == 0].sum() == 0
    assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3


def test_draw_uses_the_number_of_its_place():
    sampling = Sampling(max_tokens=4)
    sampler = Sampler([sampling, sampling], [1, 2], CPU)
    logprobs = torch.zeros(2, 1000).log_softmax(-1)
    drawn = sampler.draw(logprobs, torch.tensor([3, 0]))
    assert drawn.tolist() == [int(sampler.draws[0, 3] * 1000), int(sampler.draws[1, 0] * 1000)]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.floats(0.05, 1.0), st.integers(1, 40), st.floats(0.0, 0.9))
def test_truncation_equals_transformers_processors(seed, top_p, top_k, min_p):
    logprobs = (torch.randn(3, 30, generator=torch.Generator().manual_seed(seed)) * 2).log_softmax(-1)
    expected = TopKLogitsWarper(min(top_k, 30))(None, logprobs)
    expected = TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
    expected = MinPLogitsWarper(min_p)(None, expected)
    ours = truncate(logprobs, torch.full((3,), top_k), torch.full((3,), top_p), torch.full((3,), min_p))
    assert torch.equal(ours.isinf(), expected.isinf())
    assert torch.equal(ours[~ours.isinf()], logprobs[~ours.isinf()])


def test_uniform_draws_depend_on_the_rows_seed_alone():
    together = uniform_draws([5, 6, 7], 20)
    assert torch.equal(together[1], uniform_draws([6], 20)[0])
    assert torch.equal(together[1, :8], uniform_draws([6], 8)[0])
    assert not torch.equal(together[0], together[1])


def test_tokens_of_weight_zero_are_never_drawn():
    weights = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0]]).expand(4, -1)
    uniforms = torch.tensor([0.0, 0.4999, 0.5, LARGEST_DRAW], dtype=torch.float64)
    assert inverse_cdf(weights, uniforms).tolist() == [1, 1, 3, 3]


def test_tail_of_a_large_vocabulary_is_reachable():
    weights = torch.full((1, 200_000), 1e-9)
    weights[0, 0] = 1.0
    assert inverse_cdf(weights, torch.tensor([LARGEST_DRAW], dtype=torch.float64)).item() == 199_999


def test_logprobs_are_scaled_by_temperature_and_not_truncated():
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    sampler = Sampler([Sampling(temperature=2.0, top_k=1)], [0], CPU)
    assert torch.allclose(sampler.logprobs(logits), (logits / 2).log_softmax(-1))


def test_greedy_reports_temperature_one_and_takes_the_first_of_equals():
    logits = torch.tensor([[1.0, 3.0, 3.0]])
    sampler = Sampler([Sampling(temperature=0.0)], [0], CPU)
    logprobs = sampler.logprobs(logits)
    assert torch.allclose(logprobs, logits.log_softmax(-1))
    assert sampler.draw(logprobs, torch.tensor([0])).tolist() == [1]


def test_logit_bias_moves_only_its_own_row():
    logits = torch.zeros(2, 4)
    sampler = Sampler([Sampling(logit_bias={2: 100.0}), Sampling()], [0, 1], CPU)
    logprobs = sampler.logprobs(logits)
    assert logprobs[0, 2].item() == pytest.approx(0.0, abs=1e-6)
    assert torch.allclose(logprobs[1], torch.zeros(4).log_softmax(-1))
    assert torch.equal(logits, torch.zeros(2, 4))


def test_mixed_rows_draw_as_they_would_alone():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(3))
    wishes = [Sampling(temperature=0.0), Sampling(temperature=0.7, top_p=0.9), Sampling(top_k=3)]
    together = Sampler(wishes, [1, 2, 3], CPU)
    places = torch.zeros(3, dtype=torch.long)
    tokens = together.draw(together.logprobs(logits), places)
    for row, wish in enumerate(wishes):
        alone = Sampler([wish], [row + 1], CPU)
        assert alone.draw(alone.logprobs(logits[row : row + 1]), places[:1]).item() == tokens[row].item()

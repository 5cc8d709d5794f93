"""The fused log-probability and entropy against log_softmax and autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.trainers.token_logprobs import token_logprobs


def plain(logits, targets, temperature):
    log_p = torch.log_softmax(logits.float() / temperature, dim=-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(dim=-1)


def test_by_hand():
    # p = (½, ¼, ¼): log ¼ = −1.3863; entropy ½ log 2 + 2 · ¼ log 4 = 1.0397
    logits = torch.tensor([[2.0, 1.0, 1.0]]) * torch.tensor(2.0).log()
    logprobs, entropy = token_logprobs(logits, torch.tensor([1]), with_entropy=True)
    assert float(logprobs) == pytest.approx(-1.386294, abs=1e-6)
    assert float(entropy) == pytest.approx(1.039721, abs=1e-6)
    assert token_logprobs(logits, torch.tensor([1]))[1] is None


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(1, 9), st.floats(0.3, 3), st.integers(0, 1000), st.sampled_from("leb"))
def test_values_and_gradients_are_those_of_log_softmax(rows, vocabulary, temperature, seed, used):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * 4
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    weights = torch.randn(2, rows, generator=generator) * torch.tensor([[used != "e"], [used != "l"]])
    results = []
    for function in (lambda x: token_logprobs(x, targets, temperature, True), lambda x: plain(x, targets, temperature)):
        leaf = logits.clone().requires_grad_()
        logprobs, entropy = function(leaf)
        sum(weight @ value for weight, value in zip(weights, (logprobs, entropy), strict=True)).backward()
        results.append((logprobs.detach(), entropy.detach(), leaf.grad))
    for fused, expected in zip(*results, strict=True):
        assert torch.allclose(fused, expected, atol=2e-5)


@pytest.mark.parametrize("used", [0, 1])
def test_what_the_loss_does_not_use_has_no_part_in_the_gradient(used):
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([0, 2, 4])
    token_logprobs(logits, targets, 1.0, True)[used].sum().backward()
    leaf = logits.detach().clone().requires_grad_()
    plain(leaf, targets, 1.0)[used].sum().backward()
    assert torch.allclose(logits.grad, leaf.grad, atol=1e-6)


def test_a_token_that_is_impossible_has_no_gradient_and_makes_no_nan():
    logits = torch.tensor([[0.0, 1000.0, -1000.0]], requires_grad=True)
    logprobs, entropy = token_logprobs(logits, torch.tensor([1]), with_entropy=True)
    (logprobs.sum() + entropy.sum()).backward()
    assert logits.grad.tolist() == [[0, 0, 0]]


def test_half_precision_logits_are_read_in_fp32_and_get_their_gradient_in_half():
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    logprobs, _ = token_logprobs(logits, torch.tensor([0, 1]), 0.5)
    logprobs.sum().backward()
    assert (logprobs.dtype, logits.grad.dtype) == (torch.float32, torch.bfloat16)
    assert torch.allclose(logprobs, plain(logits, torch.tensor([0, 1]), 0.5)[0])

"""Activations that are made again: the same loss and gradients, and fewer tensors kept for the backward pass."""

import copy

import pytest
import torch
import transformers

from posttrain.core.errors import RequestError
from posttrain.trainers.activation_checkpointing import recompute_activations
from posttrain.trainers.critic import Critic
from posttrain.trainers.forward import completion_logprobs, completion_outputs
from posttrain.trainers.packed_attention import read_packed
from posttrain.trainers.packed_rows import PackedRows
from posttrain.trainers.padded_rows import PaddedRows

GROUPS = [0, 0, 1, 1]
PROMPTS = [[1, 2, 3], [1, 2, 3], [4, 5], [4, 5]]
COMPLETIONS = [[6, 7, 8], [9], [10, 11], [12, 13, 14]]


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=0.5,  # which evaluation mode switches off, and must stay off
        initializer_range=0.3,
    )
    return transformers.Qwen2ForCausalLM(config).eval()


def logprobs(model, rows):
    return completion_logprobs(model, rows)[0]


def learnt(module, rows, of):
    """The loss, its gradients, and how many bytes the forward pass kept for them."""
    kept = 0

    def note(tensor):
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = of(module, rows).square().sum()
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in module.parameters()], kept


@pytest.mark.parametrize("layout", [PackedRows(), PaddedRows()], ids=["packed", "padded"])
@pytest.mark.parametrize("of", [logprobs, completion_outputs], ids=["policy", "critic"])
def test_loss_and_gradients_are_the_same_and_less_is_kept(model, layout, of):
    assert read_packed(model)
    plain = Critic(model) if of is completion_outputs else model
    if of is completion_outputs:
        torch.nn.init.constant_(plain.head.weight, 0.3)
    again = copy.deepcopy(plain)
    recompute_activations(again)
    rows = layout.rows(PROMPTS, COMPLETIONS, GROUPS)
    loss, gradients, kept = learnt(plain, rows, of)
    other_loss, other_gradients, other_kept = learnt(again, rows, of)
    assert torch.equal(loss, other_loss)
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    for one, other in zip(gradients, other_gradients, strict=True):
        assert (one is None and other is None) or torch.allclose(one, other, atol=1e-6)
    assert other_kept < kept / 2


def test_nothing_is_kept_where_no_gradient_is_asked_for(model):
    recompute_activations(model)
    with torch.inference_mode():
        assert torch.isfinite(logprobs(model, PaddedRows().rows(PROMPTS, COMPLETIONS, GROUPS))).all()


def test_a_module_without_layers_of_transformers_is_refused():
    with pytest.raises(RequestError, match="gradient_checkpointing"):
        recompute_activations(torch.nn.Linear(2, 2))

"""Log-probabilities, entropies and values of completions against one unpadded forward pass a row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM

from posttrain.trainers.critic import Critic
from posttrain.trainers.forward import completion_logprobs, completion_outputs, micro_batches, pad_rows

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
COMPLETIONS = [[1, 2, 3, 4], [5, 6], [7]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        initializer_range=0.5,
    )
    return Qwen2ForCausalLM(config).eval()


def test_logprobs_and_entropies_equal_those_of_each_row_alone(model):
    with torch.no_grad():
        logprobs, entropy = completion_logprobs(model, pad_rows(PROMPTS, COMPLETIONS), 0.7, with_entropy=True)
    assert logprobs.shape == entropy.shape == (3, 4)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        logits = model(torch.tensor([prompt + completion])).logits[0].detach() / 0.7
        for t, token in enumerate(completion):
            p = torch.log_softmax(logits[len(prompt) - 1 + t], dim=-1)
            assert float(logprobs[row, t]) == pytest.approx(float(p[token]), abs=1e-5)
            assert float(entropy[row, t]) == pytest.approx(float(-(p.exp() * p).sum()), abs=1e-5)
        assert (logprobs[row, len(completion) :] == 0).all()
        assert (entropy[row, len(completion) :] == 0).all()


def test_values_are_of_the_state_before_each_token(model):
    critic = Critic(model)
    torch.nn.init.normal_(critic.head.weight)
    values = completion_outputs(critic, pad_rows(PROMPTS, COMPLETIONS))
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        for t in range(len(completion)):
            state = critic(torch.tensor([prompt + completion[:t]]))[0, -1]
            assert float(values[row, t].detach()) == pytest.approx(float(state.detach()), abs=1e-5)


def test_a_new_critic_values_everything_at_zero_and_shares_nothing_with_the_policy(model):
    critic = Critic(model)
    assert (critic(torch.tensor([[1, 2, 3]])) == 0).all()
    policy_parameters = {p.data_ptr() for p in model.parameters()}
    assert not policy_parameters & {p.data_ptr() for p in critic.parameters()}


def test_an_empty_completion_is_refused():
    with pytest.raises(ValueError, match="empty"):
        pad_rows([[1, 2]], [[]])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths, budget):
    groups = micro_batches(lengths, budget)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or max(lengths[row] for row in group) * len(group) <= budget
    assert [lengths[row] for group in groups for row in group] == sorted(lengths, reverse=True)

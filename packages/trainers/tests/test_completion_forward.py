"""Log-probabilities, entropies and values of completions, in either layout, against one forward pass a row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM

from posttrain.trainers.critic import Critic
from posttrain.trainers.forward import completion_logprobs, completion_outputs
from posttrain.trainers.packed_attention import read_packed
from posttrain.trainers.packed_rows import PackedRows
from posttrain.trainers.padded_rows import PaddedRows

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
COMPLETIONS = [[1, 2, 3, 4], [5, 6], [7]]
GROUPS = [0, 1, 2]
layouts = pytest.mark.parametrize("layout", [PaddedRows(), PackedRows()])


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
    model = Qwen2ForCausalLM(config).eval()
    assert read_packed(model)
    return model


@layouts
def test_logprobs_and_entropies_equal_those_of_each_row_alone(model, layout):
    with torch.no_grad():
        rows = layout.rows(PROMPTS, COMPLETIONS, GROUPS)
        logprobs, entropy = completion_logprobs(model, rows, 0.7, with_entropy=True)
    assert logprobs.shape == entropy.shape == (3, 4)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        logits = model(torch.tensor([prompt + completion])).logits[0].detach() / 0.7
        for t, token in enumerate(completion):
            p = torch.log_softmax(logits[len(prompt) - 1 + t], dim=-1)
            assert float(logprobs[row, t]) == pytest.approx(float(p[token]), abs=1e-5)
            assert float(entropy[row, t]) == pytest.approx(float(-(p.exp() * p).sum()), abs=1e-5)
        assert (logprobs[row, len(completion) :] == 0).all()
        assert (entropy[row, len(completion) :] == 0).all()


@layouts
def test_values_are_of_the_state_before_each_token(model, layout):
    critic = Critic(model)
    torch.nn.init.normal_(critic.head.weight)
    values = completion_outputs(critic, layout.rows(PROMPTS, COMPLETIONS, GROUPS))
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        for t in range(len(completion)):
            state = critic(torch.tensor([prompt + completion[:t]]))[0, -1]
            assert float(values[row, t].detach()) == pytest.approx(float(state.detach()), abs=5e-5)


def test_a_new_critic_values_everything_at_zero_and_shares_nothing_with_the_policy(model):
    critic = Critic(model)
    assert (critic(torch.tensor([[1, 2, 3]])) == 0).all()
    policy_parameters = {p.data_ptr() for p in model.parameters()}
    assert not policy_parameters & {p.data_ptr() for p in critic.parameters()}


@layouts
def test_an_empty_completion_is_refused(layout):
    with pytest.raises(ValueError, match="empty"):
        layout.rows([[1, 2]], [[]], [0])


LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=30)


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 200))
def test_padded_micro_batches_hold_every_row_once_within_the_budget(lengths, budget):
    prompts, completions = [[1] * p for p, _ in lengths], [[1] * c for _, c in lengths]
    batches = PaddedRows().split(prompts, completions, range(len(lengths)), budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    totals = [p + c for p, c in lengths]
    for batch in batches:
        assert len(batch) == 1 or max(totals[row] for row in batch) * len(batch) <= budget
    assert [totals[row] for batch in batches for row in batch] == sorted(totals, reverse=True)


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 200))
def test_packed_micro_batches_hold_every_row_once_and_count_a_prompt_once(lengths, members, budget):
    groups = [row // members for row in range(len(lengths))]
    prompts = [[1] * lengths[group * members][0] for group in groups]
    completions = [[1] * c for _, c in lengths]
    layout = PackedRows()
    batches = layout.split(prompts, completions, groups, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        rows = layout.rows(*([of[row] for row in batch] for of in (prompts, completions, groups)))
        assert len(batch) == 1 or rows.inputs["input_ids"].shape[1] <= budget

"""Answers that share their prompt's computation score as they would alone."""

import pytest
import torch

from posttrain.trainers.models import load_sequence_classifier
from posttrain.trainers.shared_prompt import prompt_batch

EXAMPLES = [([1, 2, 3], [[4, 5], [6, 7, 8, 9]]), ([9, 8, 7, 6, 5], [[1], [2, 3], [3, 2, 1]])]


def scores_of(model, batch):
    hidden = model.base_model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=batch.attention_mask
    ).last_hidden_state
    return model.score(hidden[batch.rows, batch.ends]).squeeze(-1)


def test_scores_and_gradients_equal_those_of_separate_sequences(tiny_checkpoint):
    model, _ = load_sequence_classifier(tiny_checkpoint, seed=0)
    alone = torch.cat([model(torch.tensor([prompt + a])).logits[0] for prompt, answers in EXAMPLES for a in answers])
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0])
    (alone * weights).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    shared = scores_of(model, prompt_batch(EXAMPLES, pad_token_id=257))
    (shared * weights).sum().backward()
    assert torch.allclose(shared, alone, atol=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-5), name


def test_layout_by_hand():
    batch = prompt_batch([([5, 6], [[7], [8, 9]]), ([1], [[2]])], pad_token_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [1, 2, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 3], [0, 1, 0, 0, 0]]
    assert (batch.rows.tolist(), batch.ends.tolist(), batch.sizes) == ([0, 0, 1], [2, 4, 1], [2, 1])
    seen = batch.attention_mask[0, 0].int().tolist()
    assert seen == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]


@pytest.mark.parametrize("answers", [[], [[1], []]])
def test_an_example_without_an_answer_is_refused(answers):
    with pytest.raises(ValueError, match="at least one"):
        prompt_batch([([1], answers)], pad_token_id=0)

"""Log-probabilities of pairs: what the layouts give is what a plain forward pass over each sequence gives."""

import pytest
import torch

from posttrain.trainers.comparisons import comparisons, from_pair
from posttrain.trainers.models import load_policy
from posttrain.trainers.packed_rows import PackedRows
from posttrain.trainers.padded_rows import PaddedRows
from posttrain.trainers.pair_logps import BATCH, all_pair_logps, as_pair, pair_layout, pair_logps, pair_rows


@pytest.fixture
def rows(tiny_tokenizer, pairs):
    return comparisons(tiny_tokenizer, [from_pair(pair) for pair in pairs], 128).rows


def alone(model, prompt, answer):
    """log π(answer | prompt), token by token from one sequence's logits."""
    logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) - 1 + place, token] for place, token in enumerate(answer)).item()


@pytest.mark.parametrize("layout", [PackedRows(), PaddedRows()])
def test_each_answer_s_logps_and_length_are_its_own(tiny_checkpoint, rows, layout):
    model = load_policy(tiny_checkpoint).eval()
    expected = torch.tensor([[alone(model, row.prompt_ids, answer) for answer in row.answers] for row in rows[:5]])
    if isinstance(layout, PackedRows):
        assert isinstance(pair_layout(model), PackedRows)
    found = pair_logps(model, pair_rows(layout, [as_pair(row) for row in rows[:5]]))
    assert torch.allclose(torch.stack([found.chosen, found.rejected], 1), expected, atol=1e-4)
    assert found.chosen_lengths.tolist() == [len(row.answers[0]) for row in rows[:5]]
    assert found.rejected_lengths.tolist() == [len(row.answers[1]) for row in rows[:5]]


def test_an_answer_ends_with_one_end_token(tiny_tokenizer, rows):
    for row in rows:
        for answer in row.answers:
            assert answer.count(tiny_tokenizer.eos_token_id) == 1
            assert answer[-1] == tiny_tokenizer.eos_token_id


def test_batches_by_length_keep_the_order_of_the_pairs(tiny_checkpoint, rows):
    model = load_policy(tiny_checkpoint).train()
    layout = pair_layout(model)
    model.train()
    assert len(rows) > BATCH
    references = torch.arange(2.0 * len(rows)).view(-1, 2)
    found = all_pair_logps(model, layout, rows, "fp32", references)
    one_by_one = [pair_logps(model, pair_rows(layout, [as_pair(row)])) for row in rows]
    assert torch.allclose(found.chosen, torch.cat([one.chosen for one in one_by_one]), atol=1e-4)
    assert torch.allclose(found.rejected, torch.cat([one.rejected for one in one_by_one]), atol=1e-4)
    assert found.chosen_lengths.tolist() == [len(row.answers[0]) for row in rows]
    assert torch.equal(torch.stack([found.ref_chosen, found.ref_rejected], 1), references)
    assert not found.chosen.requires_grad
    assert model.training


def test_a_model_that_reads_no_packed_rows_gets_padded_ones(tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("posttrain.trainers.pair_logps.read_packed", lambda model: False)
    assert isinstance(pair_layout(load_policy(tiny_checkpoint)), PaddedRows)
    assert "cannot read packed rows" in capsys.readouterr().err

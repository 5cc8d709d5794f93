"""The reference's log-probabilities: computed once, kept, and never taken for another reference's or other data's."""

import pytest
import safetensors
import torch

from posttrain.core.errors import RequestError
from posttrain.trainers import reference_logprobs
from posttrain.trainers.comparisons import comparisons, from_pair
from posttrain.trainers.models import load_policy, save_checkpoint
from posttrain.trainers.pair_logps import all_pair_logps, pair_layout
from posttrain.trainers.reference_logprobs import reference_logps


@pytest.fixture
def policy(tiny_checkpoint):
    return load_policy(tiny_checkpoint)


@pytest.fixture
def other(tmp_path, tiny_checkpoint, tiny_tokenizer):
    """A checkpoint with other weights."""
    model = load_policy(tiny_checkpoint)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    save_checkpoint(model, tiny_tokenizer, tmp_path / "other")
    return tmp_path / "other"


@pytest.fixture
def compute(tmp_path, tiny_checkpoint, tiny_tokenizer, policy, pairs, monkeypatch):
    """(reference, first row, precision) -> values; `compute.times` says how often they were computed."""
    layout = pair_layout(policy)
    rows = comparisons(tiny_tokenizer, [from_pair(pair) for pair in pairs[:12]], 128).rows

    def counted(*arguments):
        compute.times += 1
        return all_pair_logps(*arguments)

    monkeypatch.setattr(reference_logprobs, "all_pair_logps", counted)

    def compute(reference=tiny_checkpoint, first=0, precision="fp32"):
        file = tmp_path / "state" / "reference_logps.safetensors"
        return reference_logps(file, reference, tiny_checkpoint, policy, layout, rows[first:], precision)

    compute.times, compute.rows, compute.file = 0, rows, tmp_path / "state" / "reference_logps.safetensors"
    return compute


def test_without_another_reference_they_are_the_start_s_own(compute, policy):
    found = all_pair_logps(policy, pair_layout(policy), compute.rows, "fp32")
    assert torch.equal(compute().values, torch.stack([found.chosen, found.rejected], 1))


def test_a_second_call_reads_the_same_bits_and_seconds(compute):
    first, second = compute(), compute()
    assert torch.equal(first.values, second.values)
    assert first.seconds == second.seconds > 0
    assert compute.times == 1


def test_another_reference_other_data_or_precision_is_computed_again(compute, other):
    values = compute().values
    for changed in ({"reference": other}, {"first": 1}, {"precision": "bf16"}):
        before = compute.times
        compute(**changed)
        assert compute.times == before + 1, changed
    assert not torch.allclose(compute(reference=other).values, values, atol=0.1)
    assert torch.equal(compute().values, values)


def test_a_damaged_file_is_computed_again(compute):
    values = compute().values
    compute.file.write_bytes(compute.file.read_bytes()[:-40])
    assert torch.equal(compute().values, values)
    compute.file.write_bytes(b"")
    assert torch.equal(compute().values, values)
    assert compute.times == 3
    with safetensors.safe_open(compute.file, framework="pt") as opened:
        assert set(opened.keys()) == {"values"}


def test_a_reference_with_another_vocabulary_is_refused(compute, tmp_path, other, tiny_tokenizer, policy):
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"a"', '"swap"', 1).replace('"b"', '"a"', 1))
    with pytest.raises(RequestError, match="has another vocabulary than"):
        compute(reference=other)
    with pytest.raises(RequestError, match="does not exist"):
        compute(reference=tmp_path / "nothing")

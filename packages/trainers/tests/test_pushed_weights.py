"""What is sent to a policy service, and in how many bytes; what a state does not fit."""

import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from online_fakes import FakePolicy, tiny_inputs, tiny_model

from posttrain.core.errors import WorkError
from posttrain.core.hashing import digest_weights
from posttrain.trainers.models import load_policy, save_checkpoint
from posttrain.trainers.rollouts import fixed_policy, served_dtype
from posttrain.trainers.state import load_state, save_only_what_is_trained, save_state


class TellingPolicy(FakePolicy):
    """Says what it computes in and the digest of what it holds, as our service does."""

    def __init__(self, checkpoint, dtype="float32"):
        super().__init__(checkpoint)
        self.says = {"dtype": dtype, "sha256": digest_weights(checkpoint)}

    def models(self):
        (model,) = super().models()["data"]
        return {"data": [model | self.says]}

    def push(self, version, weights):
        self.sent = safetensors.torch.load_file(weights)
        self.says = self.says | {"sha256": ""}
        return super().push(version, weights)


@pytest.fixture
def start(tmp_path):
    return tiny_inputs(tmp_path, policy=object()).start


def sample(policy):
    return policy.complete([[1, 2, 3]], 0, n=1, max_tokens=3, temperature=1.0, seed=0)


def test_a_service_that_holds_the_checkpoint_is_sent_nothing(start):
    client = TellingPolicy(start)
    first = sample(fixed_policy(client, start))
    assert client.pushed == []
    client.says["sha256"] = ""
    assert sample(fixed_policy(client, start)) == first
    assert client.pushed == [1]


def test_a_service_that_holds_another_checkpoint_is_sent_this_one(start, tmp_path):
    save_checkpoint(*tiny_model(seed=5), tmp_path / "other")
    client = TellingPolicy(tmp_path / "other")
    policy = fixed_policy(client, start)
    sample(policy)
    assert client.pushed == [1]
    assert torch.equal(
        client.sent["model.norm.weight"], safetensors.torch.load_file(start / "model.safetensors")["model.norm.weight"]
    )


@pytest.mark.parametrize("version", [0, 3], ids=["it came back with another", "somebody pushed another"])
def test_a_service_that_held_the_checkpoint_and_lost_it_is_sent_it(start, tmp_path, version):
    save_checkpoint(*tiny_model(seed=5), tmp_path / "other")
    client = TellingPolicy(start)
    policy = fixed_policy(client, start)
    expected = sample(policy)
    client.model, client.version = load_policy(tmp_path / "other").eval(), version
    client.says["sha256"] = digest_weights(tmp_path / "other")
    assert sample(policy) == expected
    assert (client.pushed, policy.repeated_pushes) == ([version + 1], 1)
    assert sample(policy) == expected
    assert len(client.pushed) == 1


def test_full_weights_are_sent_in_what_the_service_computes_in(start):
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        client = TellingPolicy(start, dtype)
        client.says["sha256"] = ""
        sample(fixed_policy(client, start))
        assert {tensor.dtype for tensor in client.sent.values()} == {getattr(torch, dtype)}
        assert set(client.sent) == {name for name, _ in load_policy(start).named_parameters()}  # tied ones once
        sizes[dtype] = sum(tensor.nbytes for tensor in client.sent.values())
    assert sizes["float32"] == 2 * sizes["bfloat16"]


def test_what_a_service_does_not_say_is_fp32():
    for said in ({}, {"dtype": None}, {"dtype": "nonsense"}, {"dtype": "int8"}, {"dtype": "nn"}):
        assert served_dtype({"data": [{"id": "policy@0", **said}]}) == torch.float32
    assert served_dtype({"data": []}) == torch.float32


def prepared(model):
    AcceleratorState._reset_state()
    accelerator = Accelerator()
    save_only_what_is_trained(accelerator)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    return accelerator, *accelerator.prepare(model, optimizer)


def half_frozen():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    return model


def test_a_state_holds_what_is_trained_and_gives_it_back(tmp_path):
    accelerator, model, _ = prepared(half_frozen())
    save_state(accelerator, tmp_path, 1)
    (file,) = (tmp_path / "step-000001").glob("*.safetensors")
    assert set(safetensors.torch.load_file(file)) == {"1.weight", "1.bias"}
    saved = model[1].weight.detach().clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    frozen = model[0].weight.detach().clone()
    assert load_state(accelerator, tmp_path)
    assert torch.equal(model[1].weight, saved)
    assert torch.equal(model[0].weight, frozen)


def test_a_state_of_other_trained_weights_is_refused_by_name(tmp_path):
    accelerator, _, _ = prepared(half_frozen())
    save_state(accelerator, tmp_path, 1)
    whole, _, _ = prepared(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
    with pytest.raises(WorkError, match="0.bias"):
        load_state(whole, tmp_path)
    (tmp_path / "step-000001" / "trained_0.safetensors").unlink()
    with pytest.raises(WorkError, match="trained_0.safetensors; start the run anew"):
        load_state(accelerator, tmp_path)

"""The generation thread survives weights that cannot be loaded and clients that go away."""

import pytest
from transformers import Qwen2ForCausalLM

from posttrain.rollout import torch_engine
from posttrain.rollout.sampling import Sampling
from posttrain.rollout.scheduler import Job, Scheduler, VersionNotHeld
from posttrain.rollout.torch_engine import TorchEngine


@pytest.fixture
def scheduler(make_model):
    running = Scheduler(TorchEngine(make_model(Qwen2ForCausalLM), eos_ids=[2]))
    yield running
    running.close()


def tensors(scheduler):
    return {name: parameter.detach().clone() for name, parameter in scheduler.engine.model.named_parameters()}


def test_weights_that_cannot_be_loaded_never_were(scheduler, monkeypatch):
    def broken(model, given):
        raise MemoryError("no memory left on the device")

    with monkeypatch.context() as patch:
        patch.setattr(torch_engine, "load_weights", broken)
        with pytest.raises(MemoryError):
            scheduler.swap(1, "one", tensors(scheduler))
    assert scheduler.weights.version == 0
    with pytest.raises(VersionNotHeld):
        scheduler.submit(Job(scheduler.engine.samples([[5, 6]], Sampling(max_tokens=2))), version=1)
    scheduler.swap(1, "one", tensors(scheduler))
    assert (scheduler.weights.version, scheduler.weights.digest) == (1, "one")

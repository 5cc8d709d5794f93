"""The generation thread survives weights that cannot be loaded and clients that go away."""

import threading

import pytest
from transformers import Qwen2ForCausalLM

from posttrain.rollout import scheduler as scheduler_module
from posttrain.rollout.engine import Engine
from posttrain.rollout.sampling import Sampling
from posttrain.rollout.scheduler import Job, Scheduler, VersionNotHeld


@pytest.fixture
def scheduler(make_model):
    running = Scheduler(Engine(make_model(Qwen2ForCausalLM), eos_ids=[2]), digest="start")
    yield running
    running.close()


def tensors(scheduler):
    return {name: parameter.detach().clone() for name, parameter in scheduler.engine.model.named_parameters()}


def test_push_whose_client_went_away_is_loaded_and_the_thread_lives(scheduler):
    finished = scheduler.swap(1, "one", tensors(scheduler))
    finished.cancel()
    scheduler.swap(2, "two", tensors(scheduler)).result(timeout=10)
    assert (scheduler.version, scheduler.digest) == (2, "two")


def test_weights_that_cannot_be_loaded_never_were(scheduler, monkeypatch):
    def broken(model, given):
        raise MemoryError("no memory left on the device")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler_module, "load_weights", broken)
        with pytest.raises(MemoryError):
            scheduler.swap(1, "one", tensors(scheduler)).result(timeout=10)
    assert scheduler.newest == (0, "start")
    with pytest.raises(VersionNotHeld):
        scheduler.submit(Job(scheduler.engine.samples([[5, 6]], Sampling(max_tokens=2))), version=1)
    scheduler.swap(1, "one", tensors(scheduler)).result(timeout=10)
    assert scheduler.newest == (1, "one")


def test_job_that_counted_on_weights_that_could_not_be_loaded_fails(scheduler, monkeypatch):
    loading, go = threading.Event(), threading.Event()

    def broken(model, given):
        loading.set()
        go.wait(10)
        raise MemoryError("no memory left on the device")

    monkeypatch.setattr(scheduler_module, "load_weights", broken)
    push = scheduler.swap(1, "one", tensors(scheduler))
    loading.wait(10)
    job = Job(scheduler.engine.samples([[5, 6], [7]], Sampling(max_tokens=2)))
    assert scheduler.submit(job, version=1) == 1
    go.set()
    with pytest.raises(MemoryError):
        push.result(timeout=10)
    with pytest.raises(VersionNotHeld, match="version 1 could not be loaded"):
        job.finished.result(timeout=10)

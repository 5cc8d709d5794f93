"""vLLM's engine behind ours, with a toy in its place: whose weights answer, what waits, when it sleeps.

The real one is compared in tests/test_peer_vllm.py, in its own environment.
"""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from posttrain.core.errors import RequestError, WorkError
from posttrain.rollout import vllm_load
from posttrain.rollout.sampling import Sampling
from posttrain.rollout.vllm_engine import VllmEngine

END = 2


class ToyVllm:
    """Samples the number of weights loaded so far, plus ten, and notes what it is told."""

    def __init__(self):
        self.model_config = SimpleNamespace(max_model_len=64)
        self.told = []
        self.requests = {}
        self.loads = 0
        self.asleep = self.fails = self.cut_short = False
        self.reason = "length"

    def add_request(self, name, prompt, parameters):
        assert not self.asleep
        self.requests[name] = parameters.max_tokens

    def abort_request(self, names):
        for name in names:
            del self.requests[name]

    def step(self):
        outputs = []
        for name in list(self.requests):
            self.requests[name] -= 1
            flat = SimpleNamespace(token_ids=[10], logprobs=[-0.5], start_indices=[0], end_indices=[1])
            completion = SimpleNamespace(token_ids=[10 + self.loads], logprobs=flat, finish_reason=self.reason)
            finished = self.cut_short or not self.requests[name]
            outputs.append(
                SimpleNamespace(request_id=name, outputs=[completion], finished=finished, prompt_logprobs=None)
            )
            if finished:
                del self.requests[name]
        return outputs

    def collective_rpc(self, method, args):
        assert not self.requests, "weights were replaced under running requests"
        if self.fails:
            raise RuntimeError("out of memory")
        self.told.append(args[0])
        self.loads += 1

    def reset_prefix_cache(self):
        self.told.append("prefix cache")
        return True

    def is_sleeping(self):
        return self.asleep

    def sleep(self, level):
        self.asleep = True
        self.told.append("sleep")

    def wake_up(self):
        self.asleep = False
        self.told.append("wake")


@pytest.fixture
def make(small_models, monkeypatch):
    monkeypatch.setattr(VllmEngine, "_parameters", lambda self, sample: sample.sampling)

    def build(sleeps=False, max_batch=4):
        return VllmEngine(ToyVllm(), small_models[LlamaForCausalLM], [END], max_batch, sleeps=sleeps)

    return build


@pytest.fixture
def small_models():
    from transformers import LlamaConfig

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    with torch.device("meta"):
        return {LlamaForCausalLM: LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=64, **sizes))}


def some(engine, count=1, tokens=3):
    return engine.samples([[5, 6]] * count, Sampling(max_tokens=tokens))


def finish(engine):
    ended = []
    while engine.running:
        ended += engine.step().ended
    return ended


def test_samples_in_flight_end_on_their_weights_before_newer_ones_are_loaded(make):
    engine = make()
    old, new = some(engine, tokens=4), some(engine, tokens=2)
    engine.add(old)
    engine.step()
    engine.load({"w": torch.ones(1)}, 1, "one")
    engine.add(new)
    assert finish(engine) == [*old, *new]
    assert (old[0].token_ids, new[0].token_ids) == ([10] * 4, [11] * 2)
    assert engine._llm.told == [{"w": torch.ones(1)}, "prefix cache"]


def test_a_sample_of_older_weights_that_comes_late_still_runs_on_them(make):
    engine = make()
    late = some(engine)
    late[0].weights = engine.weights
    engine.load({"w": torch.ones(1)}, 1, "one")
    new = some(engine)
    engine.add(new)
    finish(engine)
    engine.add(late)
    finish(engine)
    # None is what the checkpoint holds.
    assert engine._llm.told == [{"w": torch.ones(1)}, "prefix cache", None, "prefix cache"]


def test_weights_that_nobody_asked_for_are_never_loaded(make):
    engine = make()
    for version in (1, 2, 3):
        engine.load({"w": torch.full((1,), float(version))}, version, str(version))
    engine.add(some(engine))
    finish(engine)
    assert engine._llm.told == [{"w": torch.tensor([3.0])}, "prefix cache"]


def test_a_failed_load_is_never_followed_by_another(make):
    engine = make()
    engine.load({"w": torch.ones(1)}, 1, "one")
    engine._llm.fails = True
    engine.add(some(engine))
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.step()
    engine.drop()
    engine._llm.fails = False
    engine.add(some(engine))
    with pytest.raises(WorkError, match="restart the service"):
        engine.step()


def test_cancelled_samples_leave_vllm_and_the_queue(make):
    engine = make()
    flying, waiting = some(engine, tokens=9), some(engine, tokens=9)
    engine.add(flying)
    engine.step()
    engine.load({"w": torch.ones(1)}, 1, "one")
    engine.add(waiting)
    flying[0].cancelled = waiting[0].cancelled = True
    assert engine.step().ended == [*flying, *waiting]
    assert (engine.running, engine._llm.requests) == (0, {})
    assert {sample.finish_reason for sample in [*flying, *waiting]} == {"cancelled"}


def test_a_watcher_ends_a_sample_and_the_request_behind_it(make):
    engine = make()
    samples = some(engine, tokens=9)
    samples[0].watcher = SimpleNamespace(push=lambda token: True)
    engine.add(samples)
    assert engine.step().ended == samples
    assert (samples[0].finish_reason, engine._llm.requests) == ("stop", {})


def test_memory_is_given_back_when_nothing_runs_and_before_the_last_sample_is_told(make):
    engine = make(sleeps=True)
    engine.add(some(engine, tokens=1))
    engine.step()
    assert engine._llm.told == ["sleep"]
    engine.load({"w": torch.ones(1)}, 1, "one")
    engine.add(some(engine, tokens=1))
    engine.step()
    assert engine._llm.told == ["sleep", "wake", {"w": torch.ones(1)}, "prefix cache", "sleep"]


def test_more_wait_in_vllm_than_run_and_no_more_than_that(make):
    engine = make(max_batch=3)
    engine.add(some(engine, count=4))
    assert engine.free == 2


def test_prompts_are_scored_at_temperature_one_only(make):
    with pytest.raises(RequestError, match="temperature 1"):
        make().samples([[5]], Sampling(max_tokens=0, echo=True, temperature=0.5))


def test_a_prompt_that_fills_the_context_is_refused_before_vllm_sees_it(make):
    engine = make()
    with pytest.raises(RequestError, match="fills the context of 64"):
        engine.samples([[5] * 64], Sampling(max_tokens=0, echo=True, temperature=1))


def test_a_sequence_that_vllm_ended_by_itself_is_an_error(make):
    engine = make()
    engine._llm.reason, engine._llm.cut_short = "abort", True
    engine.add(samples := some(engine, tokens=5))
    with pytest.raises(WorkError, match="ended a sequence with 'abort'"):
        finish(engine)
    assert samples[0].finish_reason is None


@pytest.mark.parametrize(
    ("saved", "asked", "computed"),
    [
        (torch.float32, "auto", "float32"),
        (torch.bfloat16, "auto", "bfloat16"),
        (torch.float32, "bfloat16", "bfloat16"),
    ],
)
def test_on_a_gpu_vllm_computes_in_what_was_asked_for_or_saved_and_says_so(
    small_models, monkeypatch, tmp_path, saved, asked, computed
):
    config = small_models[LlamaForCausalLM].config
    config.dtype = saved
    config.save_pretrained(tmp_path)
    given = {}
    arguments = SimpleNamespace(EngineArgs=lambda **options: given.update(options))
    llm_engine = SimpleNamespace(LLMEngine=SimpleNamespace(from_engine_args=lambda _: ToyVllm()))
    modules: dict[str, Any] = {name: ModuleType(name) for name in ("vllm", "vllm.engine", "vllm.v1", "vllm.v1.engine")}
    modules |= {"vllm.engine.arg_utils": arguments, "vllm.v1.engine.llm_engine": llm_engine}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(vllm_load, "refuse_without_vllm", lambda settings: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    engine = vllm_load.load_vllm_engine(tmp_path, [END], dtype=asked)
    assert given["dtype"] == computed
    assert str(engine.model.dtype) == f"torch.{computed}"

"""Micro: the generation engine on the nano model, by its public entry point; one thread, no HTTP."""

import pytest

from posttrain.data import nano
from posttrain.rollout.load import load_engine
from posttrain.rollout.sampling import Sampling

NEW = 32


@pytest.fixture(scope="module")
def engine():
    return load_engine(nano.BASE)


@pytest.mark.benchmark(group="engine")
def test_prompt_pass(measure, engine, prompts):
    """64 prompts of 40 tokens to their first sampled token."""
    sampling = Sampling(max_tokens=1, ignore_eos=True)
    measure(lambda: engine.generate(prompts, sampling), work=64 * 40, unit="tokens")


@pytest.mark.benchmark(group="engine")
def test_generation(measure, engine, prompts):
    """64 sequences, each its own prompt, with log-probabilities."""
    sampling = Sampling(max_tokens=NEW, ignore_eos=True)
    measure(lambda: engine.generate(prompts, sampling), work=64 * NEW, unit="tokens", rounds=9)


@pytest.mark.benchmark(group="engine")
def test_generation_of_groups(measure, engine, prompts):
    """8 prompts with 8 completions each, as GRPO samples."""
    sampling = Sampling(max_tokens=NEW, ignore_eos=True)
    measure(lambda: engine.generate(prompts[:8], sampling, n=8), work=64 * NEW, unit="tokens", rounds=9)


@pytest.mark.benchmark(group="engine")
def test_engine_step(measure, engine, prompts):
    """64 sequences in flight, by one step of the engine."""
    sampling = Sampling(max_tokens=512, ignore_eos=True)
    engine.add(engine.samples(prompts, sampling))
    engine.step()
    tokens = engine.step().tokens
    measure(engine.step, work=tokens, unit="tokens", calls=8, rounds=11)
    engine.drop()


@pytest.mark.benchmark(group="engine")
def test_truncated_sampling(measure, engine, prompts):
    """As `test_generation`, with temperature, top-k, top-p and min-p at work."""
    sampling = Sampling(max_tokens=NEW, ignore_eos=True, temperature=0.7, top_k=50, top_p=0.9, min_p=0.02)
    measure(lambda: engine.generate(prompts, sampling), work=64 * NEW, unit="tokens", rounds=9)

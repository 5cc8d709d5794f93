"""What only the native engine promises: bits that depend on nothing else that runs, whatever enters and leaves."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2ForCausalLM

from posttrain.core.errors import RequestError
from posttrain.data import nano
from posttrain.rollout.load import dtype_on, load_engine
from posttrain.rollout.native import build, kernel
from posttrain.rollout.native.build import NoKernel
from posttrain.rollout.native.families import NotCovered
from posttrain.rollout.native.kernel import load_kernel
from posttrain.rollout.native_engine import NativeEngine
from posttrain.rollout.sampling import LARGEST_DRAW, Sampling, inverse_cdf
from posttrain.rollout.torch_engine import TorchEngine


def prompts_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 280, (length,), generator=generator).tolist() for length in lengths]


def outcome(samples):
    return [(sample.token_ids, sample.logprobs, sample.finish_reason) for sample in samples]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    n=st.integers(1, 3),
    max_batch=st.integers(1, 30),
    threads=st.integers(1, 3),
    followed=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_bits_of_a_sample_do_not_depend_on_what_runs_beside_it(
    model, native_engine, lengths, n, max_batch, threads, followed
):
    sampling = Sampling(max_tokens=12)
    prompts = prompts_of(lengths)
    alone = native_engine(model, range(2, 40), max_batch=1)
    expected = alone.samples(prompts, sampling, n, seed=4)
    for sample in expected:
        alone.run([sample])
    engine = native_engine(model, range(2, 40), max_batch=max_batch, threads=threads)
    samples = engine.samples(prompts, sampling, n, seed=4)
    if followed:
        samples[0].watcher = Follower()
    engine.run(samples)
    assert outcome(samples) == outcome(expected)


class Follower:
    def __init__(self):
        self.seen = []

    def push(self, token_id):
        self.seen.append(token_id)
        return False


def test_samples_enter_as_others_leave(model, native_engine):
    engine = native_engine(model, [], max_batch=4)
    short = engine.samples(prompts_of([5, 6]), Sampling(max_tokens=3), seed=1)
    long = engine.samples(prompts_of([7, 8]), Sampling(max_tokens=60), seed=2)
    engine.add(short + long)
    assert engine.free == 0
    engine.step()
    assert engine.free == 2
    late = engine.samples(prompts_of([9, 4]), Sampling(max_tokens=10), seed=3)
    engine.add(late)
    while engine.running:
        engine.step()
    alone = native_engine(model, [])
    again = alone.samples(prompts_of([9, 4]), Sampling(max_tokens=10), seed=3)
    alone.run(again)
    assert outcome(late) == outcome(again)


def test_followed_sample_hands_out_each_token_in_the_step_that_drew_it(model, native_engine):
    engine = native_engine(model, [])
    samples = engine.samples(prompts_of([5, 6]), Sampling(max_tokens=5), seed=1)
    follower = samples[0].watcher = Follower()
    engine.add(samples)
    for count in range(1, 6):
        engine.step()
        assert len(follower.seen) == count
    assert follower.seen == samples[0].token_ids
    assert engine.running == 0


def test_prompt_of_a_group_is_computed_once(model, native_engine, monkeypatch):
    engine = native_engine(model, [])
    computed = []
    prefill = kernel.Kernel.prefill

    def counting(self, packed, texts, *rest, **options):
        computed.extend(texts)
        return prefill(self, packed, texts, *rest, **options)

    monkeypatch.setattr(kernel.Kernel, "prefill", counting)
    prompts = prompts_of([9, 4])
    engine.generate(prompts, Sampling(max_tokens=3), n=5)
    assert computed == [tuple(prompt[:-1]) for prompt in prompts]


def test_sequence_outgrows_its_first_segment(make_model, native_engine, monkeypatch):
    monkeypatch.setattr("posttrain.rollout.native_engine.FIRST_CAPACITY", 16)
    model = make_model(Qwen2ForCausalLM)
    grown = native_engine(model, []).generate(prompts_of([30]), Sampling(max_tokens=200), n=2, seed=1)[0]
    monkeypatch.undo()
    whole = native_engine(model, []).generate(prompts_of([30]), Sampling(max_tokens=200), n=2, seed=1)[0]
    assert outcome(grown) == outcome(whole)


def test_old_weights_go_when_their_last_sample_has_ended(make_model, native_engine):
    engine = native_engine(make_model(Qwen2ForCausalLM), [])
    samples = engine.samples(prompts_of([5]), Sampling(max_tokens=20), seed=1)
    engine.add(samples)
    old = weakref.ref(engine.weights.held)
    state = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    engine.load(state, 1, "digest")
    gc.collect()
    assert old() is not None
    while engine.running:
        engine.step()
    samples.clear()
    gc.collect()
    assert old() is None


def test_dropped_engine_is_free_and_goes_on(model, native_engine):
    engine = native_engine(model, [], max_batch=4)
    engine.add(engine.samples(prompts_of([5, 6]), Sampling(max_tokens=50)))
    engine.step()
    engine.drop()
    assert (engine.free, engine.running) == (4, 0)
    assert len(engine.generate(prompts_of([5]), Sampling(max_tokens=4))[0][0].token_ids) == 4


def test_kernel_draws_the_distribution(native_engine):
    vocabulary, count = 48, 100_000
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(vocabulary, generator=generator)
    uniforms = torch.rand(count, generator=generator, dtype=torch.float64)
    for temperature in (1.0, 0.7):
        tokens, logprobs = load_kernel().draw(logits.repeat(count, 1), temperature, uniforms)
        expected = (logits.double() / temperature).softmax(-1)
        counts = torch.bincount(tokens.long(), minlength=vocabulary).double()
        assert float(expected.min()) * count >= 5
        assert stats.chisquare(counts.numpy(), (expected * count).numpy()).pvalue > 1e-3
        assert torch.allclose(logprobs.double(), expected.log()[tokens.long()], atol=1e-6)


@given(seed=st.integers(0, 2**31), vocab=st.sampled_from([16, 48, 1024]), spread=st.sampled_from([0.0, 1.0, 30.0]))
@settings(max_examples=40, deadline=None)
def test_kernel_draws_as_the_sampler_in_python(native_engine, seed, vocab, spread):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(64, vocab, generator=generator)
    uniforms = torch.rand(64, generator=generator, dtype=torch.float64)
    uniforms[0], uniforms[1] = 0.0, LARGEST_DRAW
    tokens, _ = load_kernel().draw(logits, 1.0, uniforms)
    probabilities = logits.log_softmax(-1).exp().double()
    cumulative = probabilities.cumsum(-1)
    cumulative = cumulative / cumulative[:, -1:]
    expected = inverse_cdf(probabilities, uniforms)
    # Where the number lies on the border between two tokens, the last digits decide.
    near = (cumulative - uniforms[:, None]).abs().min(-1).values < 1e-6
    assert bool(((tokens == expected) | near).all())
    assert bool((probabilities.gather(1, tokens[:, None].long()) > 0).all())


def test_greedy_takes_the_first_of_equals(native_engine):
    logits = torch.zeros(2, 32)
    logits[1, 20] = logits[1, 25] = 3.0
    tokens, logprobs = load_kernel().draw(logits, 0.0, torch.zeros(2, dtype=torch.float64))
    assert tokens.tolist() == [0, 20]
    assert torch.allclose(logprobs, logits.log_softmax(-1).max(-1).values, atol=1e-6)


def test_both_engines_draw_the_same_tokens_on_nano(native_engine):
    native, plain = load_engine(nano.BASE, kind="native"), load_engine(nano.BASE, kind="torch")
    assert isinstance(native, NativeEngine)
    assert isinstance(plain, TorchEngine)
    prompts = prompts_of([9, 20, 4])
    a, b = (engine.generate(prompts, Sampling(max_tokens=30), n=4, seed=1) for engine in (native, plain))
    pairs = [(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True)]
    # A draw may fall on the border between two tokens, where the last digits decide.
    assert sum(x.token_ids == y.token_ids for x, y in pairs) >= len(pairs) - 1


def test_bfloat16_is_for_a_gpu_and_a_cpu_says_that_it_computes_in_float32(caplog):
    assert dtype_on("cuda", "bfloat16") == torch.bfloat16
    assert dtype_on("cuda", "float32") == torch.float32
    assert dtype_on("cuda", "auto") is None
    engine = load_engine(nano.BASE, dtype="bfloat16")
    assert engine.model.dtype == torch.float32
    assert "on a CPU every engine computes in float32" in caplog.text


def test_unknown_family_falls_back_to_the_plain_engine_and_says_so(tmp_path, native_engine, caplog):
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50)).save_pretrained(tmp_path)
    engine = load_engine(tmp_path)
    assert isinstance(engine, TorchEngine)
    assert "model type 'gpt2' is none of llama" in caplog.text
    with pytest.raises(RequestError, match="the native engine cannot serve .*gpt2"):
        load_engine(tmp_path, kind="native")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rotary embeddings"),
    ],
)
def test_what_the_kernel_lacks_is_named(make_model, native_engine, change, message):
    config = make_model(Qwen2ForCausalLM).config.__class__(
        **{**make_model(Qwen2ForCausalLM).config.to_dict(), **change}
    )
    with pytest.raises(NotCovered, match=message):
        native_engine(Qwen2ForCausalLM(config), [])


def test_without_a_compiler_the_reason_is_told(monkeypatch, tmp_path):
    build.library.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NoKernel, match=r"no C\+\+ compiler"):
        build.library()
    build.library.cache_clear()


def test_library_is_compiled_once_and_found_again(monkeypatch, tmp_path, native_engine):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.library.cache_clear()
    first = build.library()
    modified = first.stat().st_mtime_ns
    build.library.cache_clear()
    assert build.library() == first
    assert first.stat().st_mtime_ns == modified
    build.library.cache_clear()


def test_broken_compiler_is_named(monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'cannot do it' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.library.cache_clear()
    with pytest.raises(NoKernel, match="cannot compile the kernel: cannot do it"):
        build.library()
    build.library.cache_clear()


SANITIZED = """
import torch
torch.set_num_threads(1)
from posttrain.rollout.native import build
build.FLAGS[:] = ["-O1", "-g", "-fsanitize=address,undefined", *build.FLAGS[1:]]
from transformers import Qwen3Config, Qwen3ForCausalLM
from posttrain.rollout.native_engine import NativeEngine
from posttrain.rollout.sampling import Sampling
config = Qwen3Config(vocab_size=300, hidden_size=72, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
                     head_dim=48, intermediate_size=100, max_position_embeddings=512)
engine = NativeEngine(Qwen3ForCausalLM(config), range(2, 40), max_batch=5, threads=3)
prompts = [list(range(3, 3 + length)) for length in (1, 2, 17, 33, 100)]
for options in ({}, {"top_k": 3}, {"temperature": 0.0}, {"echo": True}, {"ignore_eos": True, "max_tokens": 300}):
    engine.generate(prompts, Sampling(**{"max_tokens": 40, **options}), n=3, seed=1)
print("finished")
"""


@pytest.mark.slow
def test_kernel_touches_no_memory_but_its_own(tmp_path, native_engine):
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(path).is_absolute() for path in found):
        pytest.skip("this g++ has no address sanitizer")
    environment = {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", SANITIZED]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "finished", done.stderr[-2000:]
    assert "runtime error" not in done.stderr


def test_nobody_goes_on_from_a_prompt_whose_computation_failed(model, native_engine, monkeypatch):
    engine, wish = native_engine(model, [], max_batch=8), Sampling(max_tokens=6, temperature=0)
    prompt = prompts_of([9])
    (expected,) = engine.generate(prompt, wish)[0]

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_echo", fail)
        failing = engine.samples(prompt, wish) + engine.samples(prompts_of([3]), Sampling(max_tokens=0, echo=True))
        with pytest.raises(MemoryError) as failure:
            engine.add(failing)
    engine.drop()
    (sample,) = engine.generate(prompt, wish)[0]
    assert failure  # whose traceback keeps everything of the failed call alive
    assert sample.token_ids == expected.token_ids

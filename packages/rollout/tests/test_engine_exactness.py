"""What the engine reports is what the model says: teacher-forced, greedy, padded, grouped, in pieces."""

import pytest
import torch

from posttrain.core.errors import RequestError
from posttrain.data import nano
from posttrain.rollout.decode import Batch
from posttrain.rollout.load import load_engine
from posttrain.rollout.sample import Sample
from posttrain.rollout.sampling import Sampling, sample_seed

TOLERANCE = 1e-4
END = 2


def random_prompts(lengths, vocabulary=280, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def teacher_forced(model, prompt, completion, temperature=1.0):
    """Float[len(prompt) + len(completion) - 1]: log-probabilities of all ids but the first, by one full pass."""
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logprobs = (model(ids).logits / temperature).log_softmax(-1)
    return logprobs[0, :-1].gather(1, ids[0, 1:, None])[:, 0]


def assert_exact(model, samples, temperature=1.0):
    for sample in samples:
        expected = teacher_forced(model, sample.prompt, sample.token_ids, temperature)[len(sample.prompt) - 1 :]
        assert torch.allclose(torch.tensor(sample.logprobs), expected, atol=TOLERANCE, rtol=0)


def flat(groups):
    return [sample for group in groups for sample in group]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_equal_a_full_forward_pass(any_model, temperature, make_engine):
    engine = make_engine(any_model, [END])
    groups = engine.generate(
        random_prompts([3, 40, 17, 40, 100, 1]), Sampling(max_tokens=40, temperature=temperature), n=3, seed=5
    )
    assert_exact(any_model, flat(groups), temperature)


def test_logprobs_stay_exact_while_rows_end_and_are_dropped(any_model, make_engine):
    # Ten end tokens make rows end at very different places, so rows and leading columns are dropped many times.
    engine = make_engine(any_model, range(2, 60))
    samples = flat(engine.generate(random_prompts(range(1, 60, 2)), Sampling(max_tokens=60), n=2, seed=1))
    assert len({len(sample.token_ids) for sample in samples}) > 5
    assert_exact(any_model, samples)


def assert_greedy_as_generate(model, prompt, sample, end_ids):
    with torch.no_grad():
        expected = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=sample.sampling.max_tokens,
            eos_token_id=list(end_ids),
            pad_token_id=0,
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        )[0, len(prompt) :].tolist()
        logits = model(torch.tensor([[*prompt, *expected]])).logits[0, len(prompt) - 1 : -1]
    best = logits.topk(2, dim=-1).values
    clear = (best[:, 0] - best[:, 1] > TOLERANCE).tolist()
    agree = clear.index(False) if False in clear else len(expected)
    assert sample.token_ids[:agree] == expected[:agree]
    return agree


def test_greedy_equals_generate(any_model, make_engine):
    prompts = random_prompts([5, 9, 30, 30, 2])
    engine = make_engine(any_model, [END])
    groups = engine.generate(prompts, Sampling(max_tokens=30, temperature=0.0))
    compared = [assert_greedy_as_generate(any_model, p, g[0], [END]) for p, g in zip(prompts, groups, strict=True)]
    assert sum(compared) >= 100


def test_nano_base_is_exact():
    from posttrain.data.chat import load_tokenizer

    engine = load_engine(nano.BASE)
    prompts = [load_tokenizer(nano.BASE)(text)["input_ids"] for text in ("Tom has 3 apples.", "The", "2 + 3 =")]
    samples = flat(engine.generate(prompts, Sampling(max_tokens=40), n=4, seed=1))
    assert_exact(engine.model, samples)
    for prompt, group in zip(prompts, engine.generate(prompts, Sampling(max_tokens=20, temperature=0.0)), strict=True):
        assert_greedy_as_generate(engine.model, prompt, group[0], engine.eos_ids)


def test_padding_makes_no_difference(model, make_engine):
    engine = make_engine(model, [END])
    short, long = random_prompts([4, 90])
    alone = engine.generate([short], Sampling(max_tokens=30, temperature=0.0))[0][0]
    padded = engine.generate([short, long], Sampling(max_tokens=30, temperature=0.0))[0][0]
    assert alone.token_ids == padded.token_ids
    assert torch.allclose(torch.tensor(alone.logprobs), torch.tensor(padded.logprobs), atol=TOLERANCE)


def test_sample_depends_on_its_seed_and_place_and_not_on_the_batch(model, make_engine):
    engine = make_engine(model, [END])
    prompts = random_prompts([6, 50, 12, 33])
    sampling = Sampling(max_tokens=25)
    together = engine.generate(prompts, sampling, n=3, seed=9)
    first_alone = engine.generate(prompts[:1], sampling, n=1, seed=9)
    assert together[0][0].token_ids == first_alone[0][0].token_ids
    third = Sample(tuple(prompts[2]), sampling, sample_seed(9, 2, 1))
    engine.run([third])
    assert third.token_ids == together[2][1].token_ids


def test_same_request_gives_the_same_bits(model, make_engine):
    engine = make_engine(model, range(2, 20), max_batch=8)
    prompts = random_prompts([6, 50, 12, 33, 7, 7])
    first, second = (flat(engine.generate(prompts, Sampling(max_tokens=25), n=3, seed=9)) for _ in range(2))
    assert [(s.token_ids, s.logprobs) for s in first] == [(s.token_ids, s.logprobs) for s in second]


def test_choices_and_seeds_differ(model, make_engine):
    engine = make_engine(model, [END])
    prompts = random_prompts([6])
    sampling = Sampling(max_tokens=20, temperature=2.0)
    one = [s.token_ids for s in engine.generate(prompts, sampling, n=4, seed=1)[0]]
    other = [s.token_ids for s in engine.generate(prompts, sampling, n=4, seed=2)[0]]
    assert len({tuple(ids) for ids in one + other}) == 8


def test_group_equals_the_prompt_repeated(model, make_engine):
    prompt = random_prompts([30])[0]
    sampling = Sampling(max_tokens=20)
    engine = make_engine(model, [END])
    group = engine.generate([prompt], sampling, n=4, seed=3)[0]
    for choice, sample in enumerate(group):
        alone = Sample(tuple(prompt), sampling, sample_seed(3, 0, choice))
        engine.run([alone])
        assert alone.token_ids == sample.token_ids


def test_requests_larger_than_a_batch_come_back_complete_and_in_order(model, make_engine):
    engine = make_engine(model, [END], max_batch=4)
    prompts = random_prompts([5, 8, 11])
    groups = engine.generate(prompts, Sampling(max_tokens=6), n=3, seed=1)
    assert [[list(s.prompt) for s in group] for group in groups] == [[prompt] * 3 for prompt in prompts]
    assert_exact(model, flat(groups))


@pytest.mark.parametrize("prefill_tokens", [7, 64, 8192])
def test_prompts_may_be_computed_in_pieces(model, prefill_tokens):
    prompts = random_prompts([3, 70, 41, 70])
    sampling = Sampling(max_tokens=8, echo=True, top_logprobs=2)
    samples = [Sample(tuple(p), sampling, seed) for seed, p in enumerate(prompts)]
    batch = Batch(model, samples, [END], prefill_tokens=prefill_tokens, logit_floats=20_000)
    while not batch.done:
        batch.step()
    assert_exact(model, samples)
    for sample in samples:
        expected = teacher_forced(model, sample.prompt, sample.token_ids)[: len(sample.prompt) - 1]
        assert torch.allclose(torch.tensor(sample.prompt_logprobs.logprobs), expected, atol=TOLERANCE, rtol=0)
        assert len(sample.prompt_logprobs.top) == len(sample.prompt) - 1
        assert all(len(top) == 2 and top[0][1] >= top[1][1] for top in sample.prompt_logprobs.top)


def test_echo_alone_samples_nothing(model, make_engine):
    prompt = random_prompts([12])[0]
    sample = make_engine(model, [END]).generate([prompt], Sampling(max_tokens=0, echo=True, temperature=0.0))[0][0]
    assert sample.token_ids == []
    assert sample.finish_reason == "length"
    expected = teacher_forced(model, prompt, [])
    assert torch.allclose(torch.tensor(sample.prompt_logprobs.logprobs), expected, atol=TOLERANCE)


def test_end_token_is_reported_once_and_ends_the_sample(model, make_engine):
    engine = make_engine(model, range(2, 100))
    for sample in flat(engine.generate(random_prompts([5] * 20), Sampling(max_tokens=30), seed=4)):
        assert len(sample.token_ids) == len(sample.logprobs) >= 1
        assert not any(token in engine.eos_ids for token in sample.token_ids[:-1])
        ended = sample.token_ids[-1] in engine.eos_ids
        assert sample.finish_reason == ("stop" if ended else "length")
        assert ended or len(sample.token_ids) == 30


def test_ignore_eos_goes_on(model, make_engine):
    engine = make_engine(model, range(2, 280))
    sample = engine.generate(random_prompts([5]), Sampling(max_tokens=12, ignore_eos=True))[0][0]
    assert len(sample.token_ids) == 12


def test_cancelled_samples_end_and_the_others_do_not_notice(model, make_engine):
    engine = make_engine(model, [])
    samples = engine.samples(random_prompts([5, 9]), Sampling(max_tokens=20), n=2, seed=1)
    engine.add(samples)
    engine.step()
    samples[1].cancelled = samples[2].cancelled = True
    ended = []
    while engine.running:
        ended += engine.step().ended
    assert [sample.finish_reason for sample in samples] == ["length", "cancelled", "cancelled", "length"]
    assert {id(sample) for sample in ended} == {id(sample) for sample in samples}
    assert len(ended) == 4
    assert len(samples[0].token_ids) == len(samples[3].token_ids) == 20
    assert_exact(model, [samples[0], samples[3]])


def test_weights_may_change_while_samples_are_in_flight(make_model, make_engine):
    old, new = make_model(seed=1), make_model(seed=2)
    engine = make_engine(old, [])
    prompts = random_prompts([5, 9])
    first = engine.samples(prompts, Sampling(max_tokens=30), seed=1)
    engine.add(first)
    engine.step()
    engine.load({name: tensor.clone() for name, tensor in new.state_dict().items()}, 1, "digest")
    second = engine.samples(prompts, Sampling(max_tokens=10), seed=2)
    engine.run(second)
    assert {sample.weights.version for sample in first} == {0}
    assert {sample.weights.version for sample in second} == {1}
    assert_exact(old, first)
    assert_exact(new, second)
    assert all(sample.finish_reason == "length" for sample in first + second)


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.4}, {"min_p": 0.3}])
def test_truncated_draws_stay_in_the_kept_set_and_report_the_whole_distribution(model, make_engine, options):
    samples = flat(make_engine(model, []).generate(random_prompts([5, 9]), Sampling(max_tokens=20, **options), n=3))
    assert_exact(model, samples)
    for sample in samples:
        for place in range(20):
            ids = torch.tensor([[*sample.prompt, *sample.token_ids[:place]]])
            logprobs = model(ids).logits[0, -1].log_softmax(-1)
            better = int((logprobs > logprobs[sample.token_ids[place]] + TOLERANCE).sum())
            mass = float(logprobs[logprobs > logprobs[sample.token_ids[place]] + TOLERANCE].exp().sum())
            ratio = float(logprobs[sample.token_ids[place]].exp() / logprobs.max().exp())
            assert better < options.get("top_k", 1000)
            assert mass < options.get("top_p", 1.0) + TOLERANCE
            assert ratio > options.get("min_p", 0.0) - TOLERANCE


def test_biased_tokens_are_drawn_and_reported_with_their_bias(model, make_engine):
    sampling = Sampling(max_tokens=10, logit_bias={7: 100.0}, top_logprobs=2)
    sample = make_engine(model, []).generate(random_prompts([5]), sampling)[0][0]
    assert sample.token_ids == [7] * 10
    assert all(top[0][0] == 7 and abs(top[0][1]) < 1e-6 for top in sample.top_logprobs)


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ([], {}, "empty"),
        ([5, 10**6], {}, "1000000"),
        ([-1], {}, "-1"),
        ([5] * 300, {}, "300 tokens, more than the context of 256"),
        ([5] * 250, {"max_tokens": 7}, "250 tokens and max_tokens = 7 exceed the context of 256"),
        ([5], {"max_tokens": 0}, "needs echo"),
        ([5], {"logit_bias": {10**6: 1.0}}, "logit_bias"),
    ],
)
def test_impossible_requests_are_refused_in_words(model, prompt, sampling, message, make_engine):
    with pytest.raises(RequestError, match=message):
        make_engine(model, [END]).generate([prompt], Sampling(**sampling))


def test_context_may_be_used_to_its_last_position(model, make_engine):
    sample = make_engine(model, []).generate([[5] * 250], Sampling(max_tokens=6))[0][0]
    assert len(sample.token_ids) == 6
    assert_exact(model, [sample])

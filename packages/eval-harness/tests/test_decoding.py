"""Claims about decoding and what prompts share: plain generation's tokens, seeds that decide alone, prefixes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM

from posttrain.eval_harness.column_cache import ColumnCache
from posttrain.eval_harness.decoding import Draws, decode
from posttrain.eval_harness.passes import SHORTEST_PREFIX, common_prefix, prefill

PROMPTS = [[5, 9, 11], [7], [3, 4, 5, 6, 7, 8], [9, 9]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    return Qwen2ForCausalLM(config).eval()


def never(rows):
    return [False] * len(rows)


def plain(model, prompt, new_tokens, ends=()):
    """The loop without a cache, a row at a time."""
    tokens = list(prompt)
    for _ in range(new_tokens):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :]


def test_rows_of_all_lengths_get_the_tokens_of_the_plain_loop(model):
    expected = [plain(model, prompt, 20) for prompt in PROMPTS]
    assert decode(model, ColumnCache(0), PROMPTS, 20, [], never) == expected


def test_rows_end_with_their_end_token_and_leave_the_others_as_they_were(model):
    ends = {plain(model, PROMPTS[0], 20)[4], plain(model, PROMPTS[2], 20)[1]}
    expected = [plain(model, prompt, 20, ends) for prompt in PROMPTS]
    assert len({len(answer) for answer in expected}) > 1
    assert decode(model, ColumnCache(0), PROMPTS, 20, ends, never) == expected


def test_a_prefix_computed_once_changes_nothing(model):
    prefix = [8, 2, 30, 17, 5]
    expected = [plain(model, prefix + prompt, 12) for prompt in PROMPTS]
    with torch.inference_mode():
        assert decode(model, prefill(model, prefix), PROMPTS, 12, [], never) == expected


def test_who_looks_for_stops_is_asked_now_and_then_about_running_rows_only(model):
    asked = []

    def ended(rows):
        asked.append([len(row) for row in rows])
        return [index == 0 for index in range(len(rows))]

    answers = decode(model, ColumnCache(0), PROMPTS, 20, [], ended)
    assert asked == [[8] * 4, [16] * 3]
    assert [len(answer) for answer in answers] == [8, 16, 20, 20]


def test_a_sample_depends_on_its_seed_alone(model):
    def sampled(prompts, seeds):
        return decode(model, ColumnCache(0), prompts, 10, [], never, Draws(1.0, seeds))

    together = sampled([PROMPTS[0]] * 3 + PROMPTS[1:], [1, 2, 3, 4, 5, 6])
    assert sampled([PROMPTS[0]], [2]) == [together[1]]
    assert sampled(PROMPTS[1:2], [4]) == [together[3]]
    assert together[0] != together[1] != together[2]


def test_samples_have_the_models_probabilities(model):
    count = 3000
    first = [
        tokens[0] for tokens in decode(model, ColumnCache(0), [[7]] * count, 1, [], never, Draws(2.0, range(count)))
    ]
    expected = (model(torch.tensor([[7]])).logits[0, -1].detach() / 2.0).softmax(-1)
    observed = torch.bincount(torch.tensor(first), minlength=40) / count
    # Total variation of so many draws over 40 tokens stays below .06 (about √(40 / 3000) / 2).
    assert float((observed - expected).abs().sum() / 2) < 0.06


def test_common_prefix_leaves_each_a_token_and_is_worth_its_copy():
    start = list(range(SHORTEST_PREFIX))
    assert common_prefix([[*start, 1, 2], [*start, 1, 3], [*start, 1]]) == tuple(start)
    assert common_prefix([[*start, 1], start]) == ()
    assert common_prefix([[*start, 1]]) == ()


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), min_size=2, max_size=6))
def test_common_prefix_is_the_longest_that_leaves_each_a_token(sequences):
    longest = max(
        size for size in range(min(map(len, sequences))) if len({tuple(sequence[:size]) for sequence in sequences}) == 1
    )
    assert len(common_prefix(sequences)) == (longest if longest >= SHORTEST_PREFIX else 0)

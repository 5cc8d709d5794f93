"""Rows without padding, prompts once a group: what models say and learn is what padded rows give."""

import copy
import json

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.trainers import packed_attention
from posttrain.trainers.batch import split_minibatches
from posttrain.trainers.critic import Critic
from posttrain.trainers.forward import completion_logprobs, completion_outputs
from posttrain.trainers.packed_attention import read_packed
from posttrain.trainers.packed_rows import PackedRows
from posttrain.trainers.padded_rows import PaddedRows

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "head_dim": 8,
    "initializer_range": 0.3,
}
FAMILIES = {
    "qwen2": transformers.Qwen2Config(**{k: v for k, v in SMALL.items() if k != "head_dim"}),
    "qwen3": transformers.Qwen3Config(**SMALL),
    "llama": transformers.LlamaConfig(**SMALL),
    "mistral": transformers.MistralConfig(**SMALL, sliding_window=4),
    "gemma": transformers.GemmaConfig(**SMALL),
    "gemma3": transformers.Gemma3TextConfig(**SMALL, sliding_window=4),
    "mixture": transformers.Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
}


def model_of(config):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


@pytest.fixture(scope="module")
def pair():
    """A model that reads packed rows, and its twin that does not."""
    twin = model_of(FAMILIES["qwen2"])
    model = copy.deepcopy(twin)
    assert read_packed(model)
    return model, twin


def draw(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(40, (length,), generator=generator).tolist() for length in lengths]


def learnt(module, rows, of):
    """What `of(module, rows)` says of the completions, and the gradients of some function of it."""
    module.zero_grad()
    said = of(module, rows)
    weights = torch.linspace(-1, 2, said.numel()).view(said.shape)
    (said * weights).sum().backward()
    return said.detach(), [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]


def assert_alike(one, other, of, prompts, completions, groups):
    packed = learnt(one, PackedRows().rows(prompts, completions, groups), of)
    padded = learnt(other, PaddedRows().rows(prompts, completions, groups), of)
    assert torch.allclose(packed[0], padded[0], atol=2e-5)
    for a, b in zip(packed[1], padded[1], strict=True):
        assert torch.allclose(a, b, atol=2e-5 * max(1.0, float(b.abs().max())))


def logprobs(model, rows):
    return completion_logprobs(model, rows, 0.8)[0]


def entropies(model, rows):
    return completion_logprobs(model, rows, 0.8, with_entropy=True)[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("groups", [[0, 1, 2, 3], [0, 0, 1, 0]], ids=["alone", "shared"])
def test_every_family_says_and_learns_the_same_packed_as_padded(family, groups):
    twin = model_of(FAMILIES[family])
    model = copy.deepcopy(twin)
    assert read_packed(model)
    prompts = draw([6, 3, 8, 1])
    assert_alike(model, twin, logprobs, [prompts[g] for g in groups], draw([5, 1, 7, 2], seed=1), groups)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4)), min_size=1, max_size=4)
)
def test_any_groups_say_and_learn_the_same_packed_as_padded(pair, groups):
    numbers = [number for number, (_, lengths) in enumerate(groups) for _ in lengths]
    prompts = draw([length for length, _ in groups])
    completions = draw([length for _, lengths in groups for length in lengths], seed=1)
    for of in (logprobs, entropies):
        assert_alike(*pair, of, [prompts[number] for number in numbers], completions, numbers)


def test_rows_come_back_in_their_own_order_when_groups_are_mixed(pair):
    prompts = draw([4, 6])
    groups = [1, 0, 1, 0, 1]
    assert_alike(*pair, logprobs, [prompts[g] for g in groups], draw([3, 1, 5, 4, 2], seed=1), groups)


def test_a_critic_says_and_learns_the_same_packed_as_padded(pair):
    critics = [Critic(model) for model in pair]
    for critic in critics:
        torch.nn.init.constant_(critic.head.weight, 0.3)
    prompts = draw([5, 7])
    groups = [0, 0, 1]
    assert_alike(*critics, completion_outputs, [prompts[g] for g in groups], draw([4, 2, 6], seed=1), groups)


@pytest.mark.parametrize("of", [logprobs, entropies])
def test_masked_attention_of_accelerators_and_folded_attention_of_processors_agree(pair, monkeypatch, of):
    groups = [0, 0, 0, 1, 1]
    prompts = draw([5, 9])
    rows = PackedRows().rows([prompts[g] for g in groups], draw([4, 2, 6, 1, 8], seed=1), groups)
    folded = learnt(pair[0], rows, of)
    monkeypatch.setattr(packed_attention, "_fold", packed_attention._mask)
    masked = learnt(pair[0], rows, of)
    assert torch.allclose(folded[0], masked[0], atol=2e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(folded[1], masked[1], strict=True))


def test_layout_by_hand():
    rows = PackedRows().rows([[1, 2], [3, 4, 5], [1, 2]], [[6, 7], [8, 9], [9]], [0, 1, 0])
    assert rows.inputs["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 8]]
    assert rows.inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2, 2, 3]]
    assert rows.predicts.tolist() == [1, 5, 4, 6, 1]
    assert rows.targets.tolist() == [6, 7, 8, 9, 9]
    assert rows.mask.tolist() == [[True, True], [True, True], [True, False]]


def test_the_last_mlp_reads_only_what_is_asked_for(pair):
    seen = []
    handle = pair[0].model.layers[-1].mlp.gate_proj.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    prompt, *_ = draw([6])
    logprobs(pair[0], PackedRows().rows([prompt] * 2, draw([4, 2], seed=1), [0, 0]))
    handle.remove()
    assert seen[0].shape[1] == 1 + 3 + 1  # the prompt's last token once, completions without their last


def test_a_model_with_recurrent_layers_is_left_as_it_was():
    config = transformers.Qwen3NextConfig(
        **SMALL,
        layer_types=["linear_attention", "full_attention"],
        num_experts=0,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    assert_left_as_it_was(model_of(config))


def small_qwen2_moe(**changes):
    small = {k: v for k, v in SMALL.items() if k != "head_dim"}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return model_of(transformers.Qwen2MoeConfig(**small, **experts, shared_expert_intermediate_size=16, **changes))


def assert_left_as_it_was(model):
    assert not read_packed(model)
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_window_that_only_the_attention_mask_knows_is_not_packed_though_it_is_longer_than_the_probe():
    assert_left_as_it_was(small_qwen2_moe(use_sliding_window=True, sliding_window=64, max_window_layers=2))
    assert_left_as_it_was(
        model_of(transformers.PhimoeConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, sliding_window=64))
    )


def test_a_family_whose_window_is_not_in_use_is_packed():
    assert read_packed(small_qwen2_moe(use_sliding_window=False, sliding_window=64))


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_a_window_that_attention_is_told_of_is_packed_though_it_is_longer_than_the_probe(family):
    config = copy.deepcopy(FAMILIES[family])
    config.sliding_window = 64
    assert read_packed(model_of(config))


@pytest.mark.parametrize("family", ["qwen2", "mistral", "gemma3"])
def test_a_prepared_model_reads_padded_rows_as_before(family):
    twin = model_of(FAMILIES[family])
    model = copy.deepcopy(twin)
    assert read_packed(model)
    rows = PaddedRows().rows(draw([6, 3, 8]), draw([5, 9, 7], seed=1), [0, 1, 2])
    assert torch.allclose(logprobs(model, rows), logprobs(twin, rows), atol=1e-5)


def test_chunked_attention_is_not_packed():
    model = model_of(FAMILIES["llama"])
    model.config.attention_chunk_size = 64
    assert_left_as_it_was(model)


def test_a_checkpoint_says_nothing_of_packing(pair, tmp_path):
    for name, model in zip(("packed", "plain"), pair, strict=True):
        model.save_pretrained(tmp_path / name)
    packed, plain = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("packed", "plain"))
    assert packed == plain


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(1, 6), st.integers(0, 3))
def test_minibatches_hold_every_row_once_and_groups_whole(sizes, count, seed):
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    minibatches = split_minibatches(groups, count, seed)
    assert sorted(row for rows in minibatches for row in rows) == list(range(len(groups)))
    assert len(minibatches) == min(count, len(groups))
    if len(sizes) >= count:
        holders = [
            {number for number, rows in enumerate(minibatches) if any(groups[r] == g for r in rows)} for g in groups
        ]
        assert all(len(of_group) == 1 for of_group in holders)

"""Adapters in a model: what trains, what a merge gives, what is written; 4-bit weights are dequantised first."""

import json
import sys
import types

import pytest
import safetensors.torch
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from posttrain.core.errors import RequestError
from posttrain.trainers.adapters import (
    CONFIG,
    PREFIX,
    adapter_bytes,
    adapter_state,
    add_adapter,
    lora_update,
    merged_state,
    plain,
    without_adapter,
)
from posttrain.trainers.model_settings import LINEAR_LAYERS, Adapter

ADAPTER = Adapter(r=4, alpha=8)
IDS = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(0))


def tiny_model(kind=Qwen2ForCausalLM, **options):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0, **options,
    )  # fmt: skip
    return kind(config).eval()


def trained(model, adapter=ADAPTER, **more):
    """An adapter that says something: B drawn, as if it had been trained."""
    adapted = add_adapter(model, adapter, seed=1, **more)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return adapted


def loaded(state, like):
    """Another model of the same kind with these weights."""
    model = type(like)(like.config).eval()
    model.load_state_dict(state)
    return model


@torch.no_grad()
def test_a_new_adapter_leaves_the_model_as_it_was():
    model = tiny_model()
    before = model(IDS).logits
    add_adapter(model, ADAPTER, seed=1)
    assert torch.equal(model(IDS).logits, before)
    assert not any(module.training for module in model.modules())


def test_only_the_adapter_trains_and_in_fp32():
    model = tiny_model().to(torch.bfloat16)
    adapted = add_adapter(model, ADAPTER, seed=1)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(names) == 2 * 2 * len(LINEAR_LAYERS)
    assert all("lora_" in name for name in names)
    assert {parameter.dtype for parameter in adapted.parameters() if parameter.requires_grad} == {torch.float32}
    assert plain(adapted) is model


def test_a_module_that_trains_whole_is_fp32_too():
    model = tiny_model(Qwen2ForSequenceClassification, num_labels=1).to(torch.bfloat16)
    add_adapter(model, ADAPTER, seed=1, new_modules=("score",))
    trains = {n: p.dtype for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}
    assert trains == {"score.modules_to_save.default.weight": torch.float32}


def test_the_seed_draws_the_adapter_and_nothing_else_does():
    def drawn(seed, noise):
        model = tiny_model()
        torch.manual_seed(noise)
        state = adapter_state(add_adapter(model, ADAPTER, seed))
        return state, torch.rand(1)

    (first, after), (again, _), (other, _) = drawn(1, 5), drawn(1, 6), drawn(2, 5)
    name = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_the_update_by_hand():
    """B A = [[1], [2]] [[3, 4]] = [[3, 4], [6, 8]], times alpha / r = 2."""
    low, high = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [2.0]])
    assert torch.equal(lora_update(low, high, 2.0), torch.tensor([[6.0, 8.0], [12.0, 16.0]]))


@torch.no_grad()
def test_merged_weights_say_what_the_adapted_model_says():
    model = tiny_model()
    before, names = model(IDS).logits, set(model.state_dict())
    adapted = trained(model)
    said = model(IDS).logits
    assert (said - before).abs().max() > 0.1
    state = merged_state(adapted)
    assert set(state) == names
    assert (loaded(state, model)(IDS).logits - said).abs().max() < 1e-5
    assert torch.equal(model(IDS).logits, said)


@torch.no_grad()
def test_a_merge_taken_back_gives_the_base():
    model = tiny_model()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = trained(model)
    merged, added = merged_state(adapted), adapter_state(adapted)
    for name, tensor in base.items():
        halves = [f"{PREFIX}{name.removesuffix('.weight')}.lora_{half}.weight" for half in "AB"]
        update = lora_update(added[halves[0]], added[halves[1]], 2.0) if halves[0] in added else 0
        assert (merged[name] - update - tensor).abs().max() < 1e-5
    assert sum(name.endswith("lora_A.weight") for name in added) == 2 * len(LINEAR_LAYERS)


@torch.no_grad()
def test_tied_weights_stay_one_tensor_in_a_merge():
    state = merged_state(trained(tiny_model()))
    assert state["lm_head.weight"] is state["model.embed_tokens.weight"]


@torch.no_grad()
def test_a_classifiers_head_that_was_trained_is_the_one_that_is_merged():
    model = tiny_model(Qwen2ForSequenceClassification, num_labels=1)
    names = set(model.state_dict())
    adapted = trained(model, new_modules=("score",))
    model.get_parameter("score.modules_to_save.default.weight").fill_(0.5)
    state = merged_state(adapted)
    assert set(state) == names
    assert torch.equal(state["score.weight"], torch.full((1, 32), 0.5))
    assert (loaded(state, model)(IDS).logits - model(IDS).logits).abs().max() < 1e-5


@torch.no_grad()
def test_switched_off_the_model_is_its_base_and_then_itself_again():
    model = tiny_model(Qwen2ForSequenceClassification, num_labels=1)
    before = model(IDS).logits
    adapted = trained(model, new_modules=("score",))
    model.get_parameter("score.modules_to_save.default.weight").fill_(0.5)
    said = model(IDS).logits
    with without_adapter(adapted):
        assert torch.equal(model(IDS).logits, before)
    assert torch.equal(model(IDS).logits, said)
    assert all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)


def test_the_file_is_pefts():
    from peft import get_peft_model_state_dict

    adapted = trained(tiny_model())
    data = adapter_bytes(adapted)
    expected, found = get_peft_model_state_dict(adapted), safetensors.torch.load(data)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_push_says_its_settings_and_the_policy_service_merges_it_as_we_do(tmp_path):
    merge = pytest.importorskip("posttrain.rollout.adapter", reason="needs posttrain-rollout").merge_adapter
    model = tiny_model()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = trained(model)
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(adapter_bytes(adapted))
    with safetensors.safe_open(path, framework="pt") as file:
        text = file.metadata()[CONFIG]
        merged = merge(file, text, base, {"lm_head.weight": "model.embed_tokens.weight"})
    config = json.loads(text)
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, None)
    ours = merged_state(adapted)
    assert all((merged[name] - ours[name]).abs().max() < 1e-6 for name in merged)


def test_a_model_without_an_adapter_has_no_adapter_file():
    with pytest.raises(ValueError, match="no adapter"):
        adapter_bytes(tiny_model())


def test_a_target_that_the_model_has_not_is_named():
    with pytest.raises(RequestError, match="names 'c_attn'.* it has down_proj, gate_proj"):
        add_adapter(tiny_model(), Adapter(target_modules=("q_proj", "c_attn")), seed=1)


@pytest.mark.parametrize("targets", [("mlp.q_proj",), ("q_proj", "mlp.v_proj"), ("proj",)])
def test_a_target_is_the_end_of_a_modules_path(targets):
    model = tiny_model()
    with pytest.raises(RequestError, match=f"names '{targets[-1]}', and this model has no such linear module"):
        add_adapter(model, Adapter(target_modules=targets), seed=1)
    add_adapter(model, Adapter(target_modules=("self_attn.q_proj",)), seed=1)
    assert {name.split(".")[4] for name, p in model.named_parameters() if p.requires_grad} == {"q_proj"}


def test_the_head_is_no_target_it_may_be_the_embeddings_too():
    with pytest.raises(RequestError, match="names 'lm_head', and this model has no such linear module below its head"):
        add_adapter(tiny_model(), Adapter(target_modules=("lm_head",)), seed=1)


def test_saved_in_bf16_a_merge_loses_half_of_a_small_update():
    """Weights of .02 have steps of 2⁻¹⁴ to 2⁻¹³ in bf16, half of which is what rounding does to an update of 1e-4."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(256, 256, generator=generator) * 0.02).bfloat16().float()
    update = torch.randn(256, 256, generator=generator) * 3e-5
    lost = {dtype: ((weight + update).to(dtype).float() - weight - update).norm() / update.norm()
            for dtype in (torch.bfloat16, torch.float32)}  # fmt: skip
    assert lost[torch.bfloat16] > 0.5
    assert lost[torch.float32] < 1e-4


NF4 = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip
"""The levels of NormalFloat 4 (Dettmers et al. 2023, appendix E)."""
BLOCK = 64


def quantise(weight):
    """(indices into NF4, absolute maximum) of each block of 64."""
    blocks = weight.reshape(-1, BLOCK)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    return ((blocks / largest)[..., None] - NF4).abs().argmin(-1).to(torch.uint8), largest


def dequantise(codes, state):
    largest, shape = state
    return (NF4[codes.long()] * largest).reshape(shape)


class Params4bit(nn.Parameter):
    """By this name PEFT knows bitsandbytes' parameters."""


class Linear4bit(nn.Linear):
    """A layer that holds its weight as bitsandbytes does, and computes with what is left of it."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        codes, largest = quantise(linear.weight.data)
        self.weight = Params4bit(codes, requires_grad=False)
        self.weight.quant_state = (largest, linear.weight.shape)
        self.bias = linear.bias

    def forward(self, inputs):
        return nn.functional.linear(inputs, dequantise(self.weight.data, self.weight.quant_state), self.bias)


@pytest.fixture
def in_four_bits(monkeypatch):
    """A model whose blocks' linear layers are in NF4, and bitsandbytes' function that reads them."""
    functional = types.SimpleNamespace(dequantize_4bit=dequantise)
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.SimpleNamespace(functional=functional))
    model = tiny_model()
    for layer in model.model.layers:
        for parent, name in ((layer.self_attn, "q_proj"), (layer.mlp, "up_proj")):
            setattr(parent, name, Linear4bit(getattr(parent, name)))
    return model


@torch.no_grad()
def test_a_merge_into_dequantised_weights_is_the_trained_model_and_one_into_the_originals_is_not(in_four_bits):
    original = tiny_model().state_dict()
    adapted = trained(in_four_bits, Adapter(r=4, alpha=8, target_modules=("q_proj", "up_proj")))
    said = in_four_bits(IDS).logits
    state = merged_state(adapted)
    like = tiny_model()
    assert (loaded(state, like)(IDS).logits - said).abs().max() < 1e-5
    added = adapter_state(adapted)
    for name in {n.removeprefix(PREFIX).rpartition(".lora_")[0] for n in added}:
        low, high = (added[f"{PREFIX}{name}.lora_{half}.weight"] for half in "AB")
        state[f"{name}.weight"] = original[f"{name}.weight"] + lora_update(low, high, 2.0)
    assert (loaded(state, like)(IDS).logits - said).abs().max() > 1e-3

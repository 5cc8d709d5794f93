"""A pushed LoRA adapter gives the weights that PEFT's own merge gives; what does not fit is refused in words."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save, save_file
from transformers import LlamaForCausalLM, Qwen2ForCausalLM

from posttrain.core.errors import RequestError
from posttrain.rollout.weights import read_weights

peft = pytest.importorskip("peft", reason="compares with PEFT's own merge")

TARGETS = ["q_proj", "v_proj", "down_proj"]


def adapter(model, folder, **options):
    """An adapter with random halves as PEFT saves it, and PEFT's own merge of it as a state dictionary."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 7, "target_modules": TARGETS, **options})
    wrapped = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload().state_dict()


def packed(folder, **changes):
    """The folder as contract 1 has it: one file, its configuration in the metadata."""
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text()) | changes
    return load_file(folder / "adapter_model.safetensors"), {"adapter_config.json": json.dumps(config)}


def merged(tmp_path, tensors, metadata, model):
    path = tmp_path / "pushed.safetensors"
    save_file(tensors, path, metadata)
    return read_weights(path, model, lambda: model.state_dict())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(k_proj|o_proj)"},
        {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 6}, "alpha_pattern": {"down_proj": 3}},
        {"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 40}, "layers_to_transform": [0]},
    ],
    ids=["plain", "rslora", "all-linear", "expression", "patterns", "one layer"],
)
@pytest.mark.parametrize("kind", [Qwen2ForCausalLM, LlamaForCausalLM], ids=["qwen2", "llama"])
def test_merged_weights_are_pefts_own(tmp_path, make_model, kind, options):
    expected = adapter(make_model(kind, seed=3), tmp_path, **options)
    model = make_model(kind, seed=3)
    found = merged(tmp_path, *packed(tmp_path), model)
    changed = 0
    for name, tensor in found.items():
        assert torch.allclose(tensor, expected[name], atol=1e-5), name
        changed += not torch.equal(tensor, model.state_dict()[name])
    assert set(found) == set(expected) - {"lm_head.weight"}
    assert changed >= 2


@pytest.fixture
def saved(tmp_path, make_model):
    adapter(make_model(seed=3), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora, which is not supported"),
        ({"peft_type": "IA3"}, "not of a LoRA adapter"),
        ({"bias": "all"}, "adapter's bias is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save, which is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"something_new": {"of": "peft"}}, "something_new"),
        ({"target_modules": ["q_proj", "v_proj", "down_proj", "zz_proj"]}, "targets 'zz_proj', and this model has no"),
        ({"target_modules": ["q_proj", "k_proj"]}, "targets 'k_proj' and has no tensor for it"),
        ({"rank_pattern": {"(a+)+$": 4}}, "regular expression"),
        ({"r": 8}, r"has shape \[4, .*not \[8, "),
        ({"r": -4}, "positive numbers"),
        ({"r": True}, "positive numbers"),
        ({"lora_alpha": float("nan")}, "positive numbers"),
        ({"rank_pattern": [1]}, "map module names"),
    ],
)
def test_what_the_merge_would_get_wrong_is_refused(saved, make_model, change, message):
    with pytest.raises(RequestError, match=message):
        merged(saved, *packed(saved, **change), make_model(seed=3))


FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{FIRST}.lora_B.weight"), r"q_proj\.lora_B\.weight' is missing"),
        (lambda t: t.update({f"{FIRST}.lora_magnitude_vector": torch.ones(4)}), "is no LoRA tensor"),
        (lambda t: t.update({"../../etc/passwd": torch.ones(4)}), "is no LoRA tensor"),
        (lambda t: t.clear(), "holds no tensor"),
        (lambda t: t.update({f"{FIRST}.lora_A.weight": torch.ones(4, 3)}), r"has shape \[4, 3\], not \[4, 64\]"),
        (lambda t: t.update({f"{FIRST}.lora_A.weight": torch.ones(4)}), r"has shape \[4\], not \[4, 64\]"),
        (lambda t: t[f"{FIRST}.lora_A.weight"].fill_(float("nan")), "holds a value that is not finite"),
        (
            lambda t: t.update({f"base_model.model.other.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}),
            "no such linear module",
        ),
        (
            lambda t: t.update({f"base_model.model.lm_head.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}),
            "shares its weights",
        ),
        (
            lambda t: t.update({f"base_model.model.model.norm.lora_{h}.weight": torch.ones(4, 4) for h in "AB"}),
            "no such linear module",
        ),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(saved, make_model, change, message):
    tensors, metadata = packed(saved)
    change(tensors)
    with pytest.raises(RequestError, match=message):
        merged(saved, tensors, metadata, make_model(seed=3))


@pytest.mark.parametrize("text", ["{", "[]", "null", "[" * 5000, '{"peft_type": "LORA", "r": null}'])
def test_configurations_that_are_none_are_refused(saved, make_model, text):
    with pytest.raises(RequestError, match="adapter_config|LoRA"):
        merged(saved, packed(saved)[0], {"adapter_config.json": text}, make_model(seed=3))


def test_each_adapter_is_merged_into_version_0(saved, make_model):
    """Pushed after another adapter and after full weights, it gives the same: a restarted service needs no history."""
    from posttrain.rollout.policy import Policy
    from posttrain.rollout.settings import PolicyServiceSettings
    from posttrain.rollout.torch_engine import TorchEngine
    from posttrain.rollout.upload import Uploads

    class Words:
        def get_vocab(self):
            return {"a": 0}

    async def body(data):
        yield data

    def push(uploads, version, data):
        import asyncio

        asyncio.run(uploads.take(version, hashlib.sha256(data).hexdigest(), body(data)))

    tensors, metadata = packed(saved)
    file = save(tensors, metadata)
    policy = Policy(TorchEngine(make_model(seed=3), [2]), Words(), PolicyServiceSettings(checkpoint="x"))
    uploads = Uploads(policy)
    push(uploads, 1, file)
    once = {name: tensor.clone() for name, tensor in policy.engine.model.state_dict().items()}
    full = {name: tensor.clone() for name, tensor in make_model(seed=9).state_dict().items() if "lm_head" not in name}
    push(uploads, 2, save(full))
    push(uploads, 3, file)
    assert all(torch.equal(tensor, once[name]) for name, tensor in policy.engine.model.state_dict().items())
    assert policy.scheduler.weights.version == 3
    policy.close()

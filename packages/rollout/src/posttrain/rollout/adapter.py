"""A PEFT adapter merged into the weights it belongs to: LoRA (Hu et al. 2021), with what PEFT writes of it.

In: the open safetensors file that holds an adapter's tensors, its `adapter_config.json`, the base weights. Out: full
weights. What is not supported is refused in words, and so is whatever does not fit, the first by name. Nothing of a
configuration is run: patterns that are regular expressions are refused too.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from posttrain.core.errors import RequestError

PREFIX = "base_model.model."
CONFIG = "adapter_config.json"

WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    # Other initialisations change the base weights, which the adapter then does not fit.
    "init_lora_weights": (True, False, "gaussian", "eva"),
}
"""Settings of PEFT and the values that this merge is right for; of every other setting, those that switch it off."""
UNDERSTOOD = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    # Of no consequence for a merge, or told by which tensors are there.
    "task_type", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "auto_mapping",
    "exclude_modules", "layers_to_transform", "layers_pattern", "peft_version", "runtime_config", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "megatron_core", "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip


def merge_adapter(
    file: safe_open, config_text: str, base: Mapping[str, torch.Tensor], tied: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """`base` with `W + scale · B A` for every module of the adapter; `tied` are names that share another's tensor."""
    config = _checked(config_text)
    pairs = _pairs(set(file.keys()))
    _check_targets(config["target_modules"], pairs, base)
    shared = {*tied, *tied.values()}
    merged = {name: tensor for name, tensor in base.items() if name not in tied}
    for module in pairs:
        name = f"{module}.weight"
        if name not in base or base[name].dim() != 2:
            raise RequestError(f"the adapter is for '{module[:200]}', and this model has no such linear module")
        if name in shared:
            raise RequestError(f"the adapter is for '{module}', which shares its weights with another; merge it first")
        low, high = (file.get_tensor(f"{PREFIX}{module}.lora_{half}.weight") for half in "AB")
        rank, scale = _rank_and_scale(config, module)
        expected = [rank, base[name].shape[1]], [base[name].shape[0], rank]
        for half, tensor, shape in zip("AB", (low, high), expected, strict=True):
            if list(tensor.shape) != shape:
                raise RequestError(f"'{module}.lora_{half}.weight' has shape {list(tensor.shape)}, not {shape}")
        weight = base[name]
        update = (high.float() @ low.float()).to(weight.device) * scale
        merged[name] = (weight.float() + update).to(weight.dtype)
    return merged


def checkpoint_weights(checkpoint: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint folder or Hub id under the model's own names, on the CPU."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, use_safetensors=True)
    return dict(model.state_dict())


def _checked(text: str) -> dict[str, Any]:
    """The configuration; RequestError for the first thing in it that the merge would get wrong."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError(f"{CONFIG} in the file's metadata is not JSON") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise RequestError(f"{CONFIG} is not of a LoRA adapter; this service takes LoRA or full weights")
    for name, value in config.items():
        if name in UNDERSTOOD:
            continue
        if name in WITHOUT_EFFECT:
            if value not in WITHOUT_EFFECT[name]:
                raise RequestError(f"the adapter's {name} is not supported; merge it and push full weights")
        elif value:  # null, false, 0 and what is empty switch a feature off
            raise RequestError(
                f"the adapter uses {str(name)[:60]}, which is not supported; merge and push full weights"
            )
    config = {"r": 8, "lora_alpha": 8, "rank_pattern": {}, "alpha_pattern": {}, "target_modules": None, **config}
    config["rank_pattern"], config["alpha_pattern"] = config["rank_pattern"] or {}, config["alpha_pattern"] or {}
    numbers = [config["r"], config["lora_alpha"]]
    for patterns in (config["rank_pattern"], config["alpha_pattern"]):
        if not isinstance(patterns, dict):
            raise RequestError(f"{CONFIG}: rank_pattern and alpha_pattern map module names to numbers")
        for pattern in patterns:
            if not re.fullmatch(r"\^?[A-Za-z0-9_.]{1,300}", pattern):
                raise RequestError(f"{CONFIG} has a pattern that is a regular expression; name the modules")
        numbers += patterns.values()
    # The rank bounds what is computed; a boolean is an int in Python.
    if not all(type(number) in (int, float) and 0 < number < 2**31 for number in numbers):
        raise RequestError(f"{CONFIG}: r, lora_alpha and their patterns must hold positive numbers")
    return config


def _pairs(names: set[str]) -> list[str]:
    """The modules that have both halves; RequestError for anything else in the file."""
    modules: dict[str, None] = {}
    for name in sorted(names):
        found = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight", name)
        if not found:
            raise RequestError(f"'{name[:200]}' is no LoRA tensor of a linear module")
        modules[found[1]] = None
        other = f"{PREFIX}{found[1]}.lora_{'BA'['AB'.index(found[2])]}.weight"
        if other not in names:
            raise RequestError(f"'{other[:200]}' is missing")
    if not modules:
        raise RequestError("the adapter holds no tensor")
    return list(modules)


def _check_targets(targets: Any, pairs: list[str], base: Mapping[str, torch.Tensor]) -> None:
    """Each named target must be a module of the model. One text is a regular expression or `all-linear`: not run."""
    if not isinstance(targets, list):
        return
    modules = [name.removesuffix(".weight") for name in base if name.endswith(".weight")]
    for target in map(str, targets):
        if not any(_matches(target, module) for module in modules):
            raise RequestError(f"the adapter targets '{target[:200]}', and this model has no such module")
        if not any(_matches(target, module) for module in pairs):
            raise RequestError(f"the adapter targets '{target[:200]}' and has no tensor for it")


def _rank_and_scale(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    rank = int(_by_pattern(config["rank_pattern"], module, config["r"]))
    alpha = float(_by_pattern(config["alpha_pattern"], module, config["lora_alpha"]))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The number of the first pattern that names the module, as PEFT looks it up."""
    return next((number for pattern, number in patterns.items() if _matches(pattern, module)), default)


def _matches(name: str, module: str) -> bool:
    if name.startswith("^"):
        return module == name[1:]
    return module == name or module.endswith(f".{name}")

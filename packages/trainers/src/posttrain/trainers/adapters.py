"""Low-rank adapters in a model that trains: put in, merged, written, switched off. With PEFT (Hu et al. 2021, LoRA).

PEFT puts an adapter into the model in place. So after `peft = add_adapter(model, …)` both names mean the same weights:
`model`, the plain model of transformers with LoRA layers inside, which everything that reads a model's own parts
(`base_model`, `score`, packed rows) and TRL go on using, and `peft`, its wrapper. Every function here takes either.
- Train: only what the adapter added (and `new_modules`, whole) has `requires_grad`; LoRA's weights are fp32.
- Export: `save_trained` writes the merged checkpoint and the adapter beside it; `merged_state` gives full weights under
  the start model's own names, `adapter_bytes` the file that a policy service or vLLM takes as a push.
- Reference: the start checkpoint is the model `without_adapter`, as long as the reference is the start.

Under 4-bit weights what was trained is NF4(W) + BA, so that is what is merged: dequantised weights, not the ones that
were loaded. Merged weights are fp32, as full fine-tuning's are: bf16 would round away most of an update (2⁻⁹ of each
weight; tests/test_adapters.py measures it).
"""

import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from posttrain.core.errors import RequestError
from posttrain.core.files import atomic_directory, atomic_write_bytes, atomic_write_text
from posttrain.core.hashing import digest_checkpoint, digest_json
from posttrain.core.runs import RunDirectory
from posttrain.core.seeds import derive_seed
from posttrain.trainers.model_settings import Adapter
from posttrain.trainers.models import save_checkpoint

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

NAME = "default"
"""PEFT's name of the one adapter."""
PREFIX = "base_model.model."
"""Before every name in an adapter's file."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
COPY, ORIGINAL, BASE = f".modules_to_save.{NAME}.", ".original_module.", ".base_layer."
"""PEFT's names for a module that trains whole, for what it was before, and for a layer below an adapter."""


def add_adapter(model: Any, adapter: Adapter, seed: int, new_modules: Sequence[str] = ()) -> "PeftModel":
    """Freezes `model` and puts a LoRA adapter into it, A drawn by the run's `seed`, B zero: it says what it said.
    In the mode, training or evaluation, that it is in.

    `new_modules` (a classifier's `score`) train whole. RequestError when a target is no linear module of the model.
    """
    from peft import LoraConfig, get_peft_model

    _check_targets(model, adapter)
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=list(adapter.target_modules),
        modules_to_save=list(new_modules) or None,
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers under an old name
        torch.manual_seed(derive_seed(seed, "adapter"))
        adapted = get_peft_model(model, config)
    model.train(model.training)  # what PEFT adds is in training mode, dropout on, whatever the model is in
    for parameter in model.parameters():
        if parameter.requires_grad:
            # PEFT does so for its own, not for modules that train whole.
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return adapted


def adapter_config(model: Any) -> "LoraConfig | None":
    """The adapter in a model, None where there is none."""
    found: LoraConfig | None = getattr(plain(model), "peft_config", {}).get(NAME)
    return found


def plain(model: Any) -> Any:
    """The model of transformers, without PEFT's wrapper but with the adapter inside."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """Within the block the model is the one that training starts from; modules that train whole are as they were."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    layers = [m for m in plain(model).modules() if isinstance(m, BaseTunerLayer | ModulesToSaveWrapper)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def lora_update(
    low: Float[Tensor, "r inputs"], high: Float[Tensor, "outputs r"], scale: float
) -> Float[Tensor, "outputs inputs"]:
    """scale · B A in fp32: what an adapter adds to its layer's weight (Hu et al. 2021, section 4.1)."""
    return (high.float() @ low.float()) * scale


def merged_state(model: Any) -> dict[str, Tensor]:
    """Full weights in fp32 on the CPU under the start model's own names, `model` left as it is; tied ones are one
    tensor.

    4-bit weights are dequantised first. On a GPU one layer is merged at a time: beside what trains, there may be no
    room for a second model. Without an adapter, the model's own state.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    inside = plain(model)
    layers = {name: module for name, module in inside.named_modules() if isinstance(module, LoraLayer)}
    merged: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    with torch.no_grad():
        for name, tensor in inside.state_dict(keep_vars=True).items():
            layer, base, part = name.partition(BASE)
            if ".lora_" in name or ORIGINAL in name or (base and part not in ("weight", "bias")):
                continue
            if base and part == "weight":
                lora: Any = layers[layer]
                low, high = lora.lora_A[NAME].weight, lora.lora_B[NAME].weight
                below = dequantize_module_weight(lora.get_base_layer())
                whole = below.detach().float() + lora_update(low, high, lora.scaling[NAME])
                merged[f"{layer}.weight"] = whole.cpu()
                continue
            # `state_dict` gives tied weights under each of their names.
            if id(tensor) not in seen:
                seen[id(tensor)] = tensor.detach().cpu().float()
            merged[f"{layer}.bias" if base else name.replace(COPY, ".")] = seen[id(tensor)]
    return merged


def adapter_state(model: Any) -> dict[str, Tensor]:
    """The adapter's own tensors in fp32 on the CPU, under the names of PEFT's files; modules that train whole too."""
    found = {}
    for name, parameter in plain(model).named_parameters():
        if parameter.requires_grad:
            own = name.replace(f".{NAME}.", ".").replace(".modules_to_save.", ".")
            found[PREFIX + own] = parameter.detach().float().cpu().contiguous()
    return dict(sorted(found.items()))


def adapter_bytes(model: Any) -> bytes:
    """The adapter as a safetensors file whose metadata hold its adapter_config.json (contract 1, pushes).

    ValueError for a model without one.
    """
    return safetensors.torch.save(adapter_state(model), {CONFIG: _config_text(model, start=None), "format": "pt"})


def adapter_digest(folder: Path) -> str:
    """Hex SHA-256 of an adapter folder: its tensors and its settings, wherever its base lies."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    tensors = {name: [list(t.shape), _digest(t)] for name, t in sorted(weights.items())}
    return digest_json([{**config, "base_model_name_or_path": None}, tensors])


def save_trained(model: Any, tokenizer: Any, run: RunDirectory, start: Path) -> dict[str, Any]:
    """Writes `checkpoint/`, a full standard folder whatever trained, and with an adapter `adapter/` beside it.

    Returns what the summary says of the adapter: its digest, its base's, the share of weights that trained; nothing for
    full fine-tuning.
    """
    config = adapter_config(model)
    if config is None:
        save_checkpoint(plain(model), tokenizer, run.checkpoint)
        return {}
    folder = run.path / "adapter"
    with atomic_directory(folder) as new:
        atomic_write_text(new / CONFIG, _config_text(model, str(start)))
        atomic_write_bytes(new / WEIGHTS, safetensors.torch.save(adapter_state(model), {"format": "pt"}))
    whole = _merged_model(model)
    save_checkpoint(whole, tokenizer, run.checkpoint)
    trained = sum(p.numel() for p in plain(model).parameters() if p.requires_grad)
    return {
        "adapter": {
            "sha256": adapter_digest(folder),
            "base_sha256": digest_checkpoint(start),
            "parameters": trained,
            "share": trained / sum(p.numel() for p in whole.parameters()),
        }
    }


def _merged_model(model: Any) -> Any:
    """A model to save, not to run: the merged weights in fp32, without any trace of adapter or quantisation."""
    inside = plain(model)
    config = copy.deepcopy(inside.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        whole = type(inside)(config)
    whole.load_state_dict(merged_state(model), assign=True)
    whole.tie_weights()
    if getattr(inside, "generation_config", None) is not None:
        whole.generation_config = copy.deepcopy(inside.generation_config)
    return whole


def _config_text(model: Any, start: str | None) -> str:
    config = adapter_config(model)
    if config is None:
        raise ValueError("the model has no adapter")
    values = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in {**config.to_dict(), "inference_mode": True, "base_model_name_or_path": start}.items()
    }
    return json.dumps(values, indent=2, sort_keys=True)


def _digest(tensor: Tensor) -> str:
    return digest_json(safetensors.torch.save({"": tensor}).hex())


def _check_targets(model: Any, adapter: Adapter) -> None:
    # The head is often the embeddings too, which a merge would tear apart, and losses read it beside the model.
    head = _head(model)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    modules = {name.rpartition(".")[2] for name in linear}
    # PEFT's rule; of several targets it passes over in silence those that it finds nowhere.
    missing = [t for t in adapter.target_modules if not any(f".{name}".endswith(f".{t}") for name in linear)]
    if missing:
        raise RequestError(
            f"adapter.target_modules names '{missing[0]}', and this model has no such linear module below its head; "
            f"it has {', '.join(sorted(modules))}"
        )


def _head(model: Any) -> nn.Module | None:
    found: nn.Module | None = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return found

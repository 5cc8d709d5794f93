"""The start checkpoint as a training method holds it: adapter, 4-bit weights, attention, kernels, checkpointing.

First `load_options`, which refuses what this machine has not before anything is loaded, then `ready_to_train` on the
loaded model. Which rows the model reads is decided between the two, in fp32 and without an adapter
(packed_attention.py).
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from posttrain.core.errors import RequestError
from posttrain.trainers.adapters import add_adapter
from posttrain.trainers.model_settings import ModelSettings

EXTRA = "pip install 'posttrain-trainers[gpu]'"


def load_options(settings: ModelSettings) -> dict[str, Any]:
    """Arguments of `load_policy` and `load_sequence_classifier`. RequestError for what cannot be had here."""
    if settings.liger:
        _refuse_without("liger_kernel", "liger: true", "leave it out")
        if not torch.cuda.is_available():
            raise RequestError("liger: true needs a GPU (its kernels are Triton's), and torch sees none; leave it out")
    if settings.attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise RequestError(
            "attention: flash_attention_2 needs a GPU and the package flash-attn, and one is missing; use sdpa"
        )
    quantization = None
    if settings.adapter is not None and settings.adapter.kind == "qlora":
        _refuse_without("bitsandbytes", "adapter: qlora", "use adapter: lora")
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if settings.precision == "bf16" else torch.float32,
        )
    return {"attention": settings.attention, "quantization": quantization}


def ready_to_train(
    model: PreTrainedModel, settings: ModelSettings, seed: int, new_modules: Sequence[str] = ()
) -> PreTrainedModel:
    """The model, changed in place to what the settings say; `new_modules` train whole beside an adapter.

    All that trains is fp32. RequestError when the adapter does not fit the model.
    """
    if settings.liger:
        from transformers.integrations.liger import apply_liger_kernel

        apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})
    if settings.adapter is not None:
        if settings.adapter.kind == "qlora":
            _prepare_4_bit(model)
        elif settings.precision == "bf16":
            # Not model.to: rotary frequencies are a buffer and stay fp32.
            for parameter in model.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        add_adapter(model, settings.adapter, seed, new_modules)
    if settings.gradient_checkpointing:
        # Without reentrance gradients reach the adapter though the embeddings have none.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _prepare_4_bit(model: PreTrainedModel) -> None:
    from peft import prepare_model_for_kbit_training

    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    # Trainer refuses a quantised model unless it is told of the adapter.
    model._hf_peft_config_loaded = True


def _refuse_without(package: str, setting: str, remedy: str) -> None:
    if find_spec(package) is None:
        raise RequestError(f"{setting} needs {package}, which is not installed; {EXTRA}, or {remedy}")

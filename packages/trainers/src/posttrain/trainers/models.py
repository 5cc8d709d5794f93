"""Checkpoints in and out: safetensors folders to models, and models to standard Hugging Face folders.

Pickled weights are refused: loading one runs whatever code it holds. Knows nothing of runs or stages; the folder's
provenance is the run's.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from posttrain.core.errors import RequestError
from posttrain.core.files import atomic_directory
from posttrain.core.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def load_policy(
    checkpoint: Path | str, dtype: torch.dtype = torch.float32, attention: str = "sdpa", quantization: Any = None
) -> PreTrainedModel:
    """The causal language model in a folder (or of a Hub id), in `dtype`, on the CPU, with that attention.

    `quantization` is transformers' quantization_config.

    RequestError when there is no such checkpoint, its weights are not safetensors, or some are missing or misshapen.
    """
    model, missing = _load(AutoModelForCausalLM, checkpoint, dtype, attention, quantization)
    if missing:
        raise RequestError(f"checkpoint {checkpoint} lacks weights of its own model: {sorted(missing)[0]}")
    return model


def load_sequence_classifier(
    checkpoint: Path | str,
    seed: int,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    quantization: Any = None,
) -> tuple[PreTrainedModel, bool]:
    """A model with one score a sequence, and whether its head is new.

    From a classifier's checkpoint the head is taken as it is; a language model's gets a new one, drawn from a normal
    of deviation 1/√(hidden + 1) by `seed` (Stiennon et al. 2020, appendix B.1). Same errors as `load_policy`.
    """
    model, missing = _load(AutoModelForSequenceClassification, checkpoint, dtype, attention, quantization, num_labels=1)
    head = [name for name in missing if name.startswith("score.")]
    if len(head) < len(missing):
        raise RequestError(f"checkpoint {checkpoint} lacks weights of its own model: {sorted(missing - set(head))[0]}")
    if head:
        weight = model.get_parameter("score.weight")
        generator = torch.Generator().manual_seed(derive_seed(seed, "score head"))
        drawn = torch.randn(weight.shape, generator=generator) / (weight.shape[1] + 1) ** 0.5
        with torch.no_grad():
            weight.copy_(drawn)
    return model, bool(head)


def context_length(model: PreTrainedModel) -> int | None:
    """How many positions the model has, None when its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def check_max_length(model: PreTrainedModel, max_length: int, where: str) -> None:
    """RequestError when sequences of `max_length` tokens do not fit the model."""
    context = context_length(model)
    if context is not None and max_length > context:
        raise RequestError(f"{where} is {max_length}, beyond the model's context of {context} tokens; lower it")


def align_special_tokens(model: PreTrainedModel, tokenizer: "PreTrainedTokenizerFast") -> None:
    """Gives the model's configurations the tokenizer's pad and end token.

    A classifier finds the last token of a padded row by its pad id; generation stops at the end id.
    """
    config = model.config.get_text_config()
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes weights (safetensors), configuration, tokenizer and chat template; the folder appears whole or not."""
    with atomic_directory(folder) as new:
        model.save_pretrained(new, safe_serialization=True)
        tokenizer.save_pretrained(new)


def _load(
    auto: Any, checkpoint: Path | str, dtype: torch.dtype, attention: str, quantization: Any, **options: Any
) -> tuple[PreTrainedModel, set[str]]:
    folder = Path(checkpoint)
    if folder.is_dir():
        _refuse_pickles(folder)
    elif isinstance(checkpoint, Path) or folder.is_absolute():
        raise RequestError(f"checkpoint {checkpoint} does not exist")
    try:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False, **options)
        model, info = auto.from_pretrained(
            checkpoint,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=attention,
            quantization_config=quantization,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(f"checkpoint {checkpoint} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    for module in model.modules():
        # On CPUs with AVX512-BF16 a pass of bitsandbytes in evaluation mode repacks 4-bit weights, so that neither
        # training nor dequantising works afterwards.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model, set(info["missing_keys"])


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        raise RequestError(
            f"checkpoint {folder} holds pickled weights ({pickles[0]}), which can run code when loaded; "
            "convert it to safetensors"
        )
    raise RequestError(f"checkpoint {folder} holds no *.safetensors file")


def write_weights(named: Iterable[tuple[str, torch.Tensor]], file: Path, dtype: torch.dtype) -> None:
    """Writes tensors as one safetensors file in `dtype`. What is in it and on the CPU already is not copied."""
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in sorted(named)}
    safetensors.torch.save_file(tensors, file)

"""From a checkpoint to the engine that fits it: the model's module, its end tokens, the way to compute."""

from collections.abc import Collection
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from posttrain.core.errors import RequestError
from posttrain.rollout.engine import MAX_BATCH, Engine
from posttrain.rollout.torch_engine import TorchEngine


def load_engine(
    checkpoint: str | Path,
    eos_ids: Collection[int] = (),
    max_batch: int = MAX_BATCH,
    revision: str | None = None,
    digest: str = "",
) -> Engine:
    """The engine of a checkpoint folder or Hub id. `eos_ids` come on top of those of its generation config.

    RequestError when it is no causal language model in safetensors.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device.type == "cpu" else "auto"
    try:
        config = AutoConfig.from_pretrained(checkpoint, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint, revision=revision, config=config, dtype=dtype, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise RequestError(f"{checkpoint} is not a causal language model: {str(error).splitlines()[0]}") from None
    return TorchEngine(model.to(device), {*eos_ids, *generation_eos_ids(model)}, max_batch, digest)


def generation_eos_ids(model: PreTrainedModel) -> set[int]:
    """End tokens that the checkpoint's generation config, or else its config, names."""
    eos = model.generation_config.eos_token_id if model.generation_config else None
    if eos is None:
        eos = model.config.eos_token_id
    if eos is None:
        return set()
    return set(eos) if isinstance(eos, list | tuple) else {int(eos)}

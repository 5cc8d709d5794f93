"""From a checkpoint to the engine that fits it: the model's module, its end tokens, the way to compute."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from posttrain.core.errors import RequestError
from posttrain.rollout.engine import MAX_BATCH, Engine
from posttrain.rollout.native.build import NoKernel
from posttrain.rollout.native.families import NotCovered
from posttrain.rollout.native_engine import NativeEngine
from posttrain.rollout.settings import Dtype
from posttrain.rollout.torch_engine import TorchEngine

log = logging.getLogger(__name__)

EngineKind = Literal["auto", "native", "torch"]


def load_engine(
    checkpoint: str | Path,
    eos_ids: Collection[int] = (),
    max_batch: int = MAX_BATCH,
    revision: str | None = None,
    digest: str = "",
    kind: EngineKind = "auto",
    dtype: Dtype = "auto",
) -> Engine:
    """The engine of a checkpoint folder or Hub id. `eos_ids` come on top of those of its generation config.

    `kind` auto is native on a CPU wherever it can be, and else torch, which is said in the log. `dtype` is the setting
    of the service. RequestError when the checkpoint is no causal language model in safetensors, or the kind asked for
    cannot serve it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    computed = dtype_on(device.type, dtype)
    try:
        config = AutoConfig.from_pretrained(checkpoint, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint, revision=revision, config=config, dtype=computed or "auto", use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise RequestError(f"{checkpoint} is not a causal language model: {str(error).splitlines()[0]}") from None
    ends = {*eos_ids, *generation_eos_ids(model)}
    if kind != "torch" and device.type == "cpu":
        try:
            return NativeEngine(model, ends, max_batch, digest)
        except (NoKernel, NotCovered) as reason:
            if kind == "native":
                raise RequestError(f"the native engine cannot serve {checkpoint}: {reason}") from None
            log.warning(
                "%s is served by the plain engine, several times slower than the native one: %s", checkpoint, reason
            )
    return TorchEngine(model.to(device), ends, max_batch, digest)


def dtype_on(device: str, asked: Dtype) -> torch.dtype | None:
    """What is computed in on `cpu` or `cuda`; None for what the checkpoint is saved in."""
    if device == "cpu":
        if asked == "bfloat16":
            log.warning("dtype bfloat16 is for a GPU; on a CPU every engine computes in float32")
        return torch.float32
    return None if asked == "auto" else torch.float32 if asked == "float32" else torch.bfloat16


def generation_eos_ids(model: PreTrainedModel) -> set[int]:
    """End tokens that the checkpoint's generation config, or else its config, names."""
    eos = model.generation_config.eos_token_id if model.generation_config else None
    if eos is None:
        eos = model.config.eos_token_id
    if eos is None:
        return set()
    return set(eos) if isinstance(eos, list | tuple) else {int(eos)}

"""From a checkpoint to vLLM's engine, in a process of the environment that has vllm (see constraints-vllm.txt).

On a GPU vLLM takes `memory_share` of the card and compiles; on its CPU build it runs eagerly in fp32, as our own
engine does there. The engine's core runs in this very process, so nothing is left behind when it is killed.
"""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from posttrain.core.errors import RequestError
from posttrain.rollout.engine import MAX_BATCH, context_length
from posttrain.rollout.load import dtype_on, generation_eos_ids
from posttrain.rollout.settings import Dtype, VllmSettings
from posttrain.rollout.vllm_engine import VllmEngine
from posttrain.rollout.vllm_environment import refuse_without_vllm

CPU_CACHE_BYTES = 1 << 30
"""Keys and values on a CPU; vLLM would take nearly all of the machine's memory."""

CPU_BATCH_TOKENS = 8192
"""Tokens of one forward pass on a CPU, at least."""


def load_vllm_engine(
    checkpoint: str | Path,
    eos_ids: Collection[int] = (),
    max_batch: int = MAX_BATCH,
    digest: str = "",
    settings: VllmSettings | None = None,
    dtype: Dtype = "auto",
) -> VllmEngine:
    """The engine of a checkpoint; `eos_ids` come on top of those of its generation config.

    RequestError when vllm is not installed here, the checkpoint is no causal language model, or the engine shall sleep
    where vLLM cannot.
    """
    settings = settings or VllmSettings()
    refuse_without_vllm(settings)
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        # The number of threads is the service's to set; vLLM would bind one to each core.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    model = _shell(checkpoint, dtype_on("cpu" if on_cpu else "cuda", dtype))
    options: dict[str, Any] = {"gpu_memory_utilization": settings.memory_share}
    if on_cpu:
        options = {
            "kv_cache_memory_bytes": CPU_CACHE_BYTES,
            "enforce_eager": True,
            # vLLM 0.32 fails on a CPU where a seeded request's prompt is computed in pieces.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(CPU_BATCH_TOKENS, context_length(model)),
        }
    llm = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(checkpoint),
            # Named, for vLLM's own "auto" makes half precision of float32.
            dtype=str(model.dtype).removeprefix("torch."),
            skip_tokenizer_init=True,
            logprobs_mode="processed_logprobs",
            max_num_seqs=max_batch,
            enable_prefix_caching=True,
            enable_sleep_mode=settings.sleep,
            disable_log_stats=True,
            **options,
        )
    )
    return VllmEngine(llm, model, {*eos_ids, *generation_eos_ids(model)}, max_batch, digest, settings.sleep)


def _shell(checkpoint: str | Path, dtype: torch.dtype | None) -> PreTrainedModel:
    """The checkpoint's model without storage: names, shapes, end tokens, and `dtype` or its config's."""
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, **({"dtype": dtype} if dtype else {}))
    except (OSError, ValueError) as error:
        raise RequestError(f"{checkpoint} is not a causal language model: {str(error).splitlines()[0]}") from None
    try:
        model.generation_config = GenerationConfig.from_pretrained(checkpoint)
    except OSError:
        pass  # the end tokens are then those of its config, which it was made with
    return model

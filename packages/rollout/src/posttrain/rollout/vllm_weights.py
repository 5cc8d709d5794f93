"""What runs in vLLM's workers: full weights under a checkpoint's own names into the model that serves.

vLLM's own reload splits, fuses, shards and packs them. This file is imported in every worker process, so it imports
vllm only when called.
"""

from collections.abc import Mapping
from typing import Any

import torch


def renew_weights(worker: Any, tensors: Mapping[str, torch.Tensor] | None) -> None:
    """Makes `tensors`, or what the checkpoint holds, the weights of `worker`'s model; nothing may be in flight."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.platforms import current_platform

    worker.reload_weights(weights_iterator=None if tensors is None else iter(tensors.items()))
    if not current_platform.is_cpu():
        return
    # vLLM 0.32 packs matrices for the CPU's kernels, and its reload forgets the copy of a head that is tied to the
    # embedding: the model would go on with the old one.
    with set_current_vllm_config(worker.vllm_config):
        for module in worker.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

"""Activations of a model's layers made again in the backward pass instead of kept (Chen et al. 2016).

For the online loop, whose modules stay in evaluation mode: transformers' own switch works in training mode only, which
brings dropout with it. Loss and gradients are those without it; a step costs another forward pass.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from posttrain.core.errors import RequestError


def recompute_activations(module: nn.Module) -> None:
    """Makes every transformer layer in `module` keep its input only. Call it when the layers are final: a copy of the
    module made later would run the layers of this one. RequestError for a family whose layers do not say what they are.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise RequestError("gradient_checkpointing: this model's layers cannot be told; set it to false")
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *inputs: Any, **more: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **more)
    # Dropout is off, so no random numbers have to be the same the second time.
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **more)

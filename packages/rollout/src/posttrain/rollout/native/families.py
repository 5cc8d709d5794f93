"""Which models the kernel computes, and how each family differs from Llama: a declaration a family.

All of them have the same modules under the same names (`model.layers.N.self_attn.q_proj`, …), rotary positions, RMS
norms and a gated MLP. What a declaration does not cover is named in a reason, and such a model takes the plain engine.
"""

from dataclasses import dataclass

from transformers import PreTrainedModel

STATIC_ROPE = {"default", "linear", "llama3"}
"""Kinds of rotary embedding whose angles depend on the position alone."""


@dataclass(frozen=True)
class Family:
    """What sets a family apart from Llama."""

    norm_offset: float = 0.0
    """Added to the weights of every norm (Gemma stores them around 0)."""
    scales_embeddings: bool = False
    """Embeddings are multiplied by √hidden."""
    norms_heads: bool = False
    """Queries and keys are normed head by head."""


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(norms_heads=True),
    "gemma": Family(norm_offset=1.0, scales_embeddings=True),
}
"""By `model_type`."""

ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1}


class NotCovered(Exception):
    """The kernel does not compute this model; the message says what it lacks."""


def family_of(model: PreTrainedModel, lanes: int) -> Family:
    """The model's family; NotCovered names what the kernel cannot do. `lanes` is the width of its vectors."""
    config = model.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise NotCovered(f"model type '{config.model_type}' is none of {', '.join(FAMILIES)}")
    if config.hidden_act not in ACTIVATIONS:
        raise NotCovered(f"activation '{config.hidden_act}' is none of {', '.join(ACTIVATIONS)}")
    if model.model.rotary_emb.rope_type not in STATIC_ROPE:
        raise NotCovered(f"rotary embeddings of type '{model.model.rotary_emb.rope_type}'")
    attention = model.model.layers[0].self_attn
    if attention.head_dim % lanes:
        raise NotCovered(f"head size {attention.head_dim} is no multiple of this processor's {lanes} lanes")
    layer = model.model.layers[0]
    odd = [name for name in ("gate_proj", "up_proj", "down_proj") if getattr(layer.mlp, name).bias is not None]
    if odd:
        raise NotCovered(f"its MLP has a bias ({odd[0]})")
    return family

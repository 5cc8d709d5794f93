"""The model that is measured, with random weights, and what its work needs: floating-point operations and bytes.

Counts are of the definition (Kaplan et al. 2020, appendix; Chowdhery et al. 2022, appendix B): two operations a
parameter and token of a matrix product, attention by the causal context, training three times the forward pass.
Embedding look-ups, norms and softmax are left out, as is usual.
"""

import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

QWEN_05B = Qwen2Config(
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    max_position_embeddings=32768,
    tie_word_embeddings=True,
)
"""Qwen2.5-0.5B's shape."""

TINY = Qwen2Config(
    vocab_size=1024,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    tie_word_embeddings=True,
)
"""For a look at whether the programs work."""


def random_model(config: Qwen2Config, device: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of this shape; speed does not depend on the weights."""
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2ForCausalLM(config)
    model.config._attn_implementation = "sdpa"
    return model.to(dtype)


def layer_parameters(config: Qwen2Config) -> int:
    """Weights of all layers' matrices."""
    head = config.hidden_size // config.num_attention_heads
    attention = 2 * config.hidden_size * head * (config.num_attention_heads + config.num_key_value_heads)
    return config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def head_parameters(config: Qwen2Config) -> int:
    """Weights of the head; tied ones are read, and multiplied with, all the same."""
    return config.vocab_size * config.hidden_size


def forward_flops(config: Qwen2Config, rows: int, length: int, scored: int, start: int = 0) -> float:
    """Of `rows` sequences from position `start` to `length`, and the vocabulary's logits of `scored` positions."""
    tokens = rows * (length - start)
    context = rows * (length * (length + 1) - start * (start + 1)) / 2  # pairs that see each other, causally
    attention = 4 * config.num_hidden_layers * config.hidden_size * context
    return 2.0 * (layer_parameters(config) * tokens + head_parameters(config) * scored) + attention


def decode_bytes(config: Qwen2Config, rows: int, start: int, length: int, size: int) -> float:
    """What generating from `start` to `length` must read: all weights each step, and the keys and values so far."""
    weights = (layer_parameters(config) + head_parameters(config)) * size
    head = config.hidden_size // config.num_attention_heads
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * head * size
    positions = (length * (length - 1) - start * (start - 1)) / 2
    return float((length - start) * weights + rows * cached * positions)

"""A model's weights in the kernel's layout: matrices in panels of columns, q, k and v in one, gate and up in one.

Takes a transformers module of a covered family; copies, so that the module may change afterwards.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.rollout.native.families import ACTIVATIONS, Family
from posttrain.rollout.native.structs import Layer, Linear, Model


class PackedModel:
    """`struct` is what the kernel reads; it lives as long as this object."""

    def __init__(self, model: PreTrainedModel, family: Family, panel: int, context: int) -> None:
        self._panel, self._offset = panel, family.norm_offset
        self._tensors: list[Tensor] = []
        config, inner = model.config, model.model
        attention = inner.layers[0].self_attn
        self.layers, self.vocab = len(inner.layers), int(config.vocab_size)
        self.heads, self.kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.head_dim = int(attention.head_dim)
        self._layers = (Layer * self.layers)(*[self._layer(layer, family) for layer in inner.layers])
        cos, sin = self._angles(inner.rotary_emb, context)
        self.struct = Model(
            layers=self.layers,
            hidden=config.hidden_size,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            intermediate=config.intermediate_size,
            vocab=self.vocab,
            gelu=ACTIVATIONS[config.hidden_act],
            eps=config.rms_norm_eps,
            attention_scale=attention.scaling,
            embedding_scale=config.hidden_size**0.5 if family.scales_embeddings else 1.0,
            embedding=self._keep(inner.embed_tokens.weight),
            cos=self._keep(cos),
            sin=self._keep(sin),
            norm=self._norm(inner.norm.weight),
            head=self._linear(model.lm_head),
            layer=ctypes.cast(self._layers, ctypes.POINTER(Layer)),
        )
        self.address = ctypes.addressof(self.struct)

    @property
    def bytes(self) -> int:
        """What the weights take."""
        return sum(tensor.nbytes for tensor in self._tensors)

    def segment_floats(self, capacity: int) -> int:
        """Floats that keys and values of `capacity` positions take."""
        return self.layers * 2 * self.kv_heads * self.head_dim * capacity

    def _keep(self, tensor: Tensor) -> int:
        """The address of a contiguous fp32 copy."""
        copied = tensor.detach().to(torch.float32).contiguous().clone()
        self._tensors.append(copied)
        return copied.data_ptr()

    def _norm(self, weight: Tensor) -> int:
        padded = torch.zeros(self._padded(len(weight)))
        padded[: len(weight)] = weight.detach() + self._offset
        return self._keep(padded)

    def _linear(self, *modules: Any, pad_each: bool = False) -> Linear:
        """Modules of the same input one under the other; with `pad_each` every one of them fills whole panels."""
        weights = [module.weight.detach() for module in modules]
        biases = [module.bias.detach() if module.bias is not None else None for module in modules]
        outputs = sum(len(weight) for weight in weights)
        if pad_each:
            weights = [self._rows_padded(weight) for weight in weights]
            outputs = sum(len(weight) for weight in weights)
        stacked = self._rows_padded(torch.cat(weights))
        panels = stacked.view(-1, self._panel, stacked.shape[1]).transpose(1, 2)
        bias = None
        if any(b is not None for b in biases):
            parts = [torch.zeros(len(w)) if b is None else b for b, w in zip(biases, weights, strict=True)]
            bias = self._keep(self._rows_padded(torch.cat(parts)))
        return Linear(self._keep(panels), bias, stacked.shape[1], outputs)

    def _rows_padded(self, tensor: Tensor) -> Tensor:
        missing = self._padded(len(tensor)) - len(tensor)
        return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor

    def _padded(self, size: int) -> int:
        return -(-size // self._panel) * self._panel

    def _layer(self, layer: Any, family: Family) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        norms: tuple[int | None, int | None] = (None, None)
        if family.norms_heads:
            norms = (self._keep(attention.q_norm.weight), self._keep(attention.k_norm.weight))
        return Layer(
            self._norm(layer.input_layernorm.weight),
            self._norm(layer.post_attention_layernorm.weight),
            *norms,
            self._linear(attention.q_proj, attention.k_proj, attention.v_proj),
            self._linear(attention.o_proj),
            self._linear(mlp.gate_proj, mlp.up_proj, pad_each=True),
            self._linear(mlp.down_proj),
        )

    def _angles(self, rotary: Any, context: int) -> tuple[Tensor, Tensor]:
        """cos and sin, Float[context, head_dim / 2] each, as the model's own module gives them."""
        positions = torch.arange(context)[None]
        cos, sin = rotary(torch.zeros(1, dtype=torch.float32), positions)
        half = self.head_dim // 2
        return cos[0, :, :half], sin[0, :, :half]

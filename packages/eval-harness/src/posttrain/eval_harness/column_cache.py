"""The keys and values of a batch in buffers allocated ahead, as a transformers `Cache` that can be forked.

What several rows begin with is computed once, in a cache of one row; `fork` gives each batch its own copy to go on
from. All rows write the same columns; which of them a row sees is for the attention mask to say.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache


class ColumnCache(Cache):
    """Buffers Float[rows, kv_heads, capacity, head_dim] a layer, of which `length` columns are in use.

    The caller advances `length` after a pass, for each layer of a pass writes at the same place.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(layers=[])
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self.capacity = capacity
        self.length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes Float[rows, kv_heads, q, head_dim] and returns all columns so far; called by the attention layers."""
        end = self.length + key_states.shape[2]
        for buffers, states in ((self.keys, key_states), (self.values, value_states)):
            if layer_idx not in buffers:
                rows, heads, _, width = states.shape
                buffers[layer_idx] = states.new_empty(rows, heads, self.capacity, width)
            buffers[layer_idx][:, :, self.length : end] = states
        return self.keys[layer_idx][:, :, :end], self.values[layer_idx][:, :, :end]

    def fork(self, rows: Sequence[int], capacity: int) -> "ColumnCache":
        """A copy of the given rows (one may come several times) with room for `capacity` columns."""
        forked = ColumnCache(capacity)
        forked.length = self.length
        for mine, theirs in ((self.keys, forked.keys), (self.values, forked.values)):
            for layer, buffer in mine.items():
                _, heads, _, width = buffer.shape
                theirs[layer] = buffer.new_empty(len(rows), heads, capacity, width)
                theirs[layer][:, :, : self.length] = buffer[list(rows), :, : self.length]
        return forked

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns in use."""
        return self.length

    def get_query_offset(self, layer_idx: int | None = None) -> int:
        """The column at which the next pass writes; read by transformers' mask construction."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How many columns a pass of `query_length` sees, and where they begin; read by the mask construction."""
        return self.length + query_length, 0

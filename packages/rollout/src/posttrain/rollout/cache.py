"""The keys and values of a batch, in buffers allocated ahead, as a transformers `Cache`.

Every row ends at the same column: shorter prompts start further right, so that one step writes one column for all
rows. Columns left of a row's start hold leftovers that the attention mask hides. It knows nothing of tokens.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache

GROWTH = 128
"""Columns a buffer grows by at least; long generations then copy seldom, and short ones hold little."""


class BatchCache(Cache):
    """Buffers Float[rows, kv_heads, capacity, head_dim] a layer. `length` columns are in use.

    A forward pass of q columns writes at `length … length + q` and sees all columns before. The caller advances
    `length` after the pass, since each layer of a pass writes at the same place.
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[])
        self.keys: list[torch.Tensor | None] = [None] * layers
        self.values: list[torch.Tensor | None] = [None] * layers
        self.length = 0
        self.reserved = 0

    def reserve(self, columns: int) -> None:
        """Buffers allocated from now on hold `columns` at least."""
        self.reserved = columns

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes Float[rows, kv_heads, q, head_dim] and returns all columns so far; called by the attention layers."""
        end = self.length + key_states.shape[2]
        keys = self.keys[layer_idx] = self._fit(self.keys[layer_idx], key_states, end)
        values = self.values[layer_idx] = self._fit(self.values[layer_idx], value_states, end)
        keys[:, :, self.length : end] = key_states
        values[:, :, self.length : end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def _fit(self, buffer: torch.Tensor | None, states: torch.Tensor, end: int) -> torch.Tensor:
        if buffer is not None and buffer.shape[2] >= end:
            return buffer
        rows, heads, _, width = states.shape
        capacity = max(end, self.reserved) if buffer is None else max(end, buffer.shape[2] + GROWTH)
        grown = states.new_zeros(rows, heads, capacity, width)
        if buffer is not None:
            grown[:, :, : self.length] = buffer[:, :, : self.length]
        return grown

    def select(self, rows: torch.Tensor, first_column: int = 0) -> None:
        """Keeps `rows` (Long[kept]; a row may come several times) and the columns from `first_column` on."""
        for buffers in (self.keys, self.values):
            for layer, buffer in enumerate(buffers):
                if buffer is not None:
                    buffers[layer] = buffer[:, :, first_column:].index_select(0, rows)
        self.length -= first_column

    def place(self, part: "BatchCache", sources: torch.Tensor, rows: torch.Tensor, total_rows: int) -> None:
        """Copies row `sources[i]` of `part` to row `rows[i]`, so that it ends at column `length`.

        Buffers of `total_rows` rows are made when missing.
        """
        for mine, theirs in ((self.keys, part.keys), (self.values, part.values)):
            for layer, buffer in enumerate(theirs):
                assert buffer is not None
                target = mine[layer]
                if target is None:
                    _, heads, _, width = buffer.shape
                    target = mine[layer] = buffer.new_zeros(total_rows, heads, max(self.length, self.reserved), width)
                target[rows, :, self.length - part.length : self.length] = buffer[sources, :, : part.length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns in use."""
        return self.length

    def get_query_offset(self, layer_idx: int | None = None) -> int:
        """The column at which the next pass writes; read by transformers' mask construction."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How many columns a pass of `query_length` sees, and where they begin; read by the mask construction."""
        return self.length + query_length, 0

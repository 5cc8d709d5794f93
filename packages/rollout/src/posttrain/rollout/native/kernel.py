"""The compiled kernel's functions, called with arrays. The GIL is free while they run."""

import ctypes
from functools import cache

import numpy as np
import torch

from posttrain.rollout.native import structs
from posttrain.rollout.native.build import NoKernel, library
from posttrain.rollout.native.packed import PackedModel


class Kernel:
    """`lanes` floats make a vector, `panel` columns of a packed matrix lie together."""

    def __init__(self) -> None:
        path = library()
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise NoKernel(f"{path} cannot be loaded: {error}") from None
        sizes = [ctypes.c_int32() for _ in range(4)]
        self._library.posttrain_layout(*map(ctypes.byref, sizes))
        self.lanes, self.panel, sequence, model = (size.value for size in sizes)
        if (sequence, model) != (structs.SEQUENCE.itemsize, ctypes.sizeof(structs.Model)):
            raise NoKernel("the compiler lays structs out in another way than Python expects")

    def decode(
        self,
        model: PackedModel,
        sequences: np.ndarray,
        index: np.ndarray,
        ends: np.ndarray,
        *,
        steps: int,
        threads: int,
    ) -> None:
        """Up to `steps` tokens for the running `sequences` (SEQUENCE[slots]) at `index` (int32[n])."""
        block = max(1, min(rows_of_block(model), -(-len(index) // threads)))
        self._library.posttrain_decode(
            ctypes.c_void_p(model.address),
            ctypes.c_void_p(sequences.ctypes.data),
            ctypes.c_void_p(index.ctypes.data),
            len(index),
            ctypes.c_void_p(ends.ctypes.data),
            steps,
            block,
            threads,
        )

    def prefill(
        self,
        model: PackedModel,
        texts: list[tuple[int, ...]],
        segments: np.ndarray,
        *,
        threads: int,
        logits: bool = False,
    ) -> torch.Tensor | None:
        """Places the keys and values of `texts` in empty `segments` (SEGMENT[n]); if asked, Float[tokens, vocab]."""
        tokens = np.fromiter((token for text in texts for token in text), np.int32)
        starts = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
        out = torch.empty(len(tokens), model.vocab) if logits else None
        self._library.posttrain_prefill(
            ctypes.c_void_p(model.address),
            ctypes.c_void_p(tokens.ctypes.data),
            ctypes.c_void_p(starts.ctypes.data),
            len(texts),
            ctypes.c_void_p(segments.ctypes.data),
            ctypes.c_void_p(0 if out is None else out.data_ptr()),
            rows_of_block(model),
            threads,
        )
        return out

    def draw(
        self, logits: torch.Tensor, temperature: float, uniforms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A token (Int32[rows]) and its log-probability for each row of Float[rows, vocab] by Float64[rows] uniforms.

        As `decode` draws; `vocab` must be a multiple of `lanes`.
        """
        rows, vocab = logits.shape
        if vocab % self.lanes:
            raise ValueError(f"a vocabulary of {vocab} is no multiple of {self.lanes}")
        scratch, uniforms = logits.contiguous().clone(), uniforms.contiguous()
        tokens, logprobs = torch.empty(rows, dtype=torch.int32), torch.empty(rows)
        self._library.posttrain_draw(
            ctypes.c_void_p(scratch.data_ptr()),
            rows,
            vocab,
            ctypes.c_float(temperature),
            ctypes.c_void_p(uniforms.data_ptr()),
            ctypes.c_void_p(tokens.data_ptr()),
            ctypes.c_void_p(logprobs.data_ptr()),
        )
        return tokens, logprobs


CACHED_BYTES = 16 << 20
"""Weights up to this size stay in the processor's last cache."""


def rows_of_block(model: PackedModel) -> int:
    """Rows that run together: few where the weights are cached anyway, so that the rows' own numbers stay in the second
    cache; many where each pass fetches all weights from memory."""
    return 24 if model.bytes <= CACHED_BYTES else 96


@cache
def load_kernel() -> Kernel:
    """The kernel of this process, compiled if need be; NoKernel when it cannot be."""
    return Kernel()

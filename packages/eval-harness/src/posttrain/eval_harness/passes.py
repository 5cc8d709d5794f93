"""A forward pass over tokens that follow what a cache holds, and whether a model can be computed in such parts.

Everything that is shared, a task's few-shot examples or an item's question, is then computed once. Positions and masks
are explicit, so that padding and siblings are invisible and the numbers those of the plain sequence.
"""

import inspect
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch

from posttrain.eval_harness.column_cache import ColumnCache

SHORTEST_PREFIX = 16
"""Tokens; to compute fewer once saves less than the copies cost."""

ROPE_BY_LENGTH = {"dynamic", "longrope"}


def forward(
    model: Any, cache: ColumnCache, ids: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor | None, keep: int
) -> torch.Tensor:
    """Float[rows, keep, vocab]: logits of the last `keep` of Long[rows, q] columns that follow those in `cache`.

    `visible` (Bool[rows, q, cached + q]) says which columns each sees; None is plain causal attention.
    """
    mask = None
    if visible is not None:
        # The lowest finite number: a padding column that sees nothing must not become NaN.
        mask = torch.zeros(visible.shape, dtype=model.dtype, device=ids.device)
        mask = mask.masked_fill_(~visible, torch.finfo(model.dtype).min)[:, None]
    logits: torch.Tensor = model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=keep,
    ).logits
    cache.length += ids.shape[1]
    return logits


def prefill(model: Any, prefix: Sequence[int]) -> ColumnCache:
    """The cache of one row that holds `prefix`, which may be empty."""
    cache = ColumnCache(len(prefix))
    if prefix:
        ids = torch.tensor([list(prefix)], device=model.device)
        forward(model, cache, ids, torch.arange(len(prefix), device=model.device)[None], None, 1)
    return cache


def common_prefix(sequences: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """What all sequences begin with, leaving each a token of its own; empty below SHORTEST_PREFIX tokens."""
    if len(sequences) < 2:
        return ()
    # The first and the last in order differ as early as any two.
    first, last = min(map(tuple, sequences)), max(map(tuple, sequences))
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    same = min(same, min(map(len, sequences)) - 1)
    return first[:same] if same >= SHORTEST_PREFIX else ()


def computes_in_parts(model: Any) -> bool:
    """Whether a causal model gives the numbers of a plain pass when it is computed in parts.

    It must take positions, a cache and a mask of our own, attend to everything (a sliding window or a state has no such
    mask), and turn a position by the same angle however long the sequence is (dynamic RoPE and longrope do not). That
    is tried on a few tokens too, since not every architecture that takes them obeys them.
    """
    takes = inspect.signature(model.forward).parameters
    if not {"position_ids", "past_key_values", "logits_to_keep"} <= takes.keys():
        return False
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if kinds != {"full_attention"} or windowed or config._attn_implementation not in ("sdpa", "eager"):
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    if {rope.get("rope_type", "default"), rope.get("type", "default")} & ROPE_BY_LENGTH:
        return False
    try:
        return _parts_agree(model, config.vocab_size)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError):
        # An architecture of its own way with masks or caches (Falcon's alibi) says so in many words.
        return False


@torch.inference_mode()
def _parts_agree(model: Any, vocabulary: int) -> bool:
    ids = (torch.arange(8, device=model.device) * 7919 % vocabulary)[None]
    whole = model(input_ids=ids).logits[0, -1].float()
    # The fifth column is a stranger that the rest must not see.
    cache = prefill(model, ids[0, :4].tolist())
    columns = torch.tensor([[0, *ids[0, 4:].tolist()]], device=model.device)
    positions = torch.tensor([[7, 4, 5, 6, 7]], device=model.device)
    visible = torch.ones(1, 5, 9, dtype=torch.bool, device=model.device).tril(4)
    visible[:, 1:, 4] = False
    parts = forward(model, cache.fork([0], 9), columns, positions, visible, 1)[0, -1].float()
    allowed = 1e-3 if model.dtype == torch.float32 else 0.1
    return bool((parts - whole).abs().max() <= allowed * (1 + whole.abs().max()))

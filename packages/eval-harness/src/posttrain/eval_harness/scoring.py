"""Log-likelihoods of many continuations in few passes: what they share is computed once.

Continuations of one context stand side by side in one row behind it, each blind to the others and at the position that
it would have alone; the logits after the context serve the first token of all of them, so that choices of one token
(MMLU's letters) cost nothing beside it. What all contexts begin with (few-shot examples, a primer) is computed once a
task. The numbers are those of one row a continuation, up to the last digits of the arithmetic.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from posttrain.eval_harness.column_cache import ColumnCache
from posttrain.eval_harness.passes import common_prefix, forward, prefill

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of a continuation, neither empty."""

MOST_IN_A_ROW = 512
"""Tokens of continuations; more of one context go to another row, since a mask grows with the square of its width."""
LOGITS_AT_ONCE = {"cpu": 2**26, "cuda": 2**28}
"""Numbers: 0.25 and 1 GiB in float32."""


@dataclass(frozen=True)
class Row:
    """A context and some of its continuations, by their places in what was asked."""

    context: tuple[int, ...]
    members: list[int]
    width: int
    """Columns of the continuations: none for those of one token."""


@torch.inference_mode()
def score(
    model: Any, pairs: Sequence[Pair], batch_size: int, done: Callable[[int], None] = lambda count: None
) -> list[tuple[float, bool]]:
    """Σ log p of each continuation after its context (in nats, float32), and whether each token is the likeliest.

    `batch_size`: most rows a pass. `done` is told how many continuations each pass has scored.
    """
    rows = _rows(pairs)
    prefix = common_prefix([row.context for row in rows])
    cache = prefill(model, prefix)
    rows.sort(key=lambda row: (-len(row.context) - row.width, row.context))
    vocabulary = model.config.get_text_config().vocab_size
    most = LOGITS_AT_ONCE.get(model.device.type, 2**26) // vocabulary
    scored: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    while rows:
        size, widest = 0, 0
        for row in rows[:batch_size]:
            widest = max(widest, row.width)
            if size and (size + 1) * (widest + 1) > most:
                break
            size += 1
        batch, rows = rows[:size], rows[size:]
        _score_batch(model, pairs, batch, cache, scored)
        done(sum(len(row.members) for row in batch))
    return scored


def _rows(pairs: Sequence[Pair]) -> list[Row]:
    """One row a context, or several where its continuations are many."""
    of_context: dict[tuple[int, ...], list[int]] = {}
    for place, (context, _) in enumerate(pairs):
        of_context.setdefault(tuple(context), []).append(place)
    rows = []
    for context, places in of_context.items():
        members: list[int] = []
        width = 0
        for place in places:
            columns = len(pairs[place][1][:-1])  # nothing is predicted after the last token
            if members and width + columns > MOST_IN_A_ROW:
                rows.append(Row(context, members, width))
                members, width = [], 0
            members.append(place)
            width += columns
        rows.append(Row(context, members, width))
    return rows


def _score_batch(
    model: Any, pairs: Sequence[Pair], batch: Sequence[Row], prefix: ColumnCache, scored: list[tuple[float, bool]]
) -> None:
    """Writes the scores of the rows' members to `scored`."""
    begun = prefix.length
    own = max(len(row.context) for row in batch) - begun
    behind = max(row.width for row in batch)
    # Contexts end at the same column, continuations follow; segment -1 is padding, 0 the context.
    ids = torch.zeros(len(batch), own + behind, dtype=torch.long)
    positions = torch.zeros_like(ids)
    segments = torch.full_like(ids, -1)
    places: list[tuple[int, int, int, int]] = []  # row, column of `logits`, token, place in `scored`
    for number, row in enumerate(batch):
        length = len(row.context) - begun
        ids[number, own - length : own] = torch.tensor(row.context[begun:])
        positions[number, own - length : own] = torch.arange(begun, begun + length)
        segments[number, own - length : own] = 0
        column = own
        for segment, member in enumerate(row.members, start=1):
            tokens = list(pairs[member][1])
            fed = tokens[:-1]
            end = column + len(fed)
            ids[number, column:end] = torch.tensor(fed, dtype=torch.long)
            positions[number, column:end] = torch.arange(begun + length, begun + length + len(fed))
            segments[number, column:end] = segment
            columns = [0, *range(column - own + 1, end - own + 1)]
            places += [(number, at, token, member) for at, token in zip(columns, tokens, strict=True)]
            column = end
    device = model.device
    cache = prefix.fork([0] * len(batch), begun + own + behind)
    logits = forward(
        model, cache, ids.to(device), positions.to(device), _visible(segments.to(device), begun), behind + 1
    ).float()
    at_row, at_column, token, place = torch.tensor(places, device=device).unbind(1)
    values = logits[at_row, at_column, token] - logits.logsumexp(-1)[at_row, at_column]
    greedy = logits.argmax(-1)[at_row, at_column] == token
    # On the CPU, where sums are made in one order.
    totals = torch.zeros(len(scored)).index_add_(0, place.cpu(), values.cpu())
    misses = torch.zeros(len(scored)).index_add_(0, place.cpu(), (~greedy).float().cpu())
    asked = [member for row in batch for member in row.members]
    for member, total, missed in zip(asked, totals[asked].tolist(), misses[asked].tolist(), strict=True):
        scored[member] = (total, missed == 0)


def _visible(segments: torch.Tensor, begun: int) -> torch.Tensor:
    """Bool[rows, q, begun + q]: the shared columns, the own context, and earlier ones of the own continuation."""
    rows, width = segments.shape
    earlier = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    kin = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    shared = torch.ones(rows, width, begun, dtype=torch.bool, device=segments.device)
    return torch.cat([shared, earlier & kin & (segments >= 0)[:, None, :]], dim=-1)

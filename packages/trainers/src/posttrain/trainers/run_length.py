"""How far a run goes: all the way, a share of it (tuning), or until a budget is spent (comparisons at equal cost)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from pydantic import Field

from posttrain.core.config import Settings


class RunLength(Settings):
    """Settings that every training method has. They only ever shorten a run."""

    length: float = Field(1.0, gt=0, le=1)
    """Share of the steps to do. The schedule of the learning rate ends where they do."""
    max_tokens: int | None = Field(None, ge=1)
    """Stop before the step that would exceed so many tokens, trained and generated ones together; None for no bound."""
    max_seconds: float | None = Field(None, gt=0)
    """Stop after the step in which training has taken so many seconds; None for no bound. Such a run repeats to the bit
    only as far as the machine is as fast."""

    def share_of(self, steps: int) -> int:
        """How many of a method's steps `length` leaves: at least one."""
        return max(1, math.ceil(self.length * steps))


def tokens_after_steps(lengths: Sequence[int], order: Sequence[int], batch_size: int) -> list[int]:
    """Tokens trained up to the end of each step of `batch_size` examples, `lengths[order[i]]` each."""
    batches = (order[i : i + batch_size] for i in range(0, len(order), batch_size))
    return list(accumulate(sum(lengths[index] for index in batch) for batch in batches))


def shortened(order: Sequence[int], lengths: Sequence[int], batch_size: int, bounds: RunLength) -> list[int]:
    """The part of a data order that `length` and `max_tokens` leave: whole steps, at least one."""
    tokens = tokens_after_steps(lengths, order, batch_size)
    steps = bounds.share_of(len(tokens))
    if bounds.max_tokens is not None:
        steps = min(steps, max(1, sum(total <= bounds.max_tokens for total in tokens)))
    return list(order[: steps * batch_size])


class Spending:
    """What the steps of an online run have cost so far, from their rows of metrics.jsonl."""

    def __init__(self, bounds: RunLength, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._bounds = bounds
        self._tokens = self._last = self._seconds = 0.0
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts a step. A row without tokens (the last validation) counts its seconds only."""
        self._seconds += row.get("seconds") or 0.0
        if "tokens_generated" in row:
            self._last = row["tokens_generated"] + (row.get("tokens_trained") or 0.0)
            self._tokens += self._last

    @property
    def exhausted(self) -> bool:
        """Whether the time is over, or a step like the last one would exceed the tokens."""
        tokens, seconds = self._bounds.max_tokens, self._bounds.max_seconds
        return (seconds is not None and self._seconds >= seconds) or (
            tokens is not None and self._tokens > 0 and self._tokens + self._last > tokens
        )

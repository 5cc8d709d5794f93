"""A share of the data set aside, the same for the same seed, without an item on both sides."""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from posttrain.core.errors import RequestError
from posttrain.core.seeds import derive_seed

RowT = TypeVar("RowT")


def split_held_out(
    rows: Sequence[RowT], share: float, seed: int, key: Callable[[RowT], str]
) -> tuple[list[RowT], list[RowT]]:
    """(training rows, held-out rows), each in the order of `rows`; rows with one `key` stay on one side.

    At least two keys are held out, for a standard error. RequestError with fewer than four keys.
    """
    keys = sorted({key(row) for row in rows})
    if len(keys) < 4:
        raise RequestError(f"{len(keys)} different examples are too few to hold some out; give validation data")
    random.Random(derive_seed(seed, "held out")).shuffle(keys)
    chosen = set(keys[: max(2, round(share * len(keys)))])
    return [row for row in rows if key(row) not in chosen], [row for row in rows if key(row) in chosen]

"""The order of a source's rows and the choice among them: pure functions of counts, seeds and rows.

`shuffled` is a permutation of all rows and needs their number; `shuffled_stream` sees them once and knows only a
buffer's worth, so it cannot bring a late row to the front: the two orders differ, each is the same for the same seed.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from posttrain.core.seeds import derive_seed

ItemT = TypeVar("ItemT")


def shuffled(count: int, seed: int, split: str) -> list[int]:
    """The numbers of `count` rows in the order of this seed and split."""
    order = list(range(count))
    random.Random(derive_seed(seed, "rows", split)).shuffle(order)
    return order


def shuffled_stream(items: Iterable[ItemT], seed: int, split: str, buffer: int) -> Iterator[ItemT]:
    """Every item once: each time one drawn from a buffer, whose place the next item takes; ValueError for no buffer."""
    if buffer < 1:
        raise ValueError(f"a buffer of {buffer} holds no item")
    generator = random.Random(derive_seed(seed, "stream", split))
    coming = iter(items)
    held = list(islice(coming, buffer))
    for item in coming:
        place = generator.randrange(len(held))
        drawn, held[place] = held[place], item
        yield drawn
    generator.shuffle(held)
    yield from held


def shard(items: Iterable[ItemT], part: tuple[int, int]) -> Iterator[ItemT]:
    """Part `index` of `count`: the items at index, index + count, … of the order."""
    index, count = part
    return islice(items, index, None, count)

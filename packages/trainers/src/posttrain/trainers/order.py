"""The order in which a run sees its examples: a pure function of lengths and seed, fixed before the first step.

Because the whole order is known beforehand, resuming at step n needs no generator state for the data: it skips the
first n batches. Knows nothing of tensors or trainers.
"""

import random
from collections.abc import Sequence

from posttrain.core.seeds import derive_seed


def training_order(lengths: Sequence[int], batch_size: int, epochs: int, seed: int, bucket: int = 1) -> list[int]:
    """Indices into `lengths` for all epochs one after the other, to be cut into batches of `batch_size`.

    Each epoch is a permutation of all examples. Within every stretch of `bucket` batches, examples are sorted by
    length into batches and the batches are shuffled: batches are still drawn at random, yet padded little.
    `bucket=1` changes nothing of the shuffle. Raises ValueError for no examples or a size below one.
    """
    if not lengths or min(batch_size, epochs, bucket) < 1:
        raise ValueError(f"no order for {len(lengths)} examples, batches of {batch_size}, {epochs} epochs, {bucket=}")
    order: list[int] = []
    for epoch in range(epochs):
        indices = list(range(len(lengths)))
        random.Random(derive_seed(seed, "order", epoch)).shuffle(indices)
        order += indices
    if bucket == 1:
        return order
    generator = random.Random(derive_seed(seed, "bucket"))
    bucketed: list[int] = []
    for start in range(0, len(order), bucket * batch_size):
        stretch = sorted(order[start : start + bucket * batch_size], key=lambda index: lengths[index])
        batches = [stretch[i : i + batch_size] for i in range(0, len(stretch), batch_size)]
        # A short last batch must stay last: the data loader cuts the list every `batch_size` examples.
        short = [batches.pop()] if len(batches[-1]) < batch_size else []
        generator.shuffle(batches)
        bucketed += [index for batch in batches + short for index in batch]
    return bucketed

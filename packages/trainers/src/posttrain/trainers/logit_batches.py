"""Batches for passes without gradients that make logits: so many examples, unless their logits would be too many.

With a vocabulary of 1,024 nothing changes; with Qwen2.5's 151,936 the logits of 64 pairs of answers would be 40 GB.
"""

from collections.abc import Sequence

MOST_LOGITS = 2**28
"""Numbers at once: 1 GiB in fp32, and a few times that while they are normalised."""


def logit_batches(positions: Sequence[int], vocabulary: int, most: int, limit: int = MOST_LOGITS) -> list[range]:
    """Ranges over examples in their order, of at most `most` each and of at most `limit` logits, a padded rectangle
    counted; an example that has more is alone. `positions`: of each example those whose logits are made."""
    batches: list[range] = []
    start = longest = 0
    for number, count in enumerate(positions):
        longest = max(longest, count)
        size = number + 1 - start
        if size > 1 and (size > most or size * longest * vocabulary > limit):
            batches.append(range(start, number))
            start, longest = number, count
    if positions:
        batches.append(range(start, len(positions)))
    return batches

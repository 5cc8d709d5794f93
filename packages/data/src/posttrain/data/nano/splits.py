"""Which split an item belongs to, decided by a hash of its content: splits are disjoint by construction.

The content is what makes two items the same to a learner (a problem's numbers and operations, a fact's subject and
relation), not its wording, and not the seed that drew it. So no choice of seeds can move an item across splits.
"""

import hashlib

Split = str
"""One of the names in SHARES or FACT_SHARES."""

SHARES: dict[Split, int] = {"pretrain": 48, "sft": 12, "preference": 12, "train": 16, "validation": 6, "test": 6}
"""Per cent of all problems and instruction prompts. "train" holds the prompts of RL."""

FACT_SHARES: dict[Split, int] = {"pretrain": 15, "sft": 15, "validation": 35, "test": 35}
"""Per cent of all facts and misconceptions whose *questions* belong to a split; the base corpus states all of them."""


def split_of(kind: str, key: str, shares: dict[Split, int]) -> Split:
    """The split of the item `key` of a kind, by SHA-256. Shares are per cent and add up to 100."""
    place = int.from_bytes(hashlib.sha256(f"{kind}\x1f{key}".encode()).digest()[:8], "big") % 100
    for split, share in shares.items():
        place -= share
        if place < 0:
            return split
    raise ValueError(f"shares {shares} do not add up to 100")

"""The table that all statistics start from: each comparison's preference in both orders, and what may explain it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """n comparisons of A and B. Not known, or no verdict: NaN."""

    first: Floats
    """(n,) P(B is better) as judged with A shown first."""
    second: Floats | None
    """(n,) P(B is better) as judged with B shown first; None where nobody asked so. An order that was asked and has no
    verdict at all is NaN, and no half of a pair counts for the whole."""
    prompts: Sequence[str]
    """(n,) names of prompts: comparisons of one prompt depend on each other."""
    length_a: Floats
    """(n,) characters of A's answers."""
    length_b: Floats
    human: Floats
    """(n,) 1: people prefer B, 0: A, ½: neither."""
    categories: Sequence[str | None] = ()
    equal: Sequence[bool] = ()
    """(n,) whether both answers are the same, so that both orders are one game; empty: none are."""

    @property
    def two_orders(self) -> bool:
        """Whether both orders were asked."""
        return self.second is not None

    @property
    def different(self) -> NDArray[np.bool_]:
        """(n,) whether the two answers differ."""
        return ~np.array(self.equal, dtype=bool) if len(self.equal) else np.ones(len(self.first), dtype=bool)

    @property
    def preference(self) -> Floats:
        """(n,) mean over the orders that were asked; NaN where one of them has no verdict, for half a pair would carry
        the position's bias."""
        return self.first if self.second is None else (self.first + self.second) / 2

"""Several sampled answers an item: pass@k and maj@k, exact and with standard errors that count items.

pass@k is the probability that at least one of k samples is right, estimated without bias from n ≥ k of them: 1 −
C(n−c, k) / C(n, k) with c right ones (Chen et al. 2021, eq. 1). maj@k is the accuracy of the most frequent answer of k
samples (self-consistency, Wang et al. 2023): its expectation over all C(n, k) choices, computed exactly, so that no
draw enters. Of equally frequent answers each is taken with the same probability; a sample without an answer has no
vote; all answers that the task accepts are one answer.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import comb

from posttrain.core.errors import RequestError


@dataclass(frozen=True)
class Samples:
    """How many answers an item, and what is told of them."""

    n: int
    temperature: float = 1.0
    pass_at: tuple[int, ...] = (1,)
    maj_at: tuple[int, ...] = ()
    seed: int = 0
    """An item's samples depend on it, the item's task and number, and nothing else."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise RequestError(f"--samples {self.n} gives no answer; give 1 or more")
        if self.temperature <= 0:
            raise RequestError(
                f"--temperature {self.temperature:g} gives {self.n} times the same answer; give more than 0"
            )
        for option, sizes in (("--pass-at", self.pass_at), ("--maj-at", self.maj_at)):
            for k in sizes:
                if not 1 <= k <= self.n:
                    raise RequestError(f"{option} {k} needs as many samples an item; --samples gives {self.n}")

    @property
    def label(self) -> str:
        """What stands in a result's key."""
        return f"{self.n} samples at temperature {self.temperature:g}, seed {self.seed}"


def pass_at_k(n: int, correct: int, k: int) -> float:
    """1 − C(n−c, k) / C(n, k); ValueError unless 0 ≤ c ≤ n and 1 ≤ k ≤ n."""
    _check(n, correct, k)
    return 1.0 - comb(n - correct, k) / comb(n, k)


def maj_at_k(votes: Sequence[Hashable | None], right: Sequence[bool], k: int) -> float:
    """Expected accuracy of the most frequent answer of k of the n samples, all choices of k equally likely.

    votes: each sample's answer, None for none. right: whether it is accepted. Ties are broken uniformly.
    """
    n = len(votes)
    correct = sum(right)
    _check(n, correct, k)
    others = Counter(vote for vote, good in zip(votes, right, strict=True) if not good and vote is not None)
    silent = n - correct - others.total()
    favourable = 0.0
    for won in range(1, min(correct, k) + 1):
        # ways[used][tied]: choices of `used` wrong samples, none more frequent than the right one, `tied` as frequent.
        ways = {(0, 0): 1}
        for count in others.values():
            grown: Counter[tuple[int, int]] = Counter()
            for (used, tied), number in ways.items():
                for taken in range(min(count, won, k - won - used) + 1):
                    grown[used + taken, tied + (taken == won)] += number * comb(count, taken)
            ways = grown
        favourable += comb(correct, won) * sum(
            number * comb(silent, k - won - used) / (tied + 1) for (used, tied), number in ways.items()
        )
    return favourable / comb(n, k)


def _check(n: int, correct: int, k: int) -> None:
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"{correct} right of {n} samples and k = {k} do not fit together")

"""Several reward models as one source: the mean of their scores, the least of them, and how far they disagree.

An ensemble `rm` of the models a and b offers the sources `rm.mean`, `rm.min` and `rm.std`. What is over-optimised in
one model is not in another: the mean or the minimum is a harder reward to cheat, and a rising deviation shows that a
policy has left what the models know (Coste et al. 2023, arXiv:2310.02743). The deviation is over the k models that
there are, Σ(score − mean)²/k under the root, as there. Scores are compared as they are: models whose scales differ
need offsets and scales of their own before (`reward_offset`).

Pure functions of scores, and the names; the members are scored once, however many of these are asked for.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from posttrain.core.errors import RequestError, suggest
from posttrain.core.hashing import digest_json

STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "min": min,
    "std": statistics.pstdev,
}


@dataclass(frozen=True)
class Ensemble:
    """One statistic over the scores of the sources `members`; `digest` follows those of the members."""

    statistic: str
    members: tuple[str, ...]
    digest: str

    def combine(self, scores: Sequence[float]) -> float:
        """The statistic of one item's scores, one a member."""
        return STATISTICS[self.statistic](scores)


def build_ensembles(wanted: Mapping[str, Sequence[str]], digests: Mapping[str, str]) -> dict[str, Ensemble]:
    """The sources `name.statistic` of each wanted ensemble; `digests` are those of the members."""
    return {
        f"{name}.{statistic}": Ensemble(
            statistic, tuple(members), digest_json([statistic, *(digests[member] for member in members)])
        )
        for name, members in wanted.items()
        for statistic in STATISTICS
    }


def check_ensembles(
    wanted: Mapping[str, Sequence[str]], models: Mapping[str, str], taken: Mapping[str, object]
) -> None:
    """RequestError for an ensemble of fewer than two reward models, of unknown ones, or whose name is taken.

    `models`: reward models by name. `taken`: every source by name.
    """
    for name, members in wanted.items():
        if len(set(members)) < max(2, len(members)):
            raise RequestError(f"ensemble '{name}' needs two or more different reward models, not {list(members)}")
        for member in members:
            if member not in models:
                known = suggest(member, models)
                raise RequestError(f"ensemble '{name}': '{member}' is no reward model of this service {known}")
        for statistic in STATISTICS:
            if f"{name}.{statistic}" in taken:
                raise RequestError(f"ensemble '{name}': the source '{name}.{statistic}' exists already; rename one")

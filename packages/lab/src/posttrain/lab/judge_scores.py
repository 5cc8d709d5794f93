"""What judges say of a table's rows against the SFT policy: win rates, their significance, and agreement with gold.

Takes every item's preferences, pooled over seeds, as the table takes its scores, and computes each number from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import copysign
from typing import TYPE_CHECKING

from posttrain.core.statistics import Comparison, Estimate, holm, paired_difference
from posttrain.llm_judge.statistics.bias import Agreement, agreement
from posttrain.llm_judge.statistics.estimates import IntervalEstimate, of, share, verdicts

if TYPE_CHECKING:
    from posttrain.lab.table import Scores

EVEN = 0.5
"""The win rate of two that are equally good."""


@dataclass(frozen=True)
class Judges:
    """Who judged the rows of a table."""

    task: str
    """The task whose answers were compared."""
    names: tuple[str, ...]
    """Sources of reward."""
    gold: str | None
    """The one that the others are held against."""
    identities: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Judge and seed to what identifies the judge in this table's plans: a fingerprint, digest or version."""

    def held_against_gold(self, judge: str) -> bool:
        """Whether a judge is held against gold: it is another one, and there is gold."""
        return self.gold is not None and judge != self.gold


@dataclass(frozen=True)
class JudgedBy:
    """Where one judge's preferences on a row's answers of one seed come from."""

    identity: str | None
    """What identifies the judge; of a row of other runs it may be another one than the table's."""
    record: str | None
    """The match's record, `<record>.json` in runs/judge; None where judging did not note it."""


@dataclass(frozen=True)
class AgainstGold:
    """How far a judge's verdicts on a row's pairs (the row is better, the SFT policy, neither) are gold's."""

    agreement: Agreement
    """Over all pairs. A tie of the one that the other decides counts against it."""
    decided: IntervalEstimate | None
    """Share of the pairs that gold decides on which the judge says the same; None where gold decides none."""


@dataclass(frozen=True)
class WinRate:
    """One row's answers against the SFT policy's, by one judge."""

    rate: Estimate
    """Mean preference, ties half, clustered as differences are."""
    margin: Comparison
    """The rate less ½, as a paired difference."""
    corrected: float
    """Holm-corrected p of the margin, over all rows that this judge judged."""
    by_seed: Mapping[int, float]
    """The rate on each seed by itself."""
    error: AgainstGold | None
    """Against the gold judge's verdicts on the same pairs; None for gold itself, and without one."""

    @property
    def sign(self) -> float:
        """1 above ½, −1 below, 0 at it."""
        return 0.0 if self.margin.value == 0 else copysign(1.0, self.margin.value)


def win_rates(judged: Mapping[str, Mapping[str, "Scores"]], judges: Judges) -> dict[str, dict[str, WinRate]]:
    """Row to judge to win rate, from `judged`: row to judge to the preference for the row on each item, 0 to 1.

    A row whose items are a single cluster has none. A judge is held against gold on the items that both judged.
    """
    found: dict[str, dict[str, WinRate]] = {row: {} for row in judged}
    for judge in judges.names:
        of_judge = {row: by_judge[judge] for row, by_judge in judged.items() if judge in by_judge}
        margins = {row: margin for row, scores in of_judge.items() if (margin := _margin(scores))}
        corrected = holm({row: margin.p_value for row, margin in margins.items()})
        for row, margin in margins.items():
            scores = of_judge[row]
            gold = judged[row].get(judges.gold) if judges.gold and judges.held_against_gold(judge) else None
            found[row][judge] = WinRate(
                rate=Estimate(EVEN + margin.value, margin.standard_error, margin.n),
                margin=margin,
                corrected=corrected[row],
                by_seed={seed: scores.of_seed(seed).estimate.value for seed in sorted(set(scores.seeds))},
                error=_error(scores, gold) if gold else None,
            )
    return {row: rates for row, rates in found.items() if rates}


def _margin(scores: "Scores") -> Comparison | None:
    clusters = scores.clusters(scores.items)
    if len(set(clusters)) < 2:
        return None
    return paired_difference(scores.values, [EVEN] * len(scores.values), clusters)


def _error(scores: "Scores", gold: "Scores") -> AgainstGold:
    keys = [key for key in scores.by_key if key in gold.by_key]
    clusters = scores.clusters(item for _, item, _ in keys)
    said, true = ([each.by_key[key] for key in keys] for each in (scores, gold))
    same, decided = verdicts(said) == verdicts(true), verdicts(true) != EVEN
    return AgainstGold(
        agreement=agreement(said, true, clusters),
        decided=share(same[decided], of(clusters, decided)) if decided.any() else None,
    )

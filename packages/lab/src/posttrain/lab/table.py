"""The comparison table: rows of estimates, paired differences with corrected p-values, verdicts.

Takes per-item scores of every row, pooled over seeds, and computes every number from them: a value in the table and
the difference it enters are the same items. Knows nothing of files, training or terminals.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from math import comb, fsum, isnan, nan

from posttrain.core.statistics import (
    Bootstrap,
    Comparison,
    Estimate,
    McNemar,
    Sensitivity,
    Verdict,
    clustered_mean,
    holm,
    mcnemar,
    paired_bootstrap,
    paired_difference,
    sensitivity,
    wins,
)
from posttrain.lab.costs import RowCost
from posttrain.lab.judge_scores import JudgedBy, Judges, WinRate, win_rates
from posttrain.lab.plan import BASE, REFERENCE


@dataclass(frozen=True)
class Scores:
    """Per-item values of one metric: aligned lists. An item occurs once a seed, or once an instruction it holds."""

    items: tuple[str, ...]
    """What each value is of: rows are paired by it."""
    seeds: tuple[int, ...]
    """The seed of each value."""
    places: tuple[int, ...]
    """Its place among the values of its item."""
    values: tuple[float, ...]
    shared: Mapping[str, str] = field(default_factory=dict)
    """Item to its cluster, where several items hang together; an item that is not there is a cluster of its own."""

    @cached_property
    def by_key(self) -> dict[tuple[int, str, int], float]:
        """Value by what it is paired by: seed, item, place within the item."""
        return dict(zip(zip(self.seeds, self.items, self.places, strict=True), self.values, strict=True))

    @cached_property
    def estimate(self) -> Estimate:
        """Mean with the standard error that is robust to values sharing an item or a cluster of items; of a single
        cluster, which has none, with NaN."""
        clusters = self.clusters(self.items)
        if len(set(clusters)) == 1:
            return Estimate(fsum(self.values) / len(self.values), nan, len(self.values))
        return clustered_mean(self.values, clusters)

    @property
    def dependent(self) -> bool:
        """Whether some of its items share a cluster."""
        items = set(self.items)
        return len(set(self.clusters(items))) < len(items)

    def clusters(self, items: Iterable[str]) -> list[str]:
        """The cluster of each of `items`: what is independent of the rest."""
        return [self.shared.get(item, item) for item in items]

    def of_seed(self, seed: int) -> "Scores":
        """The values of one seed."""
        kept = [i for i, each in enumerate(self.seeds) if each == seed]
        items, places, values = ([column[i] for i in kept] for column in (self.items, self.places, self.values))
        return Scores(tuple(items), (seed,) * len(kept), tuple(places), tuple(values), self.shared)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TableRow:
    """One method with everything that the table shows of it."""

    name: str
    config_hash: str
    seeds: tuple[int, ...]
    """Empty for the base, which no seed enters."""
    scores: Mapping[str, Scores]
    """By column title; a column that does not apply is absent."""
    learns_from: str = "—"
    """What it was trained on: like is compared with like."""
    trials: int | None = None
    """Settings that were tried for it; None for what is not tuned."""
    reward_accuracy: Estimate | None = None
    """Held-out accuracy of the reward model that it learnt from, or of its own implicit reward."""
    implicit: bool = False
    """Whether that is the implicit reward's."""
    cost: RowCost | None = None
    start: str | None = None
    """The row it was trained from; None for the base, and for a row that joins from other runs."""
    bounds: tuple[str, ...] = ()
    """Columns whose value is no estimate but an upper bound, the same for every item."""
    footnotes: tuple[str, ...] = ()
    """In what it may not be compared with the other rows without a second thought."""
    judged: Mapping[str, Scores] = field(default_factory=dict)
    """By judge what it says of each item: P(this row's answer is better than the SFT policy's)."""
    judged_by: Mapping[str, Mapping[int, JudgedBy]] = field(default_factory=dict)
    """By judge and seed where that comes from."""


@dataclass(frozen=True)
class Difference:
    """`after − before` in every column that both have."""

    after: str
    before: str
    columns: Mapping[str, Comparison]
    by_seed: Mapping[int, float]
    """The headline's difference on each seed by itself."""
    corrected: Mapping[str, float] | None = None
    """Holm-corrected p of the tasks' columns, over all differences of the table."""
    bootstrap: Bootstrap | None = None
    """Cross-check of the headline's difference."""
    mcnemar: Mapping[int, McNemar] | None = None
    """Cross-check by seed, where the headline's items are right or wrong and independent of each other."""
    seed_p: Mapping[int, float] | None = None
    """p of the headline's difference on each seed by itself, uncorrected: what McNemar's is to be compared with."""


@dataclass(frozen=True)
class Standing:
    """A row's place on the headline, and its distance from the best."""

    name: str
    behind: Comparison | None
    """This row − the best; None for the best, and where the two have no items in common."""
    corrected: float | None
    """Holm-corrected p over all pairs of rows, for the best was chosen after looking: a family of its own."""


@dataclass(frozen=True)
class Table:
    """What is shown and stored."""

    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    differences: tuple[Difference, ...]
    tasks: tuple[str, ...]
    """The columns in which a lower value is a loss: task scores and gold reward, not KL or the learned reward."""
    headline: str
    """The column that decides."""
    verdicts: tuple[Verdict, ...]
    standings: tuple[Standing, ...]
    """Rows by their headline, best first, without the base."""
    sensitivity: Sensitivity | None
    """What the headline's items could have shown between the two best rows."""
    judges: Judges | None = None
    """None: nobody judged the rows."""
    win_rates: Mapping[str, Mapping[str, WinRate]] = field(default_factory=dict)
    """By row and judge, over the SFT policy; a row that was not judged is absent."""

    @property
    def footnotes(self) -> tuple[str, ...]:
        """The rows' own, with the names of all that share one."""
        texts = dict.fromkeys(text for row in self.rows for text in row.footnotes)
        return tuple(f"{', '.join(row.name for row in self.rows if text in row.footnotes)}: {text}" for text in texts)

    @property
    def family(self) -> int:
        """How many differences are corrected for together: those in the tasks' columns."""
        return sum(len(difference.corrected or {}) for difference in self.differences)

    def losses(self) -> list[str]:
        """A sentence for every task that fell beyond two standard errors."""
        return [
            f"{difference.after} is below {difference.before} in {column}: "
            f"{estimate.value:+.3f} ± {estimate.standard_error:.3f}"
            for difference in self.differences
            for column, estimate in difference.columns.items()
            if column in self.tasks and estimate.beyond_noise and estimate.value < 0
        ]


def build_table(
    rows: Sequence[TableRow],
    columns: Sequence[str],
    tasks: Sequence[str],
    headline: str,
    check: bool = True,
    partial: bool = False,
    judges: Judges | None = None,
) -> Table:
    """The table of `rows`, base first, with every row's differences from the base, from SFT, and from where it started.

    `check`: also compute the cross-checks of the headline (a bootstrap takes a third of a second). `partial`: pair
    rows on the items that both have, where they may have others; ValueError for such rows without it. `judges`: who
    judged the rows that are judged.
    """
    by_name = {row.name: row for row in rows}
    if not partial:
        _refuse_other_items(rows, columns)
    differences = [
        _difference(by_name[after], by_name[before], columns, headline, check) for after, before in _pairs(rows)
    ]
    family = {
        f"{number}/{column}": comparison.p_value
        for number, difference in enumerate(differences)
        for column, comparison in difference.columns.items()
        if column in tasks
    }
    corrected = holm(family)
    differences = [
        replace(d, corrected={c: corrected[f"{number}/{c}"] for c in d.columns if c in tasks})
        for number, d in enumerate(differences)
    ]
    standings = _standings(rows, headline)
    known = [column for column in tasks if column in columns]
    # Where the SFT policy is in no table any more, being better than it says nothing.
    judged = {row.name: row.judged for row in rows if row.judged} if REFERENCE in by_name else {}
    rates = win_rates(judged, judges) if judges else {}
    return Table(
        tuple(columns),
        tuple(rows),
        tuple(differences),
        tuple(tasks),
        headline,
        tuple(_verdict(d, headline, known) for d in differences if _judged(d, by_name) and headline in d.columns),
        standings,
        _between(by_name, standings, headline),
        judges if rates else None,
        rates,
    )


def _refuse_other_items(rows: Sequence[TableRow], columns: Sequence[str]) -> None:
    for column in columns:
        scores = [row.scores[column] for row in rows if column in row.scores]
        if any(each.by_key.keys() != scores[0].by_key.keys() for each in scores):
            names = ", ".join(row.name for row in rows if column in row.scores)
            raise ValueError(f"column '{column}': not all of {names} were measured on the same items")


def paired_values(after: Scores, before: Scores) -> tuple[list[float], list[float], list[str]]:
    """Values of both on the keys that both have, and the clusters that they belong to."""
    keys = [key for key in after.by_key if key in before.by_key]
    clusters = after.clusters(item for _, item, _ in keys)
    return [after.by_key[k] for k in keys], [before.by_key[k] for k in keys], clusters


def _pairs(rows: Sequence[TableRow]) -> list[tuple[str, str]]:
    """(after, before): SFT against the base, every other row against SFT, its start and the base."""
    pairs = []
    for row in rows:
        if row.name == BASE:
            continue
        for before in (REFERENCE, row.start, BASE):
            if before and before != row.name and (row.name, before) not in pairs:
                pairs.append((row.name, before))
    names = {row.name for row in rows}
    return [(after, before) for after, before in pairs if before in names]


def _difference(after: TableRow, before: TableRow, columns: Sequence[str], headline: str, check: bool) -> Difference:
    compared = {}
    for column in columns:
        if column in after.scores and column in before.scores:
            values, others, clusters = paired_values(after.scores[column], before.scores[column])
            if len(set(clusters)) > 1:
                compared[column] = paired_difference(values, others, clusters)
    difference = Difference(after.name, before.name, compared, {})
    if headline not in compared:
        return difference
    by_seed, seed_p, tests = {}, {}, {}
    for seed in sorted(set(after.scores[headline].seeds)):
        values, others, clusters = paired_values(after.scores[headline].of_seed(seed), before.scores[headline])
        if not values:
            continue
        by_seed[seed] = sum(a - b for a, b in zip(values, others, strict=True)) / len(values)
        # McNemar's test is for independent items: not for the instructions of one prompt or the items of a cluster.
        if check and {*values, *others} <= {0.0, 1.0} and len(set(clusters)) == len(clusters) > 1:
            tests[seed] = mcnemar(values, others)
            seed_p[seed] = paired_difference(values, others, clusters).p_value
    bootstrap = paired_bootstrap(*paired_values(after.scores[headline], before.scores[headline])) if check else None
    return replace(difference, by_seed=by_seed, bootstrap=bootstrap, mcnemar=tests or None, seed_p=seed_p or None)


def _judged(difference: Difference, by_name: Mapping[str, TableRow]) -> bool:
    """Verdicts are given over SFT and over the row that a row started from; for SFT over the base."""
    after, before = difference.after, difference.before
    return before in (REFERENCE, by_name[after].start) or (after, before) == (REFERENCE, BASE)


def _verdict(difference: Difference, headline: str, tasks: Sequence[str]) -> Verdict:
    """`tasks` are all that the table has."""
    assert difference.corrected is not None
    compared = {column: difference.columns[column] for column in difference.corrected}
    after, before = difference.after, difference.before
    return wins(after, before, compared, difference.corrected, headline, difference.by_seed, tasks)


def _standings(rows: Sequence[TableRow], headline: str) -> tuple[Standing, ...]:
    ranked = sorted(
        (row for row in rows if headline in row.scores and row.name != BASE),
        key=lambda row: _rank(row.scores[headline].estimate.value),
    )
    compared = {}
    for best, other in combinations(ranked, 2):
        values, others, clusters = paired_values(other.scores[headline], best.scores[headline])
        if len(set(clusters)) > 1:
            compared[other.name, best.name] = paired_difference(values, others, clusters)
    corrected = holm({"\n".join(pair): comparison.p_value for pair, comparison in compared.items()})
    standings = []
    for row in ranked:
        pair = (row.name, ranked[0].name)
        standings.append(Standing(row.name, compared.get(pair), corrected.get("\n".join(pair))))
    return tuple(standings)


def _rank(value: float) -> tuple[bool, float]:
    """Best first; what is no number comes last."""
    return isnan(value), -value


def _between(by_name: Mapping[str, TableRow], standings: Sequence[Standing], headline: str) -> Sensitivity | None:
    if len(standings) < 2:
        return None
    best, second = (by_name[standing.name].scores[headline] for standing in standings[:2])
    paired = paired_values(best, second)
    return sensitivity(*paired, family=comb(len(standings), 2)) if len(set(paired[2])) > 1 else None

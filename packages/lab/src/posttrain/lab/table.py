"""The comparison table: rows of estimates, and paired differences between rows.

Takes per-item scores of every row, pooled over seeds, and computes every number from them: a value in the table and
the difference it enters are the same items. Knows nothing of files, training or terminals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.core.statistics import Estimate, clustered_mean, paired_difference


@dataclass(frozen=True)
class Scores:
    """Per-item values of one metric: aligned lists. An item occurs once a seed, or once an instruction it holds."""

    items: tuple[str, ...]
    """The cluster that each value belongs to: errors of one item are not independent."""
    keys: tuple[str, ...]
    """What a value is paired by: item, seed, and place within the item."""
    values: tuple[float, ...]

    def estimate(self) -> Estimate:
        """Mean with the standard error that is robust to values sharing an item."""
        return clustered_mean(self.values, self.items)


@dataclass(frozen=True)
class TableRow:
    """One method with everything that the table shows of it."""

    name: str
    config_hash: str
    seeds: tuple[int, ...]
    """Empty for the base, which no seed enters."""
    scores: Mapping[str, Scores]
    """By column title; a column that does not apply is absent."""
    seconds: float | None
    """Training time of the row's own stage, mean over seeds."""
    resumed: bool = False
    """Whether a run was killed and resumed: its seconds then count from the last start and are a lower bound."""


@dataclass(frozen=True)
class Difference:
    """`after − before` in every column that both have."""

    after: str
    before: str
    columns: Mapping[str, Estimate]


@dataclass(frozen=True)
class Table:
    """What is shown and stored."""

    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    differences: tuple[Difference, ...]
    tasks: tuple[str, ...]
    """The columns in which a lower value is a loss: task scores and gold reward, not KL or the learned reward."""

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
    rows: Sequence[TableRow], columns: Sequence[str], pairs: Sequence[tuple[str, str]], tasks: Sequence[str]
) -> Table:
    """The table of `rows` with the differences of the named `(after, before)` pairs of rows.

    `tasks` are the columns in which a fall is named.

    ValueError if two rows that are paired were not measured on the same items.
    """
    by_name = {row.name: row for row in rows}
    differences = tuple(_difference(by_name[after], by_name[before], columns) for after, before in pairs)
    return Table(tuple(columns), tuple(rows), differences, tuple(tasks))


def _difference(after: TableRow, before: TableRow, columns: Sequence[str]) -> Difference:
    shared = [column for column in columns if column in after.scores and column in before.scores]
    return Difference(after.name, before.name, {c: _paired(after.scores[c], before.scores[c], c) for c in shared})


def _paired(after: Scores, before: Scores, column: str) -> Estimate:
    """The paired difference over equal keys. A row without seeds (the base) is paired with each seed of the other."""
    if set(after.keys) == set(before.keys):
        place = {key: number for number, key in enumerate(before.keys)}
        matched = [before.values[place[key]] for key in after.keys]
        return paired_difference(after.values, matched, after.items)
    raise ValueError(f"column '{column}': the two rows were not measured on the same items")

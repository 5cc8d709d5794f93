"""The table for a terminal (rich), for a page (Markdown) and for machines (JSON)."""

from typing import Any

from rich.table import Table as RichTable

from posttrain.core.statistics import Estimate
from posttrain.lab.table import Table, TableRow

HASH_CHARACTERS = 8


def rich_tables(table: Table) -> list[RichTable]:
    """The rows, then the differences."""
    rows, differences = _cells(table, beside="\n± ")
    return [
        _rich("Methods (value ± standard error)", rows),
        _rich("Paired differences (* beyond two standard errors)", differences),
    ]


def markdown(table: Table) -> str:
    """Both tables, and a sentence for every task that fell."""
    rows, differences = _cells(table, beside=" ± ")
    losses = "\n".join(f"- {sentence}" for sentence in table.losses())
    fell = f"\nFell beyond two standard errors:\n\n{losses}\n" if losses else ""
    return f"{_markdown(rows)}\nDifferences are paired by item; \\* marks |Δ| > 2·SE.\n\n{_markdown(differences)}{fell}"


def as_json(table: Table) -> dict[str, Any]:
    """Everything in the table as plain data."""
    return {
        "columns": list(table.columns),
        "rows": [
            {
                "method": row.name,
                "config_hash": row.config_hash,
                "seeds": list(row.seeds),
                "seconds": row.seconds,
                "resumed": row.resumed,
                "columns": {c: _plain(scores.estimate()) for c, scores in row.scores.items() if c in table.columns},
            }
            for row in table.rows
        ],
        "differences": [
            {
                "after": difference.after,
                "before": difference.before,
                "columns": {column: _plain(estimate) for column, estimate in difference.columns.items()},
            }
            for difference in table.differences
        ],
        "fell": table.losses(),
    }


def _cells(table: Table, beside: str) -> tuple[list[list[str]], list[list[str]]]:
    head = ["Method", "config_hash", *table.columns, "seconds"]
    rows = [
        head,
        *([_name(row), row.config_hash[:HASH_CHARACTERS], *_values(table, row, beside)] for row in table.rows),
    ]
    differences = [["Difference", *table.columns]]
    for difference in table.differences:
        cells = [_signed(difference.columns.get(column), beside) for column in table.columns]
        differences.append([f"{difference.after} − {difference.before}", *cells])
    return rows, differences


def _name(row: TableRow) -> str:
    return row.name if len(row.seeds) <= 1 else f"{row.name} ({len(row.seeds)} seeds)"


def _values(table: Table, row: TableRow, beside: str) -> list[str]:
    cells = []
    for column in table.columns:
        estimate = row.scores[column].estimate() if column in row.scores else None
        cells.append(f"{estimate.value:.3f}{beside}{estimate.standard_error:.3f}" if estimate else "—")
    return [*cells, "—" if row.seconds is None else f"{'≥ ' if row.resumed else ''}{row.seconds:.0f}"]


def _signed(estimate: Estimate | None, beside: str) -> str:
    if estimate is None:
        return "—"
    mark = " *" if estimate.beyond_noise else ""
    return f"{estimate.value:+.3f}{beside}{estimate.standard_error:.3f}{mark}"


def _rich(title: str, rows: list[list[str]]) -> RichTable:
    drawn = RichTable(title=title, title_justify="left", title_style="bold", header_style="bold")
    for number, name in enumerate(rows[0]):
        drawn.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows[1:]:
        drawn.add_row(*row)
    return drawn


def _markdown(rows: list[list[str]]) -> str:
    escaped = [[cell.replace("*", "\\*").replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return "".join(f"| {' | '.join(row)} |\n" for row in [escaped[0], rule, *escaped[1:]])


def _plain(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "standard_error": estimate.standard_error, "n": estimate.n}

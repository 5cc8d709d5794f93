"""The table for a terminal (rich) and for a page (Markdown)."""

from rich.table import Table as RichTable

from posttrain.lab.cells import Cells, costs, differences, quality, standings, verdicts
from posttrain.lab.table import Table

DIFFERENCES = "Paired differences by item; * beyond two standard errors; p Holm-corrected over this table"
ABOUT_DIFFERENCES = "Paired by item, seeds pooled; \\* marks |Δ| > 2·SE; p is Holm-corrected over this table."
ABOUT_RANKS = "p is corrected over all pairs of rows, for the best was chosen after looking."
ABOUT_COST = "Of each row's own stage, means over seeds."


def rich_tables(table: Table) -> list[RichTable]:
    """The rows, their cost, the differences, and with several methods their order."""
    titled = [
        ("Methods (value ± standard error)", quality(table, "\n± ")),
        ("Cost of each row's own stage, means over seeds", costs(table)),
        (DIFFERENCES, differences(table, "\n± ")),
    ]
    if len(table.standings) > 2:
        titled.append((f"By {table.headline}; p corrected over all pairs", standings(table)))
    return [_rich(title, cells) for title, cells in titled]


def markdown(table: Table) -> str:
    """The same as a page, with the verdicts, and a sentence for every task that fell."""
    ranks = f"## By {table.headline}\n\n{ABOUT_RANKS}\n\n{_markdown(standings(table))}"
    compared = f"## Differences\n\n{ABOUT_DIFFERENCES}\n\n{_markdown(differences(table, ' ± '))}"
    parts = [
        _markdown(quality(table, " ± ")),
        _list("Marked", table.footnotes),
        _list("Verdicts", verdicts(table)),
        ranks if len(table.standings) > 2 else "",
        compared,
        _list("Fell beyond two standard errors", table.losses()),
        f"## Cost\n\n{ABOUT_COST}\n\n{_markdown(costs(table))}",
    ]
    return "\n".join(part for part in parts if part)


def _list(title: str, sentences: tuple[str, ...] | list[str]) -> str:
    lines = "\n".join(f"- {sentence}" for sentence in sentences)
    return f"## {title}\n\n{lines}\n" if sentences else ""


def _rich(title: str, rows: Cells) -> RichTable:
    drawn = RichTable(title=title, title_justify="left", title_style="bold", header_style="bold")
    for number, name in enumerate(rows[0]):
        drawn.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows[1:]:
        drawn.add_row(*row)
    return drawn


def _markdown(rows: Cells) -> str:
    escaped = [[cell.replace("*", "\\*").replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return "".join(f"| {' | '.join(row)} |\n" for row in [escaped[0], rule, *escaped[1:]])

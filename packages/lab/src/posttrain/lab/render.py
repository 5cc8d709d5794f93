"""The table for a terminal (rich) and for a page (Markdown)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table as RichTable
from rich.text import Text

from posttrain.lab.cell_values import Cells
from posttrain.lab.cells import costs, differences, notes, quality, standings, verdicts
from posttrain.lab.judge_cells import judge_sentences, judged
from posttrain.lab.plan import REFERENCE
from posttrain.lab.published_tables import Beside
from posttrain.lab.table import Table

DIFFERENCES = "Paired differences by item; * beyond two standard errors; p Holm-corrected over this table"
ABOUT_RANKS = (
    "p is corrected over all pairs of rows, for the best was chosen after looking. These pairs are a family of their "
    "own beside the differences, each family with its own 5 %."
)

ABOUT_PUBLISHED = (
    "Reference rows of others: in no difference, rank or verdict. Their standard errors follow from the numbers of "
    "items (≤: an upper bound)."
)

UNBROKEN = 14
"""A line of a cell up to so long (`± 0.040 *`, a name) stays whole; a longer one is wrapped between words."""

WORDS = ("Method", "config_hash", "learns from", "by phase", "by seed", "what it is")
"""Columns of words, which start at the left; numbers end at the right."""


@dataclass(frozen=True)
class Drawn:
    """A table for rich. On a console that is too narrow for it, several: its columns in turn, the first in each."""

    title: str
    rows: Cells
    below: Sequence[str] = ()
    """Lines under the table."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RichTable | Text]:
        for number, widths in enumerate(_parts(self.rows, options.max_width)):
            yield _rich(self.title if number == 0 else f"{self.title}, continued", self.rows, widths)
        yield from map(Text, self.below)


def rich_tables(table: Table, published: Sequence[Beside] = ()) -> list[Drawn]:
    """The rows, those that others have `published`, what judges say of ours, their cost, the differences, and with
    several methods their order."""
    drawn = [
        Drawn("Methods (value ± standard error)", quality(table, "\n± "), notes(table)),
        *(Drawn(each.caption, each.cells(table.columns, "\n± "), (ABOUT_PUBLISHED,)) for each in published),
        *([Drawn(_judged_title(table), judged(table, "\n± "), judge_sentences(table))] if table.judges else []),
        Drawn(f"Cost {_of_what(table)}", costs(table)),
        Drawn(DIFFERENCES, differences(table, "\n± ")),
    ]
    if len(table.standings) > 2:
        drawn.append(Drawn(f"By {table.headline}; p corrected over all pairs, a family of its own", standings(table)))
    return drawn


def markdown(table: Table, published: Sequence[Beside] = ()) -> str:
    """The same as a page, with the verdicts, and a sentence for every task that fell."""
    ranks = f"## By {table.headline}\n\n{ABOUT_RANKS}\n\n{_markdown(standings(table))}"
    compared = f"## Differences\n\n{_about_differences(table)}\n\n{_markdown(differences(table, ' ± '))}"
    parts = [
        _markdown(quality(table, " ± ")),
        *(f"{note}\n" for note in notes(table)),
        *(_published_section(table, each) for each in published),
        _list("Marked", table.footnotes),
        _list("Verdicts", verdicts(table)),
        _judged_section(table),
        ranks if len(table.standings) > 2 else "",
        compared,
        _list("Fell beyond two standard errors", table.losses()),
        f"## Cost\n\n{_of_what(table).capitalize()}.\n\n{_markdown(costs(table))}",
    ]
    return "\n".join(part for part in parts if part)


def _judged_title(table: Table) -> str:
    assert table.judges is not None
    return f"Judged against {REFERENCE} on {table.judges.task}"


def _judged_section(table: Table) -> str:
    if table.judges is None:
        return ""
    said = "\n\n".join(sentence.replace("*", "\\*") for sentence in judge_sentences(table))
    return f"## {_judged_title(table)}\n\n{_markdown(judged(table, ' ± '))}\n{said}\n"


def _published_section(table: Table, published: Beside) -> str:
    return f"## {published.caption}\n\n{ABOUT_PUBLISHED}\n\n{_markdown(published.cells(table.columns, ' ± '))}"


def _of_what(table: Table) -> str:
    means = ", means over seeds" if any(len(row.seeds) > 1 for row in table.rows) else ""
    return f"of each row's own stage{means}"


def _about_differences(table: Table) -> str:
    return (
        "Paired by item, seeds pooled, clustered by item or by what items share; \\* marks |Δ| > 2·SE; p is "
        f"Holm-corrected over the {table.family} task differences of this table, and larger the more there are."
    )


def _list(title: str, sentences: tuple[str, ...] | list[str]) -> str:
    lines = "\n".join(f"- {sentence}" for sentence in sentences)
    return f"## {title}\n\n{lines}\n" if sentences else ""


def _rich(title: str, rows: Cells, widths: dict[int, int]) -> RichTable:
    # As text: in a string rich would take `[ab12cd]` of a row's name for a style.
    drawn = RichTable(title=Text(title), title_justify="left", title_style="bold", header_style="bold")
    for column, width in widths.items():
        head = rows[0][column]
        justify: Literal["left", "right"] = "left" if column == 0 or head in WORDS else "right"
        drawn.add_column(Text(head), justify=justify, overflow="fold", width=width)
    for row, following in zip_longest(rows[1:], rows[2:]):
        after, minus, _ = row[0].partition(" − ")
        ends = bool(minus and following and following[0].partition(" − ")[0] != after)
        drawn.add_row(*(Text(row[column]) for column in widths), end_section=ends)
    return drawn


def _parts(rows: Cells, width: int) -> list[dict[int, int]]:
    """Column to its width in characters, for each of the tables that it takes."""
    least = [max(_least(row[column]) for row in rows) for column in range(len(rows[0]))]
    whole = [max(cell_len(line) for row in rows for line in row[column].split("\n")) for column in range(len(rows[0]))]
    parts: list[list[int]] = [[0]]
    for column in range(1, len(least)):
        if len(parts[-1]) > 1 and _drawn_width([least[each] for each in (*parts[-1], column)]) > width:
            parts.append([0])
        parts[-1].append(column)
    return [_widened({column: least[column] for column in part}, whole, width) for part in parts]


def _widened(widths: dict[int, int], whole: list[int], width: int) -> dict[int, int]:
    """The widths with the space that is left given to the columns that need most more."""
    for _ in range(width - _drawn_width(list(widths.values()))):
        column = max(widths, key=lambda each: whole[each] - widths[each])
        if widths[column] >= whole[column]:
            break
        widths[column] += 1
    return widths


def _drawn_width(widths: list[int]) -> int:
    """With a border between columns and at the ends, and a space on both sides of each cell."""
    return sum(widths) + 3 * len(widths) + 1


def _least(cell: str) -> int:
    lines = cell.split("\n")
    return max(
        cell_len(line) if cell_len(line) <= UNBROKEN else max(cell_len(word) for word in line.split()) for line in lines
    )


def _markdown(rows: Cells) -> str:
    escaped = [[cell.replace("*", "\\*").replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    rule = ["---" if number == 0 or head in WORDS else "---:" for number, head in enumerate(rows[0])]
    return "".join(f"| {' | '.join(row)} |\n" for row in [escaped[0], rule, *escaped[1:]])

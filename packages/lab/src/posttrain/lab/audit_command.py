"""`posttrain results audit`: which improvements of a published table can be told from noise.

Takes a YAML file of accuracies, numbers of items and claimed wins, as a paper or a README has them; trains and
evaluates nothing. Per-item answers are not published, so rows are tested as if they came from different items, and what
pairing could add is bounded.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from posttrain.core.config import read_yaml, validate
from posttrain.core.statistics import ALPHA, PublishedDifference, holm, p_in_words, unpaired_difference
from posttrain.lab.published_tables import PublishedTable

CAVEAT = (
    "Rows are tested as if measured on different items, since from accuracies alone a paired test cannot be done: it "
    "would be sharper if the methods tend to be right on the same items, and duller if not. Items needed are for an "
    "unpaired comparison of each row, two-sided 5 %, power 80 %."
)


@dataclass(frozen=True)
class Audited:
    """One comparison of the table on one task."""

    method: str
    over: str
    task: str
    claimed: bool
    difference: PublishedDifference
    corrected_p: float
    """By Holm, over every comparison in the table."""

    @property
    def told_from_noise(self) -> bool:
        """Whether it is an improvement with corrected p < 0.05."""
        return self.difference.value > 0 and self.corrected_p < ALPHA

    @property
    def sentence(self) -> str:
        """The verdict on it."""
        seen = self.difference
        low, high = (100 * bound for bound in seen.interval)
        start = (
            f"{self.method} over {self.over} on {self.task}: {100 * seen.value:+.2f} points (95 % {low:+.2f} to "
            f"{high:+.2f}, n = {seen.n:,}, {p_in_words(self.corrected_p, 'corrected p')})"
        )
        if self.told_from_noise:
            return f"{start} is told from noise."
        if seen.items_needed is None or seen.value < 0:
            return f"{start} is no improvement."
        needed = f" A difference of that size needs {seen.items_needed:,} items."
        return f"{start} cannot be told from noise from the published numbers.{needed}{self._pairing()}"

    def _pairing(self) -> str:
        seen = self.difference
        if seen.best_paired_p is None:
            return ""
        if seen.discordance_limit is None:
            moved = round(seen.n * seen.value)
            items = "1 item" if moved == 1 else f"{moved} items"
            return f" No pairing could tell it either: it is {items} (p = {seen.best_paired_p:.2g} at best)."
        limit = 100 * seen.discordance_limit
        return f" Paired, and before correction, it could be if at most {limit:.1f} % of the items were discordant."


def audit_table(table: PublishedTable) -> list[Audited]:
    """Every task of every claimed pair of rows, with Holm's correction over all of them."""
    rows = {row.name: row.accuracies for row in table.rows}
    compared = [
        (claim, task, unpaired_difference(rows[claim.method][task], rows[claim.over][task], about.n, about.kind))
        for claim in table.claims
        for task, about in table.tasks.items()
        if task in rows[claim.method] and task in rows[claim.over]
    ]
    corrected = holm({str(number): difference.p_value for number, (_, _, difference) in enumerate(compared)})
    return [
        Audited(claim.method, claim.over, task, task in claim.wins, difference, p)
        for (claim, task, difference), p in zip(compared, corrected.values(), strict=True)
    ]


def audit(
    file: Annotated[Path, typer.Argument(help="YAML: tasks with n, rows with accuracies, claims.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Say which improvements of a published table can be told from noise, and how many items the others need."""
    table = validate(PublishedTable, read_yaml(file), str(file))
    audited = audit_table(table)
    verdicts = [*(one.sentence for one in audited if one.claimed), _summary(audited), CAVEAT]
    if as_json:
        print(json.dumps(_plain(table, audited, verdicts), ensure_ascii=False))
        return
    Console().print(_drawn(table, audited))
    print("\n".join(verdicts))


def _summary(audited: list[Audited]) -> str:
    claimed = [one for one in audited if one.claimed]
    told = sum(one.told_from_noise for one in claimed)
    which = f"{told} of the {len(claimed)} claimed wins" if told else f"None of the {len(claimed)} claimed wins"
    return f"{which} can be told from noise (Holm over {len(audited)} comparisons, two-sided 5 %)."


def _drawn(table: PublishedTable, audited: list[Audited]) -> Table:
    drawn = Table(title=escape(f"{table.title} ({table.source})"), title_justify="left", title_style="bold")
    for number, name in enumerate(("Comparison", "task", "n", "Δ points", "p", "Holm p", "claim", "items needed")):
        drawn.add_column(name, justify="left" if number < 2 else "right", overflow="fold")
    for one in audited:
        seen, claimed = one.difference, "—"
        if one.claimed:
            claimed = "beyond noise" if one.told_from_noise else "in noise"
        needed = "—" if seen.items_needed is None else f"{seen.items_needed:,}"
        p_values = (f"{seen.p_value:.3f}", f"{one.corrected_p:.3f}")
        pair = escape(f"{one.method} − {one.over}")
        drawn.add_row(pair, escape(one.task), f"{seen.n:,}", f"{100 * seen.value:+.2f}", *p_values, claimed, needed)
    return drawn


def _plain(table: PublishedTable, audited: list[Audited], verdicts: list[str]) -> dict[str, Any]:
    differences = []
    for one in audited:
        flat = asdict(one)
        flat |= flat.pop("difference")
        differences.append(flat | {"kind": table.tasks[one.task].kind, "told_from_noise": one.told_from_noise})
    return {"title": table.title, "source": table.source, "differences": differences, "verdicts": verdicts}

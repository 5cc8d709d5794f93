"""`posttrain judge show`: the records of judged matches, and the pairs of one that are worth reading, side by side."""

import json
import os
import sys
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain.core.errors import RequestError, suggest

if TYPE_CHECKING:
    from posttrain.llm_judge.commands.show_selection import Wanted

NAMED = 10
"""Records that an error names."""
FULL_WIDTH = 160
"""Characters of a line where there is no terminal."""


def show(
    record: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="A record's id, its beginning, or its path. Without: all records."),
    ] = None,
    disagreements: Annotated[
        bool, typer.Option("--disagreements", help="The two orders disagree, or people and the judge: the default.")
    ] = False,
    wins: Annotated[bool, typer.Option("--wins", help="B wins.")] = False,
    losses: Annotated[bool, typer.Option("--losses", help="A wins.")] = False,
    ties: Annotated[bool, typer.Option("--ties", help="Draws, orders that disagree included.")] = False,
    unparsed: Annotated[bool, typer.Option("--unparsed", help="Without a verdict.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="All pairs.")] = False,
    category: Annotated[str | None, typer.Option(help="Only prompts of this category.", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.", show_default=False)] = None,
    runs: Annotated[Path, typer.Option(help="The folder of records.")] = Path("runs/judge"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object as the last line.")] = False,
) -> None:
    """Read what a judge said: both answers side by side, with the verdict and the reply in each order."""
    chosen: dict[Wanted, bool] = {
        "disagreements": disagreements,
        "wins": wins,
        "losses": losses,
        "ties": ties,
        "unparsed": unparsed,
        "all": everything,
    }
    asked = [name for name, given in chosen.items() if given]
    if len(asked) > 1:
        raise RequestError(f"--{asked[0]} and --{asked[1]} do not go together; choose one")
    if record is None:
        _list(runs, as_json)
    else:
        _pairs(find_record(record, runs), asked[0] if asked else "disagreements", category, limit, as_json)


def find_record(name: str, runs: Path) -> Path:
    """The file of a record by its path, its id, or how that begins; RequestError where none or several fit."""
    if name.endswith(".json") or "/" in name:
        return Path(name)
    fitting = sorted(path for path in runs.glob("*.json") if path.stem.startswith(name))
    if len(fitting) == 1:
        return fitting[0]
    known = [path.stem for path in (fitting or sorted(runs.glob("*.json")))]
    there = ", ".join(known[:NAMED]) + (", …" if len(known) > NAMED else "")
    if fitting:
        raise RequestError(f"{len(fitting)} records begin with '{name}': {there}; give more of the id")
    said = f"there are {there}" if known else "there is none; `posttrain judge run` makes them"
    raise RequestError(f"{runs} has no record '{name}'; {said}")


def _list(runs: Path, as_json: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from posttrain.llm_judge.printable import printable
    from posttrain.llm_judge.records import read_record

    records = []
    for path in runs.glob("*.json"):
        try:
            records.append(read_record(path))
        except RequestError as error:  # something else lies there: the records are shown all the same
            print(f"warning: {printable(str(error))}", file=sys.stderr)
    records.sort(key=lambda one: str(one["created"]))
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else FULL_WIDTH)
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "made", "B", "against A", "judge"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "id")
    for heading in ("prompts", "win rate %", "± SE"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in records:
        rates = one["rates"] or {}
        figures = [rates.get("win_rate"), rates.get("standard_error")]
        table.add_row(
            printable(one["id"]),
            *(
                escape(printable(text))
                for text in (one["created"], one["b"]["name"], one["a"]["name"], one["judge"]["name"])
            ),
            str(one["prompts"]),
            *("" if figure is None else f"{figure:.2f}" for figure in figures),
        )
    if records:
        console.print(table)
    else:
        console.print(f"{runs} has no records; `posttrain judge run` makes them", markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps({"records": records}, ensure_ascii=False))


def _pairs(path: Path, wanted: "Wanted", category: str | None, limit: int | None, as_json: bool) -> None:
    from rich.console import Console

    from posttrain.llm_judge.commands.run_report import print_record
    from posttrain.llm_judge.commands.show_page import print_pair
    from posttrain.llm_judge.commands.show_selection import pair_as_json, select
    from posttrain.llm_judge.exchange import read_export
    from posttrain.llm_judge.records import annotations_of, read_record

    record = read_record(path)
    judged = read_export(annotations_of(path))
    if category is not None:
        _check_category(category, {game.comparison.category for _, game in judged})
    found = select(judged, wanted, category)
    shown = found[:limit]
    if as_json:
        pairs: Mapping[str, Any] = {"found": len(found), "pairs": [pair_as_json(pair) for pair in shown]}
        print(json.dumps({"id": record["id"], "wanted": wanted, **pairs}, ensure_ascii=False))
        return
    console = Console(width=None if sys.stdout.isatty() else FULL_WIDTH)
    # What `less` takes for colours; whoever set it has the word.
    os.environ.setdefault("LESS", "-R")
    with console.pager(styles=True) if console.is_terminal else nullcontext():
        print_record(console, record)
        if not found:
            console.print(f"No {'pairs' if wanted == 'all' else wanted} here; --all shows every pair.", soft_wrap=True)
        for number, pair in enumerate(shown, start=1):
            print_pair(console, pair, number, len(found), record)


def _check_category(category: str, there: Collection[str | None]) -> None:
    known = sorted(one for one in there if one is not None)
    if not known:
        raise RequestError("the prompts of this record are in no category; leave --category out")
    if category not in known:
        raise RequestError(f"no prompt of this record is in the category '{category}' {suggest(category, known)}")

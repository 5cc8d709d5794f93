"""`posttrain judge rate FILE…` and `judge agree FILE…`: many models, or many judges, in annotations that are there."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain.core.errors import RequestError, suggest

if TYPE_CHECKING:
    from posttrain.llm_judge.annotations import Annotations

Files = Annotated[
    list[Path], typer.Argument(help="Annotations in AlpacaEval's columns, JSON Lines or a list.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object as the last line.")]


def rate(
    files: Files,
    anchor: Annotated[
        str | None, typer.Option(help="The model that has 1,000 points; none: their mean has.", show_default=False)
    ] = None,
    style_control: Annotated[
        bool, typer.Option("--style-control", help="Ratings at equal length, headers, lists and bold print.")
    ] = False,
    judge: Annotated[
        str | None, typer.Option(help="Whose annotations, where there are several judges'.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ratings of all models in existing annotations, on the Elo scale: Bradley and Terry's, with 95 % intervals."""
    from posttrain.llm_judge.scores import as_json as plain
    from posttrain.llm_judge.statistics.bradley_terry import ratings
    from posttrain.llm_judge.statistics.style_control import style_controlled
    from posttrain.llm_judge.tournaments import styles_of, tournament_of

    tables = _of_one_judge(_read(files), judge)
    tournament = tournament_of(tables)
    said: dict[str, Any] = {"judge": tables[0].annotator, "anchor": anchor, "style": None}
    if style_control:
        found = style_controlled(tournament, *styles_of(tables), anchor=anchor)
        rated = found.ratings
        said["style"] = {name: asdict(estimate) for name, estimate in found.coefficients.items()}
        said["constant_styles"] = list(found.constant)
    else:
        rated = ratings(tournament, anchor=anchor)
    said["ratings"] = [asdict(rating) for rating in rated]
    said = plain(said)
    _print_ratings(said, as_json)
    if as_json:
        print(json.dumps(said, ensure_ascii=False, allow_nan=False))


def agree(files: Files, as_json: AsJson = False) -> None:
    """How far the judges of existing annotations agree, with each other and with people, on the same answers."""
    from posttrain.llm_judge.scores import as_json as plain
    from posttrain.llm_judge.tournaments import PEOPLE, agreements

    tables = _read(files)
    found = agreements(tables)
    if not found:
        names = ", ".join(dict.fromkeys(table.annotator for table in tables))
        raise RequestError(
            f"no two judges, and no judge and {PEOPLE}, have an opinion on the same two answers; these have {names}"
        )
    said = [plain(asdict(each)) for each in found]
    _print_agreements(said, as_json)
    if as_json:
        print(json.dumps({"agreements": said}, ensure_ascii=False, allow_nan=False))


def _read(files: Sequence[Path]) -> "list[Annotations]":
    from posttrain.llm_judge.annotations import tabulate
    from posttrain.llm_judge.exchange import read_export

    tables = tabulate(annotation for file in files for annotation in read_export(file))
    if not tables:
        raise RequestError(f"{', '.join(map(str, files))}: no comparisons of two answers")
    return tables


def _of_one_judge(tables: "Sequence[Annotations]", judge: str | None) -> "Sequence[Annotations]":
    names = list(dict.fromkeys(table.annotator for table in tables))
    if judge is None and len(names) > 1:
        raise RequestError(f"ratings are of one judge, and these are of {', '.join(names)}; choose with --judge")
    if judge is not None and judge not in names:
        raise RequestError(f"there are no annotations of the judge '{judge}' {suggest(judge, names)}")
    return [table for table in tables if judge in (None, table.annotator)]


def _print_ratings(said: dict[str, Any], as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=as_json)
    styled = " at equal style" if said["style"] is not None else ""
    drawn = Table("model", title=f"Ratings by {said['judge']}{styled}", box=None, title_justify="left")
    for heading in ("points", "95 %", "comparisons"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for row in said["ratings"]:
        drawn.add_row(row["model"], f"{row['points']:.1f}", _interval(row["interval"], 1), str(row["comparisons"]))
    console.print(drawn)
    if said["style"]:
        effects = Table("style", title="What style does to the log-odds", box=None, title_justify="left")
        for heading in ("per spread", "95 %"):
            effects.add_column(heading, justify="right", no_wrap=True)
        for name, effect in said["style"].items():
            effects.add_row(name, f"{effect['value']:+.3f}", _interval(effect["interval"], 3))
        console.print(effects)
    for name in said.get("constant_styles", ()):
        console.print(f"No two answers differ in {name}: of it nothing can be said.", highlight=False)


def _print_agreements(said: Sequence[dict[str, Any]], as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    drawn = Table("judge", "and", box=None, pad_edge=False)
    for heading in ("same verdict %", "± SE", "kappa", "95 %", "n"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for row in said:
        share, kappa = row["agreement"]["share"], row["agreement"]["kappa"]
        known = kappa["value"] is not None
        drawn.add_row(
            row["one"],
            row["other"],
            f"{100 * share['value']:.1f}",
            "" if share["standard_error"] is None else f"{100 * share['standard_error']:.1f}",
            f"{kappa['value']:.3f}" if known else "",
            _interval(kappa["interval"], 3) if known and None not in kappa["interval"] else "",
            str(share["n"]),
        )
    Console(stderr=as_json).print(drawn)


def _interval(bounds: Sequence[float], digits: int) -> str:
    low, high = bounds
    return f"{low:.{digits}f} to {high:.{digits}f}"

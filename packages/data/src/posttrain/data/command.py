"""`posttrain data`: rows as the trainers get them, one JSON object a line on standard output."""

import json
from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import islice
from typing import Annotated, Any

import typer

from posttrain.core.config import apply_overrides, validate
from posttrain.core.errors import RequestError


class Kind(StrEnum):
    """What to read a source as."""

    conversations = "conversations"
    pairs = "pairs"
    rankings = "rankings"
    prompts = "prompts"


def show(
    path: Annotated[str, typer.Argument(help="nano, a Hub id, or a file or folder.", show_default=False)],
    kind: Annotated[Kind, typer.Option("--as", help="What to read its rows as.")] = Kind.prompts,
    split: Annotated[str, typer.Option(help="The split.")] = "train",
    config: Annotated[str | None, typer.Option(help="The configuration.")] = None,
    revision: Annotated[str | None, typer.Option(help="The Hub's branch, tag or commit.")] = None,
    format_: Annotated[str | None, typer.Option("--format", help="A format's name, if the path tells none.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="A column by another name, as ours=theirs.")] = None,
    rows: Annotated[int, typer.Option(help="How many rows; 0 for all.", min=0)] = 3,
    seed: Annotated[int, typer.Option(help="The seed of order and selection.")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the source, e.g. where.lang=en or stream=true.")
    ] = None,
) -> None:
    """Print rows of a source as a trainer would get them, one JSON object a line."""
    from posttrain.data import sources

    settings: dict[str, Any] = {"path": path, "config": config, "split": split, "revision": revision, "format": format_}
    settings |= {"rows": rows or None, "columns": dict(_mapping(entry) for entry in column or [])}
    source = validate(sources.Source, apply_overrides(settings, overrides or []), "data")
    loaders: dict[Kind, Callable[[sources.Source, int], Sequence[Any]]] = {
        Kind.conversations: sources.load_conversations,
        Kind.pairs: sources.load_pairs,
        Kind.rankings: sources.load_rankings,
        Kind.prompts: sources.load_prompts,
    }
    for row in loaders[kind](source, seed):
        typer.echo(json.dumps(row, ensure_ascii=False))


def nano(
    task: Annotated[str, typer.Argument(help="choice, problems, mc2 or instructions.", show_default=False)],
    split: Annotated[str, typer.Option(help="validation or test.")] = "validation",
    rows: Annotated[int, typer.Option(help="How many items; 0 for all.", min=0)] = 0,
) -> None:
    """Print items of one of the nano lab's evaluation tasks, one JSON object a line."""
    from posttrain.data.nano.corpus import evaluation_items

    for item in islice(evaluation_items(task, split), rows or None):  # type: ignore[arg-type]
        typer.echo(json.dumps(item, ensure_ascii=False))


def _mapping(entry: str) -> tuple[str, str]:
    ours, equals, theirs = entry.partition("=")
    if not equals or not ours or not theirs:
        raise RequestError(f"--column takes ours=theirs, not '{entry}' (for example --column prompt=instruction)")
    return ours, theirs

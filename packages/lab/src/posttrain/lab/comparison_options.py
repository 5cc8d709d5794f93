"""What a comparison is asked for on the command line: the same options for `compare`, which makes it, and `publish`."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from posttrain.core.errors import RequestError

if TYPE_CHECKING:
    from posttrain.lab.plan import Plan
    from posttrain.lab.table import Table

Recipe = Annotated[str, typer.Option(help="A recipe's name, or a path to a YAML file.")]
Seeds = Annotated[str, typer.Option(help="Seeds to pool, separated by commas.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="key=value in the recipe, e.g. ppo.steps=10. May be repeated.")
]
Rows = Annotated[
    list[str] | None,
    typer.Option("--row", help="A finished run's fingerprint: its row joins the table, with its other seeds."),
]
Allowed = Annotated[
    list[str] | None,
    typer.Option("--allow", help="A condition in which rows may differ (they are marked), e.g. evaluation.limit."),
]
Budget = Annotated[
    str | None, typer.Option(help="tokens=N or seconds=N: every method stops there.", show_default=False)
]
RunsFolder = Annotated[Path, typer.Option("--runs", help="The runs folder.")]


def recipe_overrides(overrides: Sequence[str] | None, budget: str | None) -> list[str]:
    """What `--set` and `--budget` put into the recipe; RequestError for a budget that is none."""
    if budget is None:
        return [*(overrides or [])]
    name, _, number = budget.partition("=")
    if name not in ("tokens", "seconds") or not number.replace(".", "", 1).isdecimal():
        raise RequestError(f"--budget takes tokens=N or seconds=N with a number, e.g. tokens=500000, not '{budget}'")
    return [*(overrides or []), f"budget.{name}={number}"]


def compare_command(
    plans: "Sequence[Plan]",
    recipe: str,
    overrides: Sequence[str] | None,
    rows: Sequence[str] | None,
    allowed: Sequence[str] | None,
    budget: str | None,
) -> str:
    """The command line that makes the comparison of these plans, with every arm and seed by name."""
    names = ",".join(dict.fromkeys(plan.method for plan in plans))
    seeds = ",".join(dict.fromkeys(str(plan.seed) for plan in plans))
    options = {"--set": overrides, "--row": rows, "--allow": allowed, "--budget": [budget] if budget else None}
    given = [part for option, values in options.items() for value in values or [] for part in (option, value)]
    return shlex.join(["posttrain", "compare", "--recipe", recipe, "--methods", names, "--seeds", seeds, *given])


def judging_command(command: str, table: "Table") -> str:
    """The command line that makes this very table: that of the comparison, with the judging where it was judged."""
    return f"{command} --judge" if table.judges else command

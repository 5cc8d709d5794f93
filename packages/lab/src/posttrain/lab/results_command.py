"""`posttrain results publish` and `retract`: what enters the committed record under results/, and what leaves it.

Publishing copies finished rows with the command that makes them; it trains and evaluates nothing.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain.core.errors import RequestError
from posttrain.core.files import read_json
from posttrain.core.results import read_results, result_key
from posttrain.lab.comparison_options import (
    Allowed,
    Budget,
    Overrides,
    Recipe,
    Rows,
    RunsFolder,
    Seeds,
    compare_command,
    judging_command,
    recipe_overrides,
)

if TYPE_CHECKING:
    from posttrain.core.runs import RunDirectory
    from posttrain.lab.collect import Entry
    from posttrain.lab.plan import Plan, Row

Record = Annotated[Path, typer.Option("--to", help="The committed record.")]


def publish(
    methods: Annotated[
        str | None,
        typer.Argument(help="As --methods of `posttrain compare`; none: what the recipe compares.", show_default=False),
    ] = None,
    recipe: Recipe = "nano",
    seeds: Seeds = "0",
    overrides: Overrides = None,
    rows: Rows = None,
    allowed: Allowed = None,
    budget: Budget = None,
    with_published: Annotated[
        bool,
        typer.Option("--with-published", help="Show the rows of results/published beside ours, as compare does."),
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="The record's name; none: recipe, methods and budget.", show_default=False)
    ] = None,
    reinstate: Annotated[
        list[str] | None,
        typer.Option(metavar="HASH", help="A row that was retracted and is published all the same. May be repeated."),
    ] = None,
    why: Annotated[
        str | None, typer.Option(help="With --reinstate: the reason; it stands in the record.", show_default=False)
    ] = None,
    runs: RunsFolder = Path("runs"),
    to: Record = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Copy finished rows, pooled over seeds, into the committed record: table, pictures, items, evaluations.

    Takes what `posttrain compare` takes. Refuses what would lose published evidence, and rows that were retracted.
    """
    from tempfile import TemporaryDirectory

    from posttrain.lab.arms import refuse_unheeded
    from posttrain.lab.collect import collect_table, entries_of
    from posttrain.lab.comparison import external_entries, plan_comparison
    from posttrain.lab.elapsed import all_work, elapsed
    from posttrain.lab.plots import draw_plots
    from posttrain.lab.published_metrics import merge_metrics
    from posttrain.lab.published_tables import published_beside
    from posttrain.lab.recipe import load_recipe
    from posttrain.lab.record import publish_table

    if bool(reinstate) != bool((why or "").strip()):
        raise RequestError("--reinstate HASH and --why REASON go together: what comes back comes back for a reason")
    given = recipe_overrides(overrides, budget)
    loaded = load_recipe(recipe, given)
    if with_published:
        published_beside(to, loaded.evaluation.columns())  # told before anything is written
    root = runs.absolute()
    plans = plan_comparison(loaded, methods, seeds, root)
    refuse_unheeded(loaded, [plan.method for plan in plans], given)
    more = external_entries(rows or [], plans, root)
    command = compare_command(plans, recipe, overrides, rows, allowed, budget)
    _refuse_unfinished(plans, more, command)
    table = collect_table(plans, more, allowed or [])
    reinstated = {
        _retracted(to, start, [row.config_hash for row in table.rows]): why or "" for start in reinstate or []
    }
    arms = list(dict.fromkeys(plan.method for plan in plans))
    parts = [*([] if methods is None else arms), *([budget] if budget else [])]
    record = name or "-".join([loaded.name, *([slug(" ".join(parts))] if parts else [])])
    took = elapsed(root / loaded.name, command, all_work(plans, more))
    commands = [judging_command(command, table) + (" --with-published" if with_published else "")]
    described = {
        "recipe": loaded.name,
        "title": "every method from one base" if len(arms) > 1 else arms[0],
        "commands": commands,
        "took": took.plain() if took else None,
        "stages": _stages(plans, more),
        **({"with_published": loaded.evaluation.table} if with_published else {}),
    }
    entries = [*entries_of(plans), *more]
    chosen = _evaluations(entries, runs)
    with TemporaryDirectory() as folder:
        publish_table(to, record, table, described, draw_plots(Path(folder), table, entries), reinstated)
    merge_metrics(to, chosen, commands, reinstated)
    print(f"published {record} and {len(chosen)} evaluations to {to}", file=sys.stderr)
    if dirty := _dirty(entries):
        what = "made by code that no commit has (a stage's git_commit ends in +)"
        print(f"warning: {what}: {', '.join(dirty)}", file=sys.stderr)
    if as_json:
        print(json.dumps({"published": record, "evaluations": len(chosen), "to": str(to), "uncommitted_code": dirty}))


def retract(
    config_hash: Annotated[str, typer.Argument(help="The row's config_hash or its beginning.")],
    why: Annotated[str, typer.Option(help="The reason; it stands in the record from then on.")],
    to: Record = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Take a published row out of every record, for a reason that stays there; the tables are computed anew."""
    from posttrain.lab.published_metrics import METRICS
    from posttrain.lab.record import retract as retract_row

    changed = retract_row(to, config_hash, why)
    print(f"retracted {config_hash} from {', '.join([*changed, METRICS])}", file=sys.stderr)
    if as_json:
        print(json.dumps({"retracted": config_hash, "from": changed, "why": why}))


def slug(name: str) -> str:
    """A row's name as a file name: letters and digits, joined by hyphens."""
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())


def _refuse_unfinished(plans: "Sequence[Plan]", more: "Sequence[Entry]", command: str) -> None:
    from posttrain.lab.pipeline import is_finished
    from posttrain.lab.policy_measures import policy_items

    own = [(row, plan) for plan in plans for row in plan.rows if not is_finished(plan, row)]
    joined = [(row, plan) for entry in more for row, plan in entry.runs if not policy_items(row, plan).exists()]
    for row, plan in (*own, *joined):
        raise RequestError(f"{row.name}, seed {plan.seed}, is not finished; run: {command}")


def _retracted(folder: Path, beginning: str, table: Sequence[str]) -> str:
    """The retracted row that `--reinstate` means: the one of the table whose config_hash begins so."""
    from posttrain.lab.published_metrics import retracted_rows

    known = [each for each in retracted_rows(folder) if each in table]
    found = [each for each in known if each.startswith(beginning)]
    if len(found) != 1:
        there = ", ".join(sorted(each[:8] for each in known)) or "none"
        raise RequestError(
            f"--reinstate {beginning} has to begin one retracted row's hash in this table; it has {there}"
        )
    return found[0]


def _evaluations(entries: "Sequence[Entry]", runs: Path) -> list[dict[str, Any]]:
    """The stored evaluations that the table was made of, under the names that its rows have."""
    from posttrain.lab.evaluations import POSED, SETTINGS_FILE, evaluation_keys, standard
    from posttrain.lab.policy_measures import policy_key

    stored = {result_key(row): row for row in read_results(runs / "metrics.jsonl")}
    chosen = {}
    for row, plan in [run for entry in entries for run in entry.runs]:
        labels = {"method": row.name, "seed": plan.seed, "config_hash": row.identity.config_hash}
        used = read_json(row.run.eval / SETTINGS_FILE)["settings"]  # a row that joins may have been allowed others
        own = {"tasks": tuple(used["tasks"]), "limit": used["limit"], "max_gen_toks": used["max_gen_toks"]}
        own |= {name: standard(name) for name in POSED} | used.get("posing", {})
        evaluation = plan.recipe.evaluation.model_copy(update=own)
        for key in [*evaluation_keys(row, evaluation), policy_key(row, plan)]:
            if result_key(key) in stored:
                chosen[row.name, plan.seed, result_key(key)] = {**stored[result_key(key)], **labels}
    return list(chosen.values())


def _stages(plans: "Sequence[Plan]", more: "Sequence[Entry]") -> list[dict[str, Any]]:
    """Every stage behind the table, once, with what provenance says of it."""
    planned = [(plan.seed, stage.run) for plan in plans for stage in plan.stages]
    joined = [(plan.seed, run) for entry in more for row, plan in entry.runs for run in row.before]
    stages = {run.path: (seed, run.provenance()) for seed, run in (*planned, *joined) if run.finished}
    return [_stage_record(seed, provenance) for seed, provenance in stages.values()]


def _stage_record(seed: int, provenance: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("stage", "config_hash", "fingerprint", "summary", "cost", "environment")
    return {"seed": seed, **{key: provenance[key] for key in keys}}


def _dirty(entries: "Sequence[Entry]") -> list[str]:
    """The rows with a stage, their own or one before it, that was made from files that differed from the commit."""
    return [entry.name for entry in entries if any(_uncommitted(run) for made in entry.runs for run in _runs(*made))]


def _runs(row: "Row", plan: "Plan") -> "list[RunDirectory]":
    """Of every stage that a row needed, its own last."""
    return [*(row.before or (stage.run for stage in plan.needed(row.identity)))]


def _uncommitted(run: "RunDirectory") -> bool:
    return (run.provenance()["environment"]["git_commit"] or "").endswith("+")

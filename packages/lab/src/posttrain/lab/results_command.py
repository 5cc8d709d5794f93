"""`posttrain results publish`: from finished runs to the committed record under results/.

Copies chosen rows with the command that made them; trains and evaluates nothing.
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain.core.errors import RequestError
from posttrain.core.files import atomic_write_json, atomic_write_text, read_json
from posttrain.core.results import KEY_FIELDS, read_results, result_key

if TYPE_CHECKING:
    from posttrain.lab.plan import Plan


def publish(
    method: Annotated[str, typer.Argument(help="The method whose table is published, with base and sft.")],
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a path to a YAML file.")] = "nano",
    seeds: Annotated[str, typer.Option(help="Seeds to pool, separated by commas.")] = "0",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="As given to `posttrain train`. May be repeated.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="The runs folder.")] = Path("runs"),
    to: Annotated[Path, typer.Option(help="The committed record.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Copy finished rows, pooled over seeds, with their command, into the committed record."""
    from posttrain.lab.cells import as_json as table_json
    from posttrain.lab.collect import collect_table
    from posttrain.lab.graph import plan_training
    from posttrain.lab.recipe import load_recipe
    from posttrain.lab.render import markdown
    from posttrain.lab.seeds import parse_seeds
    from posttrain.lab.services import external_rewards

    loaded = load_recipe(recipe, overrides or [])
    external = external_rewards()
    plans = [plan_training(loaded, method, seed, runs.absolute(), external) for seed in parse_seeds(seeds)]
    for plan in plans:
        unfinished = [stage.method for stage in plan.stages if not stage.run.finished]
        if unfinished:
            raise RequestError(
                f"seed {plan.seed} of {method} is not finished ({', '.join(unfinished)}); "
                f"run: {train_command(method, recipe, plan.seed, overrides or [])}"
            )
    table = collect_table(plans)
    name = plans[0].rows[-1].name
    commands = [train_command(method, recipe, plan.seed, overrides or []) for plan in plans]
    published = {"recipe": loaded.name, "method": name, "commands": commands, **table_json(table)}
    published["stages"] = [_stage_record(plan.seed, stage.run.provenance()) for plan in plans for stage in plan.stages]
    stem = f"{loaded.name}-{slug(name)}"
    chosen = _evaluations(plans, runs)
    _merge_metrics(to / "metrics.json", chosen, commands)
    atomic_write_json(to / f"{stem}.json", published)
    made = "\n".join(f"    {command}" for command in commands)
    atomic_write_text(to / f"{stem}.md", f"# {loaded.name}: {name}\n\nMade by\n\n{made}\n\n{markdown(table)}")
    print(f"published {stem} and {len(chosen)} evaluations to {to}", file=sys.stderr)
    if as_json:
        print(json.dumps({"published": stem, "evaluations": len(chosen), "to": str(to)}))


def train_command(method: str, recipe: str, seed: int, overrides: Sequence[str]) -> str:
    """The command line that makes a run."""
    sets = [part for override in overrides for part in ("--set", override)]
    return shlex.join(["posttrain", "train", method, "--recipe", recipe, "--seed", str(seed), *sets])


def slug(name: str) -> str:
    """A row's name as a file name: letters and digits, joined by hyphens."""
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())


def _evaluations(plans: "Sequence[Plan]", runs: Path) -> list[dict[str, Any]]:
    """The stored evaluations that the table was made of, under the names that its rows have."""
    from posttrain.lab.evaluations import evaluation_keys
    from posttrain.lab.policy_measures import policy_key

    stored = {result_key(row): row for row in read_results(runs / "metrics.jsonl")}
    chosen = []
    for plan in plans:
        for row in plan.rows:
            keys = [*evaluation_keys(row, plan.recipe.evaluation), policy_key(row, plan)]
            labels = {"method": row.name, "seed": plan.seed, "config_hash": row.identity.config_hash}
            chosen += [{**stored[key], **labels} for key in map(result_key, keys) if key in stored]
    return chosen


def _stage_record(seed: int, provenance: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("stage", "config_hash", "fingerprint", "summary", "cost", "environment")
    return {"seed": seed, **{key: provenance[key] for key in keys}}


def _merge_metrics(path: Path, rows: Sequence[Mapping[str, Any]], commands: Sequence[str]) -> None:
    """Puts rows into the published, sorted record; a row replaces the published one of the same key."""
    published = read_json(path) if path.exists() else []
    by_key = {_key(row): row for row in published} | {_key(row): {**row, "commands": list(commands)} for row in rows}
    atomic_write_json(path, [by_key[key] for key in sorted(by_key)])


def _key(row: Mapping[str, Any]) -> str:
    return json.dumps([row[field] for field in ("method", "seed", *KEY_FIELDS)])

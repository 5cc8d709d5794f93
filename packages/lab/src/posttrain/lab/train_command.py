"""`posttrain train METHOD`: from a recipe to a row in the table."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from posttrain.lab.plan import Plan
    from posttrain.lab.recipe import Recipe

RUNS = Path("runs")


def train(
    method: Annotated[
        str, typer.Argument(help="A method or a variant of the recipe; what it needs is trained before it.")
    ],
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a path to a YAML file.")] = "nano",
    seed: Annotated[int, typer.Option(min=0, help="The run's seed; all others derive from it.")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value in the recipe, e.g. ppo.steps=10. May be repeated.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start this method's stage over.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the stages and what is finished; do nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The table as one JSON object on standard output.")] = False,
    track: Annotated[
        list[str] | None, typer.Option(help="Also log to wandb, tensorboard or trackio. May be repeated.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where everything is written.")] = RUNS,
) -> None:
    """Train one method and the stages that it needs, evaluate, and print the table.

    Finished stages are reused and an unfinished one is resumed. POLICY_URL and REWARD_URL name running services to
    use instead of own ones.
    """
    from posttrain.core.metrics import check_trackers
    from posttrain.core.runs import refuse_unwritable
    from posttrain.eval_harness.catalog import check_tasks
    from posttrain.lab.arms import refuse_unheeded
    from posttrain.lab.graph import plan_training
    from posttrain.lab.recipe import load_recipe
    from posttrain.lab.services import external_rewards

    check_trackers(track or ())
    refuse_unwritable(runs.absolute())
    loaded = load_recipe(recipe, overrides or [])
    check_tasks(loaded.evaluation.tasks, loaded.evaluation.include_path)
    refuse_unheeded(loaded, [method], overrides or [])
    if dry_run:
        _dry_run(loaded, method, seed, runs.absolute(), as_json)
        return
    plan = plan_training(loaded, method, seed, runs.absolute(), external_rewards())

    from posttrain.lab.pipeline import Options, run_plan

    run_plan(plan, Options(fresh=fresh, trackers=tuple(track or ())))
    _show_table(plan, as_json)


def _dry_run(recipe: "Recipe", method: str, seed: int, runs: Path, as_json: bool) -> None:
    """The stages with what is finished and, for a recipe that names its card, what they take there. A base that cannot
    be had leaves the stages' names, one whose shape is not known no forecast; each with the reason."""
    from posttrain.lab.graph import plan_training
    from posttrain.lab.models import ModelNotHere
    from posttrain.lab.plan_command import forecast_on_its_card, show_notes
    from posttrain.lab.services import external_rewards
    from posttrain.lab.stage_walk import needed_stages

    said = forecast_on_its_card(recipe, [method])
    stages = [{"stage": stage.method} for stage in needed_stages(recipe, [method])]
    try:
        stages = _stages(plan_training(recipe, method, seed, runs, external_rewards()))
    except ModelNotHere as error:
        said["model_not_here"] = str(error)
    if as_json:
        described = {"recipe": recipe.name, "method": method, "seed": seed, "stages": stages}
        print(json.dumps(described | said))
        return
    for stage in stages:
        known = "fingerprint" in stage
        rest = f"{stage['fingerprint']}  {stage['state']:10} {stage['directory']}" if known else "not identified yet"
        print(f"{stage['stage']:12} {rest}")
    show_notes(said)


def _stages(plan: "Plan") -> list[dict[str, str]]:
    return [
        {
            "stage": stage.method,
            "fingerprint": stage.identity.fingerprint[:12],
            "state": "finished" if stage.run.finished else "unfinished" if stage.run.path.exists() else "new",
            "directory": str(stage.run.path),
        }
        for stage in plan.stages
    ]


def _show_table(plan: "Plan", as_json: bool) -> None:
    from rich.console import Console

    from posttrain.lab.cells import as_json as table_json
    from posttrain.lab.collect import collect_table
    from posttrain.lab.render import rich_tables

    table = collect_table([plan])
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 200)
    for drawn in rich_tables(table):
        console.print(drawn)
    for sentence in table.losses():
        console.print(f"fell: {sentence}", highlight=False, markup=False)
    console.print(f"{plan.method} lies in {plan.last.run.path}", highlight=False, soft_wrap=True, markup=False)
    if as_json:
        described = {
            "recipe": plan.recipe.name,
            "method": plan.method,
            "seed": plan.seed,
            "run": str(plan.last.run.path),
        }
        print(json.dumps(described | table_json(table)))

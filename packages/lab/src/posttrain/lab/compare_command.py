"""`posttrain compare`: every arm from the same base under the same conditions, and one table."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain.core.errors import WorkError
from posttrain.lab.comparison_options import (
    Allowed,
    Budget,
    Overrides,
    Recipe,
    Rows,
    RunsFolder,
    Seeds,
    compare_command,
    recipe_overrides,
)

if TYPE_CHECKING:
    from posttrain.lab.published_tables import Beside
    from posttrain.lab.table import Table
    from posttrain.lab.tasks import Task


def compare(
    methods: Annotated[
        str | None,
        typer.Option(help="Methods and variants, separated by commas; `all`: with every variant.", show_default=False),
    ] = None,
    seeds: Seeds = "0",
    recipe: Recipe = "nano",
    overrides: Overrides = None,
    rows: Rows = None,
    allowed: Allowed = None,
    budget: Budget = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Tasks side by side; none: one a core, or one on a GPU.")
    ] = None,
    judge: Annotated[
        bool,
        typer.Option("--judge", help="Have the rows' answers judged against those of the SFT policy."),
    ] = False,
    with_published: Annotated[
        bool,
        typer.Option("--with-published", help="Show the rows of results/published beside ours, marked as such."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the stages, what is finished, an estimate of time; do nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The table as one JSON object on standard output.")] = False,
    track: Annotated[
        list[str] | None, typer.Option(help="Also log to wandb, tensorboard or trackio. May be repeated.")
    ] = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Train every method from the same base, evaluate all alike, and say which differences are real.

    Finished stages are reused, an interrupted one is resumed. Writes comparison.md, .json and plots beside the runs.
    """
    from posttrain.core.metrics import check_trackers
    from posttrain.core.runs import refuse_unwritable
    from posttrain.eval_harness.catalog import check_tasks
    from posttrain.lab.arms import refuse_unheeded
    from posttrain.lab.collect import entries_of
    from posttrain.lab.comparison import (
        compared_arms,
        external_entries,
        plan_comparison,
        plans_without,
        refuse_unlike,
        write_comparison,
    )
    from posttrain.lab.conditions import moving_data
    from posttrain.lab.elapsed import finished_work, recorded_run
    from posttrain.lab.estimates import seconds_by_work
    from posttrain.lab.jobs import jobs_and_threads, run_jobs
    from posttrain.lab.judge_matches import matches_done, refuse_unjudgeable
    from posttrain.lab.models import ModelNotHere, refuse_unpinned
    from posttrain.lab.plan_command import forecast_on_its_card
    from posttrain.lab.published_tables import published_beside
    from posttrain.lab.recipe import load_recipe
    from posttrain.lab.schedule import TasksFailed
    from posttrain.lab.seeds import parse_seeds
    from posttrain.lab.tasks import joining_tasks, tasks_of

    given = recipe_overrides(overrides, budget)
    check_trackers(track or ())
    loaded = load_recipe(recipe, given)
    refuse_unpinned(loaded.model, loaded.revision)
    check_tasks(loaded.evaluation.tasks, loaded.evaluation.include_path)
    root = runs.absolute()
    refuse_unwritable(root)
    jobs, threads = jobs_and_threads(loaded, jobs, root)
    given.append(f"threads={threads}")
    loaded = load_recipe(recipe, given)
    count = len(parse_seeds(seeds))
    said = forecast_on_its_card(loaded, compared_arms(loaded, methods), count) if dry_run else {}
    try:
        plans = plan_comparison(loaded, methods, seeds, root)
    except ModelNotHere as error:
        if not said:
            raise
        _show([], {}, jobs, as_json, None, said | {"model_not_here": str(error)})
        return
    refuse_unheeded(loaded, [plan.method for plan in plans], given)
    published = published_beside(Path("results"), loaded.evaluation.columns()) if with_published else []
    if judge:
        refuse_unjudgeable(plans)
    more = external_entries(rows or [], plans, root)
    for sentence in moving_data(loaded, refuse_unlike(plans, more, allowed or [])):
        print(f"warning: {sentence}", file=sys.stderr)
    tasks = tasks_of(plans)
    tasks += joining_tasks([joined for entry in more for joined in entry.runs])
    estimate = seconds_by_work(root, loaded)
    if dry_run:
        runs_of_rows = [run for entry in (*entries_of(plans), *more) for run in entry.runs]
        _show(tasks, estimate, jobs, as_json, matches_done(runs_of_rows) if judge else None, said)
        return
    folder = root / loaded.name
    command = compare_command(plans, recipe, overrides, rows, allowed, budget)
    with recorded_run(folder, command, jobs, lambda: finished_work(plans, more)):
        try:
            run_jobs(tasks, root, jobs, estimate, trackers=track or ())
        except TasksFailed as error:
            rest = plans_without(plans, error.keys)
            if not rest or len(rest) == len(plans):
                raise
            without = compare_command(rest, recipe, overrides, rows, allowed, budget)
            where = "" if runs == Path("runs") else f" --runs {shlex.quote(str(runs))}"
            how = f"{where}{' --judge' if judge else ''}"
            raise WorkError(f"{error}\nfor the table without what failed: {without}{how}") from None
    if judge:
        from posttrain.lab.judge_rows import judge_rows

        judge_rows([*entries_of(plans), *more], root)
    described = write_comparison(folder, plans, more, allowed or [], command, published)
    _print(described.table, published, folder, as_json, described.plain)


def _show(
    tasks: "Sequence[Task]",
    estimate: dict[str, float],
    jobs: int,
    as_json: bool,
    matches: tuple[int, int] | None,
    said: dict[str, Any],
) -> None:
    """`matches`: how many are judged, of how many; None where nothing is to be judged. `said`: the forecast of a seed
    on the recipe's card, or why there is none; without the base there is nothing else."""
    from posttrain.lab.plan_command import show_notes
    from posttrain.lab.schedule import clock, seconds_left, seconds_of

    left = seconds_left(tasks, estimate, jobs) if tasks else None
    if as_json:
        shown = [
            {
                "task": task.label,
                "stage": task.stage,
                "row": task.row,
                "finished": task.finished,
                "directory": str(task.run.path),
                "needs": sorted(task.needs),
                "seconds": None if task.finished else seconds_of(task, estimate),
            }
            for task in tasks
        ]
        judging = {"judge": dict(zip(("judged", "matches"), matches, strict=True))} if matches else {}
        print(json.dumps({"tasks": shown, "jobs": jobs, "seconds": left, **judging, **said}))
        return
    if not tasks:
        show_notes(said)
        return
    for task in tasks:
        state = "finished" if task.finished else "unfinished" if task.run.state.exists() else "new"
        seconds = None if task.finished else seconds_of(task, estimate)
        about = "" if task.finished else "time unknown" if seconds is None else f"about {clock(seconds)}"
        print(f"{task.label:40} {'+'.join(task.work):24} {state:10} {about}")
    open_tasks = [task for task in tasks if not task.finished]
    total = "nothing is left to do" if not open_tasks else f"{len(open_tasks)} of {len(tasks)} tasks to do"
    if open_tasks:
        total += f", {jobs} at a time: " + ("time unknown" if left is None else f"about {clock(left)}")
    print(total)
    if matches:
        print(f"{matches[1] - matches[0]} of {matches[1]} matches against sft to judge")
    show_notes(said)


def _print(
    table: "Table", published: "Sequence[Beside]", folder: Path, as_json: bool, plain: dict[str, object]
) -> None:
    from rich.console import Console

    from posttrain.lab.cells import verdicts
    from posttrain.lab.render import rich_tables

    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 220)
    for drawn in rich_tables(table, published):
        console.print(drawn)
    for sentence in [*verdicts(table), *(f"fell: {loss}" for loss in table.losses())]:
        console.print(sentence, highlight=False, markup=False)
    for note in table.footnotes:
        console.print(f"marked: {note}", highlight=False, markup=False)
    console.print(f"written to {os.path.relpath(folder)}/comparison.md, .json and plots", highlight=False, markup=False)
    if as_json:
        print(json.dumps(plain))

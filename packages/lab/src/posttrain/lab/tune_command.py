"""`posttrain tune METHOD`: tries the method's grid on the validation split and writes the choice into the recipe."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from posttrain.core.errors import RequestError, WorkError


def tune(
    methods: Annotated[str, typer.Argument(help="A method or variant, or several separated by commas.")],
    trials: Annotated[
        int | None, typer.Option(min=1, help="Combinations to try; none: the whole grid.", show_default=False)
    ] = None,
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a path to a YAML file.")] = "nano",
    seed: Annotated[int, typer.Option(min=0, help="The seed of all trials.")] = 0,
    length: Annotated[float, typer.Option(help="Share of a run that a trial does.")] = 0.5,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value in the recipe. May be repeated.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Tasks side by side; none: one a core.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the trials and an estimate of time.")] = False,
    write: Annotated[bool, typer.Option(help="Write the choice into the recipe's file.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="The trials as one JSON object on standard output.")] = False,
    runs: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("runs"),
    to: Annotated[Path, typer.Option(help="Where the record of all trials is kept.")] = Path("results/tuning"),
) -> None:
    """Try a method's grid of settings on the validation split, with the same effort for every method.

    Every trial is recorded, and what is recorded is not made again. One that diverges counts and cannot be chosen. The
    choice goes into the recipe with where it comes from.
    """
    from posttrain.core.runs import refuse_unwritable
    from posttrain.lab.arms import refuse_unheeded
    from posttrain.lab.estimates import seconds_by_work
    from posttrain.lab.graph import plan_training
    from posttrain.lab.jobs import jobs_and_threads, run_jobs
    from posttrain.lab.models import refuse_unpinned
    from posttrain.lab.recipe import load_recipe, recipe_path
    from posttrain.lab.schedule import TasksFailed, clock, seconds_left
    from posttrain.lab.services import external_rewards
    from posttrain.lab.tasks import Task, tasks_of
    from posttrain.lab.tuned_section import refuse_unwritable_recipe, tuned_text, write_tuned
    from posttrain.lab.tuning import ArmTuning, chosen, trials_of
    from posttrain.trainers.provenance import environment

    if not 0 < length <= 1:
        raise RequestError(f"--length is a share of a run, above 0 and at most 1, not {length}")
    loaded = load_recipe(recipe, overrides or [])
    names = list(dict.fromkeys(name.strip() for name in methods.split(",") if name.strip()))
    if not names:
        raise RequestError("METHODS names nothing to tune; for example posttrain tune dpo,kto")
    refuse_unpinned(loaded.model, loaded.revision)
    refuse_unheeded(loaded, names, overrides or [])
    root = runs.absolute()
    refuse_unwritable(root)
    jobs, threads = jobs_and_threads(loaded, jobs, root)
    given = [*(overrides or []), f"threads={threads}"]
    external = external_rewards()

    def tuning_of(name: str) -> ArmTuning:
        asked = trials_of(loaded, name, trials, length)
        recipes = [load_recipe(recipe, [*given, *trial.overrides]) for trial in asked]
        plans = [plan_training(each, name, seed, root, external, True) for each in recipes]
        made_by = {
            "command": _command(name, recipe, seed, length, trials, overrides),
            "environment": environment(threads),
        }
        return ArmTuning(loaded, loaded.arm(name), list(zip(asked, plans, strict=True)), length, to, made_by)

    tunings = [tuning_of(name) for name in names]
    left = [plan for tuning in tunings for _, plan in tuning.missing()]
    tasks = tasks_of(left, {plan.rows[-1].name for plan in left}, on_tasks=False)
    estimate = seconds_by_work(root, loaded)
    if dry_run:
        for tuning in tunings:
            open_trials = [trial for trial, _ in tuning.missing()]
            for trial, _ in tuning.planned:
                there = "" if trial in open_trials else " (recorded)"
                values = ", ".join(f"{key} {value}" for key, value in trial.values.items())
                print(f"{trial.arm:20} {values}{there}")
        seconds = seconds_left(tasks, estimate, jobs)
        about = "time unknown" if seconds is None else f"about {clock(seconds)}"
        print(f"{len(left)} trials, {jobs} at a time: {about}" if left else "all trials are recorded")
        return
    if write:
        refuse_unwritable_recipe(recipe_path(recipe))
        for tuning in tunings:
            tuned_text(recipe_path(recipe), tuning.arm.name, tuning.as_tuned(tuning.planned[0][0].values, 1))

    def ended(task: Task, problem: str | None) -> None:
        for tuning in tunings:
            tuning.ended(task, problem)

    failure: TasksFailed | None = None
    for tuning in tunings:
        tuning.record_finished()
    try:
        run_jobs(tasks, root, jobs, estimate, on_tasks=False, ended=ended)
    except TasksFailed as error:
        failure = error  # it may be trials that diverged, which are recorded, and other arms are done
    results: dict[str, Any] = {}
    vain = []
    for tuning in tunings:
        if tuning.missing():
            continue
        name, tuned, done = tuning.arm.name, tuning.tuned(), tuning.recorded()
        results[name] = {"trials": done, "chosen": tuned.values if tuned else None, "record": str(tuning.path)}
        if tuned is None:
            vain.append(f"{name} ({tuning.path})")
        elif write:
            write_tuned(recipe_path(recipe), name, tuned)
        if not as_json:
            _show(name, done, chosen(done))
    if as_json:
        print(json.dumps(results))
    if failure and len(results) < len(names):
        raise failure
    if vain:
        raise WorkError(f"every trial failed of {', '.join(vain)}; give it another grid in the recipe (grids)")


def _command(
    name: str, recipe: str, seed: int, length: float, trials: int | None, overrides: Sequence[str] | None
) -> str:
    """The command line that makes an arm's trials."""
    made_by = ["posttrain", "tune", name, "--recipe", recipe, "--seed", str(seed), "--length", str(length)]
    made_by += ["--trials", str(trials)] if trials is not None else []
    made_by += [part for override in overrides or [] for part in ("--set", override)]
    return shlex.join(made_by)


def _show(name: str, done: Sequence[Mapping[str, Any]], best: Mapping[str, Any] | None) -> None:
    from rich.console import Console
    from rich.table import Table

    keys = list(done[0]["values"])
    table = Table(*keys, "gold reward", "learned reward", "KL from sft", title=name, title_justify="left")
    for trial in sorted(done, key=lambda trial: -trial["gold"]["value"] if "gold" in trial else math.inf):
        cells = [f"{trial[m]['value']:.3f} ± {trial[m]['standard_error']:.3f}" if m in trial else "—" for m in MEASURES]
        mark = " ◂" if trial is best else " failed" if "failed" in trial else ""
        table.add_row(*(str(trial["values"][key]) for key in keys), cells[0] + mark, *cells[1:])
    Console().print(table)


MEASURES = ("gold", "learned", "kl")

"""One comparison: its plans over arms and seeds, rows that join from other runs, and what is written at its end."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core.config import read_yaml
from posttrain.core.errors import RequestError
from posttrain.core.files import atomic_write_json, atomic_write_text, read_json
from posttrain.core.runs import RunDirectory, StageIdentity
from posttrain.lab.cells import as_json
from posttrain.lab.collect import Entry, collect_table, entries_of
from posttrain.lab.comparison_options import judging_command
from posttrain.lab.conditions import (
    Conditions,
    check_conditions,
    check_names,
    planned_conditions,
    recipe_conditions,
    recorded_conditions,
)
from posttrain.lab.elapsed import all_work, elapsed
from posttrain.lab.graph import BASE_VERSION, plan_training
from posttrain.lab.plan import BASE, Plan, Row
from posttrain.lab.plots import draw_plots
from posttrain.lab.published_tables import Beside
from posttrain.lab.recipe import Recipe
from posttrain.lab.render import markdown
from posttrain.lab.runs_command import find_runs, one_run
from posttrain.lab.seeds import parse_seeds
from posttrain.lab.services import external_rewards
from posttrain.lab.table import Table
from posttrain.trainers.registry import get_method, method_names

ALL = "all"
SHAPE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
"""What two models' config.json must agree in, that one can take the other's weights."""


@dataclass(frozen=True)
class Written:
    """A finished comparison."""

    table: Table
    plain: dict[str, Any]
    """What comparison.json holds."""


def compared_arms(recipe: Recipe, methods: str | None) -> list[str]:
    """The arms that `--methods` means; RequestError for an unknown one or one that makes no policy."""
    if methods is None:
        names = list(recipe.compared())
    elif methods == ALL:
        names = [*recipe.compared(), *(name for name in recipe.variants if name not in recipe.compared())]
    else:
        names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise RequestError("--methods names nothing to compare; for example --methods dpo,ppo")
    for name in names:
        if recipe.arm(name).described.makes not in ("policy", "choice"):
            raise RequestError(f"--methods {name}: it makes no policy that could stand in a table; leave it out")
    return names


def plan_comparison(recipe: Recipe, methods: str | None, seeds: str, root: Path) -> list[Plan]:
    """The plans of all arms and seeds; RequestError as of `compared_arms`, ModelNotHere without the base."""
    names = compared_arms(recipe, methods)
    external = external_rewards()
    numbers = parse_seeds(seeds)
    return [plan_training(recipe, name, seed, root, external, True) for seed in numbers for name in names]


def refuse_unlike(plans: Sequence[Plan], more: Sequence[Entry], allowed: Collection[str]) -> Conditions:
    """The conditions that all rows share, before anything is trained: RequestError where a row that is there was made
    under others, or one that is not there yet would train another adapter."""
    check_names(allowed)
    seeds = sorted({plan.seed for plan in plans})
    expected = recipe_conditions(plans, seeds)
    for entry in entries_of(plans):
        for row, _ in entry.runs:
            check_conditions(expected, {row.name: planned_conditions(row)}, allowed)
            # A choice's checkpoint is its start's. Where that was deleted it is made again, and looked at then.
            if row.run.finished and not (row.choice and not row.checkpoint.exists()):
                found = {k: v for k, v in recorded_conditions(row, seeds).items() if not k.startswith("evaluation")}
                check_conditions(expected, {row.name: found}, allowed)  # it will be evaluated as the recipe says
    for entry in more:
        for row, _ in entry.runs:
            check_conditions(expected, {entry.name: recorded_conditions(row, entry.seeds)}, allowed)
    return expected


def external_entries(fingerprints: Sequence[str], plans: Sequence[Plan], root: Path) -> list[Entry]:
    """A row for each finished run named, with the runs of the same experiment under the comparison's seeds."""
    by_seed = {plan.seed: plan for plan in plans}
    taken = {row.name for plan in plans for row in plan.rows}
    own = {row.identity.config_hash: row.name for plan in plans for row in plan.rows}
    joined: set[str] = set()
    entries = []
    for fingerprint in fingerprints:
        found = one_run(root, fingerprint)
        if not found.run.finished:
            raise RequestError(f"--row {fingerprint}: {found.run.path} is not finished; finish it first")
        record = found.run.provenance()
        makes = get_method(found.stage).makes if found.stage in method_names() else "policy"
        if makes != "policy" or not found.run.checkpoint.exists():
            raise RequestError(f"--row {fingerprint}: {found.run.path} has no trained policy; name a run that has one")
        _refuse_other_shape(fingerprint, found.run.checkpoint, plans[0].base.folder)
        if record["config_hash"] in own:
            name = own[record["config_hash"]]
            raise RequestError(f"--row {fingerprint}: that is {name}, which is in this comparison; leave it out")
        if record["config_hash"] in joined:  # another seed of a row that has them all
            continue
        joined.add(record["config_hash"])
        name = record.get("arm", {}).get("name", found.stage)
        name = name if name not in taken else f"{name} [{found.fingerprint[:6]}]"
        taken.add(name)
        same = [run.run for run in find_runs(root) if run.state == "finished" and run.stage == found.stage]
        runs = {r["seed"]: run for run in same if (r := run.provenance())["config_hash"] == record["config_hash"]}
        shared = {seed: run for seed, run in sorted(runs.items()) if seed in by_seed}
        if not shared:
            raise RequestError(
                f"--row {fingerprint}: it was trained with seed {', '.join(map(str, runs))}, this comparison has "
                f"{', '.join(map(str, by_seed))}; name a seed of it with --seeds"
            )
        rows = [(recorded_row(name, run, root), by_seed[seed]) for seed, run in shared.items()]
        entries.append(Entry(name, tuple(rows)))
    return entries


def plans_without(plans: Sequence[Plan], failed: Collection[str]) -> list[Plan]:
    """The plans of the arms that need none of the tasks that failed, under any seed."""
    lost = set()
    for plan in plans:
        needed = {stage.identity.fingerprint for stage in plan.needed(plan.last.identity)}
        needed |= {f"{row.identity.fingerprint}/{plan.seed}" for row in plan.rows}
        if needed & set(failed):
            lost.add(plan.method)
    return [plan for plan in plans if plan.method not in lost]


def write_comparison(
    folder: Path,
    plans: Sequence[Plan],
    more: Sequence[Entry],
    allowed: Collection[str],
    command: str,
    published: Sequence[Beside] = (),
) -> Written:
    """Makes the table of finished runs and writes comparison.md, comparison.json and plots into `folder`.

    `command` is the command line that does it; how long its runs took stands in both, and rows that others have
    `published` stand beside ours.
    """
    table = collect_table(plans, more, allowed)
    took = elapsed(folder, command, all_work(plans, more))
    recipe = plans[0].recipe
    names = list(dict.fromkeys(plan.method for plan in plans))
    seeds = ",".join(str(seed) for seed in sorted({plan.seed for plan in plans}))
    pictures = draw_plots(folder, table, [*entries_of(plans), *more])
    shown = "\n".join(f"![{path.stem}]({path.name})" for path in pictures)
    said = f"{took.sentence()}\n\n" if took else ""
    title = f"# {recipe.name}: every method from one base\n\n{recipe.description}\n\n{said}"
    page = f"{title}{markdown(table, published)}\n{shown}\n"
    command = judging_command(command, table) + (" --with-published" if published else "")
    described = {"recipe": recipe.name, "methods": names, "seeds": seeds, "command": command}
    plain = {**described, "took": took.plain() if took else None, **as_json(table)}
    if published:
        plain["published"] = [each.plain() for each in published]
    atomic_write_json(folder / "comparison.json", plain)
    atomic_write_text(folder / "comparison.md", page)
    return Written(table, plain)


def _refuse_other_shape(fingerprint: str, checkpoint: Path, base: Path) -> None:
    """The policy service has one architecture: weights of another would only fail when they are measured."""
    found, expected = (folder / "config.json" for folder in (checkpoint, base))
    if not found.exists() or not expected.exists():
        return
    theirs, ours = read_json(found), read_json(expected)
    other = next((key for key in SHAPE if theirs.get(key) != ours.get(key)), None)
    if other:
        raise RequestError(
            f"--row {fingerprint}: its model has {other} {theirs.get(other)}, this comparison's base "
            f"{ours.get(other)}; they cannot be measured by one policy service"
        )


def recorded_row(name: str, run: RunDirectory, root: Path) -> Row:
    """A finished run as a row called `name`; RequestError when its directory is not what it was, or an ancestor's is
    missing."""
    places = {each.fingerprint: each.run for each in find_runs(root) if each.state == "finished"}
    identity = _recorded_identity(run, places)
    before: dict[str, RunDirectory] = {}
    queue = list(identity.parents)
    while queue:
        parent = queue.pop()
        before[parent.fingerprint] = places[parent.fingerprint[:12]]
        queue += parent.parents
    stages = [each for each in reversed(before.values()) if "cost" in each.provenance()]
    return Row(name, identity, run, run.checkpoint, before=(*stages, run))


def _recorded_identity(run: RunDirectory, places: Mapping[str, RunDirectory]) -> StageIdentity:
    """What identified a run, rebuilt from what its directory and those of its ancestors say."""
    record = run.provenance()
    if record["stage"] == BASE:
        keys = ("revision", "digest", "chat_template", "eos_token", "pad_token")
        identity = StageIdentity(BASE, BASE_VERSION, {key: record[key] for key in keys if key in record}, seed=0)
    else:
        config = read_yaml(run.path / "config.yaml")
        missing = [parent for parent in config["parents"] if parent[:12] not in places]
        if missing:
            raise RequestError(f"{run.path}: its parent {missing[0][:12]} is not a finished run; train it again")
        parents = tuple(_recorded_identity(places[parent[:12]], places) for parent in config["parents"])
        identity = StageIdentity(config["stage"], config["version"], config["definition"], config["seed"], parents)
    if identity.fingerprint != record["fingerprint"]:
        raise RequestError(f"{run.path} was changed after it was made: its fingerprint is not that of its config.yaml")
    return identity

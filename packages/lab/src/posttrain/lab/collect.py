"""From finished run directories to the rows of a table: reads per-item results, pools seeds, checks the conditions."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core.errors import RequestError, suggest
from posttrain.core.files import read_json, read_jsonl
from posttrain.core.statistics import Estimate
from posttrain.eval_harness.clusters import cluster_of
from posttrain.lab.arms import LEARNED
from posttrain.lab.conditions import Deviation, check_conditions, recipe_conditions, recorded_conditions
from posttrain.lab.costs import recorded_trials, row_cost
from posttrain.lab.evaluations import SETTINGS_FILE, evaluated_tasks, evaluation_settings
from posttrain.lab.judge_matches import gold_of, judged_items, records_file
from posttrain.lab.judge_scores import JudgedBy, Judges
from posttrain.lab.plan import BASE, REFERENCE, Plan, Row
from posttrain.lab.policy_measures import MEASURES, measured_on_validation, policy_items
from posttrain.lab.recipe import Recipe
from posttrain.lab.table import Scores, Table, TableRow, build_table


@dataclass(frozen=True)
class Entry:
    """A row with the runs that it pools: one a seed, each with the plan that it belongs to."""

    name: str
    runs: tuple[tuple[Row, Plan], ...]

    @property
    def first(self) -> Row:
        """The row of the first seed: what does not depend on the seed is read from it."""
        return self.runs[0][0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """In order."""
        return tuple(plan.seed for _, plan in self.runs)


def collect_table(
    plans: Sequence[Plan], more: Sequence[Entry] = (), allowed: Collection[str] = (), check: bool = True
) -> Table:
    """The table of all rows of `plans` (arms and seeds of one recipe) and of the entries of other runs.

    RequestError where a row was made under other conditions (see posttrain.lab.conditions) that are not `allowed`.
    """
    entries = [*entries_of(plans), *more]
    recipe, seeds = plans[0].recipe, sorted({plan.seed for plan in plans})
    expected = recipe_conditions(plans, seeds)
    deviations = []
    for entry in entries:
        own = seeds if entry.name == BASE else entry.seeds
        found = [
            check_conditions(expected, {entry.name: recorded_conditions(row, own)}, allowed) for row, _ in entry.runs
        ]
        deviations.append([deviation for of_run in found for deviation in of_run])
    evaluation = recipe.evaluation
    settings = evaluation_settings(evaluation)
    rows = [_collect_row(entry, settings, of_row) for entry, of_row in zip(entries, deviations, strict=True)]
    columns = (*evaluation.columns().values(), *MEASURES.values())
    present = [column for column in columns if any(column in row.scores for row in rows)]
    tasks = [*evaluation.columns().values(), MEASURES["gold"]]
    partial = any(_changes_items(deviation) for of_row in deviations for deviation in of_row)
    judging = recipe.judge
    judges = Judges(judging.task, judging.judges, gold_of(recipe), _identities(plans)) if judging else None
    return build_table(rows, present, tasks, evaluation.headline_column, check=check, partial=partial, judges=judges)


def _footnotes(entry: Entry, recipe: Recipe, deviations: Sequence[Deviation]) -> tuple[str, ...]:
    """In what a row deviates, whether it is measured on what its settings were chosen on or has no bound that others
    have."""
    arm = entry.first.arm
    notes = dict.fromkeys(each.sentence() for each in deviations)
    if arm and {arm.name, arm.method} & set(recipe.tuned) and measured_on_validation(recipe):
        where = "the data that chose the settings (data.measured is data.validation's)"
        notes[f"the gold reward is optimistic, for it is measured on {where}"] = None
    if arm and arm.unbound:
        notes[f"not bound by the budget of {', '.join(arm.unbound)}"] = None
    return tuple(notes)


def entries_of(plans: Sequence[Plan]) -> list[Entry]:
    """The distinct rows of the plans in the order of first appearance, each with its runs by seed."""
    found: dict[tuple[str, str], dict[int, tuple[Row, Plan]]] = {}
    for plan in sorted(plans, key=lambda plan: plan.seed):
        for row in plan.rows:
            found.setdefault((row.name, row.identity.config_hash), {}).setdefault(plan.seed, (row, plan))
    names = [name for name, _ in found]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"two rows are called '{name}'; give one of them a name of its own under variants")
    return [Entry(name, tuple(runs[seed] for seed in sorted(runs))) for (name, _), runs in found.items()]


def _changes_items(deviation: Deviation) -> bool:
    """Whether a row that deviates so may have been measured on other items than the rest."""
    return deviation.field.startswith(("evaluation.", "data.measured")) or deviation.field == "seeds"


def _collect_row(entry: Entry, settings: Mapping[str, Any], deviations: Sequence[Deviation]) -> TableRow:
    arm, recipe = entry.first.arm, entry.runs[0][1].recipe
    scores = {}
    tasks = evaluated_tasks(entry.first, recipe.evaluation)
    for (task, metric), title in recipe.evaluation.columns().items():
        if task in tasks:
            parts = [(plan.seed, _task_values(row, task, metric, settings)) for row, plan in entry.runs]
            scores[title] = _pool(parts)
    for measure, title in MEASURES.items():
        parts = [(plan.seed, _read(policy_items(row, plan), measure)) for row, plan in entry.runs]
        # What is known of a choice's KL is from what it chooses among.
        known = measure != "kl" or not entry.first.choice or _start(entry) == REFERENCE
        if known and all(values for _, values in parts):
            scores[title] = _pool(parts)
    chains = [_chain(row, plan) for row, plan in entry.runs]
    recorded = entry.first.run.provenance().get("arm", {})
    accuracy, implicit = _reward_accuracy(entry)
    judged = _judged(entry)
    return TableRow(
        name=entry.name,
        config_hash=entry.first.identity.config_hash,
        seeds=() if entry.name == BASE else entry.seeds,
        scores=scores,
        learns_from=arm.learns_from if arm else recorded.get("learns_from", "—"),
        trials=arm.trials if arm and arm.grid else recorded.get("trials") if not arm else None,
        reward_accuracy=accuracy,
        implicit=implicit,
        cost=row_cost(chains, recipe.price, _trials(entry)),
        start=_start(entry),
        # ln n − (n−1)/n is what the KL of a choice comes to only if no two samples are ever alike.
        bounds=(MEASURES["kl"],) if entry.first.choice and MEASURES["kl"] in scores else (),
        footnotes=_footnotes(entry, recipe, deviations),
        judged=judged,
        judged_by={judge: _judged_by(entry, judge) for judge in judged},
    )


def _judged(entry: Entry) -> dict[str, Scores]:
    """What each judge says of the row's answers; nothing where a seed is not judged."""
    judging = entry.runs[0][1].recipe.judge
    found = [(plan.seed, judged_items(row, plan)) for row, plan in entry.runs]
    paths = [(seed, path) for seed, path in found if path and path.exists()]
    if judging is None or len(paths) < len(found):
        return {}
    return {judge: _pool([(seed, _read(path, judge)) for seed, path in paths]) for judge in judging.judges}


def _judged_by(entry: Entry, judge: str) -> dict[int, JudgedBy]:
    """By seed where the preferences of a row that is judged come from."""
    found = {}
    for row, plan in entry.runs:
        items = judged_items(row, plan)
        assert items is not None, "a row that is judged has matches"
        records = records_file(items)
        found[plan.seed] = JudgedBy(plan.judges[judge], read_json(records)[judge] if records.exists() else None)
    return found


def _identities(plans: Sequence[Plan]) -> dict[str, dict[int, str]]:
    """What identifies each judge on each seed."""
    found: dict[str, dict[int, str]] = {}
    for plan in plans:
        for judge, identity in plan.judges.items():
            if identity is not None:
                found.setdefault(judge, {})[plan.seed] = identity
    return found


def _trials(entry: Entry) -> list[dict[str, Any]]:
    """The recorded trials that chose a row's settings; none where its settings are not what they chose."""
    arm, recipe = entry.first.arm, entry.runs[0][1].recipe
    return recorded_trials(Path(recipe.tuned[arm.name].record)) if arm and arm.trials else []


def _start(entry: Entry) -> str | None:
    """The name of the row that an entry was trained from; None where that is not known or nothing."""
    arm = entry.first.arm
    if arm is None or arm.start == BASE:
        return BASE if arm else None
    return entry.runs[0][1].recipe.arm(arm.start).row_name


def _chain(row: Row, plan: Plan) -> list[dict[str, Any]]:
    """The provenance of every stage that a row needed, its own last; none for the base."""
    runs = row.before or [stage.run for stage in plan.needed(row.identity)]
    return [run.provenance() for run in runs if run.finished]


def _reward_accuracy(entry: Entry) -> tuple[Estimate | None, bool]:
    """Held-out accuracy of what a row took for its reward, over its seeds; True if that was its implicit reward."""
    own = [row.run.provenance().get("summary", {}).get("held_out") for row, _ in entry.runs]
    if all(isinstance(held_out, dict) and "accuracy" in held_out for held_out in own):
        parts = [(each["accuracy"], each["accuracy_standard_error"], each["n"]) for each in own]
        # Pairs of a single prompt have no standard error, and a number without one is not shown.
        return (None, False) if any(part[1] is None for part in parts) else (_mean(parts), True)
    arm = entry.first.arm
    models = [record for row, plan in entry.runs for record in _chain(row, plan)[:-1] if record["stage"] == LEARNED]
    if not models or (arm is not None and not (arm.described.scores and LEARNED in arm.reward)):
        return None, False
    accuracies = [record["summary"]["accuracy"]["all"] for record in models]
    return _mean([(each["accuracy"], each["standard_error"], each["n"]) for each in accuracies]), False


def _mean(parts: Sequence[tuple[float, float, int]]) -> Estimate:
    """Over seeds, whose held-out pairs are different ones."""
    values, errors, counts = zip(*parts, strict=True)
    return Estimate(sum(values) / len(parts), math.hypot(*errors) / len(parts), sum(counts))


ItemValues = dict[tuple[str, str], list[float]]
"""Item id and cluster to the item's values: one, or one for each instruction of a prompt."""


def _read(path: Path, metric: str) -> ItemValues:
    values: ItemValues = {}
    if not path.exists():
        return values
    for item in read_jsonl(path):
        if (value := item["scores"].get(metric)) is not None:
            values[item["id"], cluster_of(item)] = value if isinstance(value, list) else [value]
    return values


def _task_values(row: Row, task: str, metric: str, settings: Mapping[str, Any]) -> ItemValues:
    path, marker = row.run.eval / f"{task}.jsonl", row.run.eval / SETTINGS_FILE
    done = path.exists() and marker.exists()
    # A row of other runs, and the base, may have been evaluated otherwise: that is a matter of the conditions.
    if not done or (row.arm is not None and read_json(marker)["settings"] != settings):
        raise RequestError(f"{row.name} ({row.run.path}) is not evaluated on {task}; run the same command again")
    values = _read(path, metric)
    if not values:
        known = {name for item in read_jsonl(path) for name in item["scores"]}
        raise RequestError(f"evaluation.table: task {path.stem} has no metric '{metric}' {suggest(metric, known)}")
    return values


def _pool(parts: Sequence[tuple[int, ItemValues]]) -> Scores:
    rows = [
        (item, seed, place, value)
        for seed, values in parts
        for (item, _), of_item in values.items()
        for place, value in enumerate(of_item)
    ]
    items, seeds, places, values = zip(*rows, strict=True)
    shared = {item: cluster for _, of_seed in parts for item, cluster in of_seed if cluster != item}
    return Scores(items, seeds, places, values, shared)

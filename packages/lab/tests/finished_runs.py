"""Run directories as a comparison leaves them, written by hand: nothing is trained, started or sampled.

Every stage of the plans has provenance, every row a checkpoint with the base's tokenizer, item files and the record of
its evaluation. A test changes what it is about, or one file of one run.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from posttrain.core.files import atomic_write_json, write_jsonl
from posttrain.data.nano import BASE as NANO
from posttrain.lab import evaluations, graph
from posttrain.lab.collect import Entry
from posttrain.lab.conditions import stage_conditions
from posttrain.lab.evaluations import SETTINGS_FILE, evaluated_tasks, evaluation_settings
from posttrain.lab.models import resolve_model
from posttrain.lab.plan import Plan, Row, Stage
from posttrain.lab.policy_measures import policy_items
from posttrain.lab.recipe import load_recipe
from posttrain.trainers import registry

NANO_BASE = resolve_model("nano")
task_version_once = cache(evaluations.task_version)
TABLE = "{nano_choice/acc: choice, nano_instructions/inst_level_strict_acc: inst, nano_problems/exact_match: problems}"
SMALL = (
    "evaluation.tasks=[nano_choice, nano_problems, nano_instructions]",
    f"evaluation.table={TABLE}",
    "evaluation.headline=nano_problems/exact_match",
    "evaluation.limit=4",
)
METRICS = {"nano_choice": "acc", "nano_problems": "exact_match", "nano_instructions": "inst_level_strict_acc"}

RM = {"rm": {"accuracy": {"all": {"accuracy": 0.7, "standard_error": 0.03, "n": 50}}}}
"""What a reward model's stage says of itself."""

Answers = Callable[[str, int, str], Sequence[Any]]
"""Row's name, seed and task (or `kl`, `gold`, `learned`) to the values of items 0, 1, …"""


def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base's digest and the tasks' versions are the same all through a test session."""
    monkeypatch.setattr(graph, "resolve_model", lambda model, revision: NANO_BASE)
    monkeypatch.setattr(evaluations, "task_version", task_version_once)
    monkeypatch.setattr(registry, "entry_points", lambda group: [])


def half_right(row: str, seed: int, task: str) -> Sequence[Any]:
    """The base gets nothing right, every other row the second half; two instructions a prompt."""
    right = [0.0, 0.0, 0.0, 0.0] if row == "base" else [0.0, 0.0, 1.0, 1.0]
    return [[value, 1.0] for value in right] if task == "nano_instructions" else right


def plans_of(root: Path, names: Sequence[str], seeds: Sequence[int] = (0,), *overrides: str) -> list[Plan]:
    recipe = load_recipe("nano", ["tuned={}", *SMALL, *overrides])
    return [graph.plan_training(recipe, name, seed, root, None, True) for seed in seeds for name in names]


def finish(plans: Sequence[Plan], answers: Answers = half_right, summaries: dict[str, Any] | None = None) -> None:
    """Writes all runs of the plans; `summaries` are the stages' own, by method."""
    for plan in plans:
        for stage in plan.stages:
            _write_stage(plan, stage, {**RM, **(summaries or {})}.get(stage.method, {}))
        for row in plan.rows:
            _write_row(plan, row, answers)


def finished(root: Path, names: Sequence[str], seeds: Sequence[int] = (0,), *overrides: str, **options) -> list[Plan]:
    plans = plans_of(root, names, seeds, *overrides)
    finish(plans, **options)
    return plans


def entry_of(plans: Sequence[Plan], name: str) -> Entry:
    """The last row of each plan as `--row` lets it join a table: known by what its directories say."""
    runs = []
    for plan in plans:
        row = plan.rows[-1]
        before = tuple(stage.run for stage in plan.needed(row.identity))
        runs.append((Row(name, row.identity, row.run, row.checkpoint, before=before), plan))
    return Entry(name, tuple(runs))


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrites a JSON file with what `change` does to its object."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _write_stage(plan: Plan, stage: Stage, summary: dict[str, Any]) -> None:
    arm = next((row.arm for row in plan.rows if row.arm and row.identity == stage.identity), None)
    named = {"arm": {"name": arm.row_name, "learns_from": arm.learns_from, "trials": arm.trials}} if arm else {}
    stage.run.finish(
        {
            "stage": stage.method,
            "seed": plan.seed,
            "config_hash": stage.identity.config_hash,
            "fingerprint": stage.identity.fingerprint,
            "conditions": dict(stage_conditions(plan, stage)),
            **named,
            "summary": {"totals": {"tokens_trained": 1000}, **summary},
            "cost": {"wall_seconds": 36.0, "core_seconds": 360.0, "peak_memory_bytes": 2**20},
        }
    )


def _write_row(plan: Plan, row: Row, answers: Answers) -> None:
    if row.name == "base":
        conditions = {"base.revision": plan.base.revision, "base.digest": plan.base.digest}
        row.run.finish({"stage": "base", "conditions": conditions})
    elif not row.choice:
        row.checkpoint.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"):
            shutil.copy(NANO / name, row.checkpoint / name)
    evaluation = plan.recipe.evaluation
    for task in evaluated_tasks(row, evaluation):
        values = answers(row.name, plan.seed, task)
        items = [{"id": f"{task}/{i}", "scores": {METRICS[task]: value}} for i, value in enumerate(values)]
        write_jsonl(row.run.eval / f"{task}.jsonl", items)
    atomic_write_json(row.run.eval / SETTINGS_FILE, {"settings": evaluation_settings(evaluation), "few_shot": {}})
    measured = {measure: answers(row.name, plan.seed, measure) for measure in ("kl", "gold", "learned")}
    items = [
        {"id": f"p{i}", "scores": dict(zip(measured, values, strict=True))}
        for i, values in enumerate(zip(*measured.values(), strict=True))
    ]
    write_jsonl(policy_items(row, plan), items)

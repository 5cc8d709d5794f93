"""Evaluates a row's checkpoint once: what is already there for the same tasks and settings is used again."""

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from posttrain.core.files import atomic_write_json, read_json
from posttrain.eval_harness.catalog import task_version
from posttrain.eval_harness.generation_tasks import generation_tasks
from posttrain.lab.arms import LEARNED
from posttrain.lab.plan import Plan, Row
from posttrain.lab.recipe import Evaluation
from posttrain.lab.run_services import RunServices

if TYPE_CHECKING:
    from posttrain.eval_harness.best_of_n import BestOf

SETTINGS_FILE = "evaluation.json"
"""Beside the item files: what they were made with. Written last, so items without it are unfinished."""

POSED = ("chat_template", "fewshot_as_multiturn", "few_shot_seed", "dtype")
"""Settings of the evaluation that change what a model reads, or how exactly it computes."""


def ensure_evaluated(row: Row, plan: Plan, services: RunServices) -> bool:
    """Runs the tasks on what stands in the row unless their results are there; whether it had to.

    A choice has no likelihood of its own: it is evaluated on the tasks that generate, through the services.
    """
    evaluation = plan.recipe.evaluation
    if is_evaluated(row, evaluation):
        return False
    from posttrain.eval_harness.evaluation import evaluate

    marker = row.run.eval / SETTINGS_FILE
    tasks = evaluated_tasks(row, evaluation)
    # All seeds share the base's directory: another run may be evaluating it now.
    with row.run.lock(wait=True):
        if is_evaluated(row, evaluation):
            return False
        marker.unlink(missing_ok=True)
        started = time.monotonic()
        few_shot = {}
        if tasks:
            result = evaluate(
                row.checkpoint,
                tasks,
                posing=evaluation.posing,
                limit=evaluation.limit,
                batch_size=evaluation.batch_size,
                include_path=evaluation.include_path,
                out_dir=row.run.eval,
                results_path=row.run.root / "metrics.jsonl",
                identity={
                    "fingerprint": row.identity.fingerprint,
                    "config_hash": row.identity.config_hash,
                    "method": row.name,
                    "seed": plan.seed,
                },
                best_of=_best_of(row, plan, services) if row.choice else None,
            )
            few_shot = {task: result[task].few_shot for task in tasks}
        seconds = time.monotonic() - started
        record = {"settings": evaluation_settings(evaluation), "few_shot": few_shot, "seconds": seconds}
        atomic_write_json(marker, record)
    return True


def evaluated_tasks(row: Row, evaluation: Evaluation) -> tuple[str, ...]:
    """The tasks that a row has results of: all, but for a choice, which can only answer.

    A choice by a verifier has none: it would be told the answers.
    """
    if not row.choice:
        return evaluation.tasks
    assert row.arm is not None
    if set(row.arm.reward) != {LEARNED}:
        return ()
    return tuple(generation_tasks(evaluation.tasks, evaluation.include_path))


def is_evaluated(row: Row, evaluation: Evaluation) -> bool:
    """Whether the row's item files were made by exactly this evaluation."""
    marker = row.run.eval / SETTINGS_FILE
    return marker.exists() and read_json(marker).get("settings") == evaluation_settings(evaluation)


def best_of_size(row: Row) -> int:
    """Of how many samples a choice is the best."""
    from posttrain.trainers.best_of_n import Settings as BestOfNSettings

    assert row.arm is not None
    assert isinstance(row.arm.settings, BestOfNSettings)
    return row.arm.settings.n


def _best_of(row: Row, plan: Plan, services: RunServices) -> "BestOf":
    """How a choice answers: the samples of its checkpoint, picked by the recipe's own reward."""
    from posttrain.eval_harness.best_of_n import BestOf
    from posttrain.trainers.rollouts import fixed_policy

    assert row.arm is not None
    policy = fixed_policy(services.policy(plan.reference.checkpoint), row.checkpoint)
    reward = services.reward(plan.reward_model)
    return BestOf(best_of_size(row), partial(policy.complete, step=0), reward, row.arm.reward, plan.seed)


def evaluation_keys(row: Row, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The keys that a finished evaluation of the row has in the results store."""
    few_shot = read_json(row.run.eval / SETTINGS_FILE)["few_shot"]
    backend = f"best_of_{best_of_size(row)}" if row.choice else "hf"
    return [
        {
            "fingerprint": row.identity.fingerprint,
            "task": task,
            "version": task_version(task, evaluation.include_path),
            "few_shot": few_shot[task],
            "limit": evaluation.limit,
            "backend": evaluation.posing.label(backend),
        }
        for task in evaluated_tasks(row, evaluation)
    ]


def evaluation_settings(evaluation: Evaluation) -> dict[str, Any]:
    """What an evaluation is made with; two of them are the same when this is.

    `posing` holds what departs from the standard one; without it all is as it always was.
    """
    posing = {name: value for name in POSED if (value := getattr(evaluation, name)) != standard(name)}
    return {
        "tasks": {task: task_version(task, evaluation.include_path) for task in evaluation.tasks},
        "few_shot": evaluation.few_shot,
        "limit": evaluation.limit,
        "batch_size": evaluation.batch_size,
        "max_gen_toks": evaluation.max_gen_toks,
        **({"posing": posing} if posing else {}),
    }


def standard(name: str) -> Any:
    """The default of a setting of the evaluation."""
    return Evaluation.model_fields[name].default

"""Evaluates a row's checkpoint once: what is already there for the same tasks and settings is used again."""

from typing import Any

from posttrain.core.files import atomic_write_json, read_json
from posttrain.eval_harness.catalog import task_version
from posttrain.lab.graph import Row
from posttrain.lab.recipe import Evaluation

SETTINGS_FILE = "evaluation.json"
"""Beside the item files: what they were made with. Written last, so items without it are unfinished."""


def ensure_evaluated(row: Row, evaluation: Evaluation, seed: int) -> bool:
    """Runs the tasks on the row's checkpoint unless their results are there; whether it had to."""
    if is_evaluated(row, evaluation):
        return False
    from posttrain.eval_harness.evaluation import evaluate

    marker = row.run.eval / SETTINGS_FILE
    # All seeds share the base's directory: another run may be evaluating it now.
    with row.run.lock(wait=True):
        if is_evaluated(row, evaluation):
            return False
        marker.unlink(missing_ok=True)
        result = evaluate(
            row.checkpoint,
            evaluation.tasks,
            few_shot=evaluation.few_shot,
            limit=evaluation.limit,
            batch_size=evaluation.batch_size,
            include_path=evaluation.include_path,
            max_gen_toks=evaluation.max_gen_toks,
            out_dir=row.run.eval,
            results_path=row.run.root / "metrics.jsonl",
            identity={
                "fingerprint": row.identity.fingerprint,
                "config_hash": row.identity.config_hash,
                "method": row.name,
                "seed": seed,
            },
        )
        few_shot = {task: result[task].few_shot for task in evaluation.tasks}
        atomic_write_json(marker, {"settings": _settings(evaluation), "few_shot": few_shot})
    return True


def is_evaluated(row: Row, evaluation: Evaluation) -> bool:
    """Whether the row's item files were made by exactly this evaluation."""
    marker = row.run.eval / SETTINGS_FILE
    return marker.exists() and read_json(marker).get("settings") == _settings(evaluation)


def evaluation_keys(row: Row, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The keys that a finished evaluation of the row has in the results store."""
    from posttrain.eval_harness.evaluation import backend_label

    few_shot = read_json(row.run.eval / SETTINGS_FILE)["few_shot"]
    return [
        {
            "fingerprint": row.identity.fingerprint,
            "task": task,
            "version": task_version(task, evaluation.include_path),
            "few_shot": few_shot[task],
            "limit": evaluation.limit,
            "backend": backend_label("hf", max_gen_toks=evaluation.max_gen_toks),
        }
        for task in evaluation.tasks
    ]


def _settings(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "tasks": {task: task_version(task, evaluation.include_path) for task in evaluation.tasks},
        "few_shot": evaluation.few_shot,
        "limit": evaluation.limit,
        "batch_size": evaluation.batch_size,
        "max_gen_toks": evaluation.max_gen_toks,
    }

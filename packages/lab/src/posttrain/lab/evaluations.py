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
    wanted = _settings(evaluation)
    marker = row.run.eval / SETTINGS_FILE
    if marker.exists() and read_json(marker) == wanted:
        return False
    from posttrain.eval_harness.evaluation import evaluate

    with row.run.lock():
        marker.unlink(missing_ok=True)
        evaluate(
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
        atomic_write_json(marker, wanted)
    return True


def _settings(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "tasks": {task: task_version(task, evaluation.include_path) for task in evaluation.tasks},
        "few_shot": evaluation.few_shot,
        "limit": evaluation.limit,
        "batch_size": evaluation.batch_size,
        "max_gen_toks": evaluation.max_gen_toks,
    }

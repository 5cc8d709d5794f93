"""The climb's table: one row a stage in a JSONL file, appended as stages finish and rendered for people.

Rows are only ever appended, under a lock; of a stage and task that came twice the last one is shown.
"""

from pathlib import Path
from typing import Any

from rich.table import Table

from posttrain.core.errors import RequestError
from posttrain.core.files import append_durably, read_jsonl
from posttrain.eval_harness.result import TaskResult, finite

COLUMNS = ("stage", "task", "accuracy", "n")
"""What every row has; beside them `standard_error`, `metrics`, `few_shot`, `backend` and `checkpoint`."""


def append_stage(path: Path, stage: str, checkpoint: str, result: TaskResult) -> dict[str, Any]:
    """Appends a stage's result on one task and gives the row."""
    row = {
        "stage": stage,
        "task": result.task,
        "accuracy": finite(result.value),
        "standard_error": finite(result.standard_error),
        "n": result.n,
        "metrics": {
            name: {"value": finite(metric.value), "standard_error": finite(metric.standard_error)}
            for name, metric in result.metrics.items()
        },
        "few_shot": result.few_shot,
        "backend": result.backend,
        "checkpoint": checkpoint,
    }
    append_durably(path, row)
    return row


def read_stages(path: Path) -> list[dict[str, Any]]:
    """The last row of every stage and task, in the order of their first one; RequestError for another file."""
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        missing = [column for column in COLUMNS if column not in row]
        if missing:
            raise RequestError(f"{path}:{number} is no row of a stage table: it has no {', '.join(missing)}")
        latest[row["stage"], row["task"]] = row
    return list(latest.values())


def stage_table(rows: list[dict[str, Any]]) -> Table:
    """Stage, accuracy with standard error, n; the task where there are several, further metrics where there are any."""
    several = len({row["task"] for row in rows}) > 1
    further = list(dict.fromkeys(name for row in rows for name in row.get("metrics", {}) if "@" in name))
    table = Table(box=None, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    if several:
        table.add_column("task", no_wrap=True)
    for title in ("accuracy", "± SE", "n", *further):
        table.add_column(title, justify="right")
    for row in rows:
        cells = [row["stage"], *([row["task"]] if several else [])]
        cells += [_number(row["accuracy"]), _number(row.get("standard_error")), str(row["n"])]
        cells += [_number(row.get("metrics", {}).get(name, {}).get("value")) for name in further]
        table.add_row(*cells)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

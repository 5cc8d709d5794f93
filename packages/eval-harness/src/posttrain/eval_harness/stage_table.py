"""The climb's table: one row a stage in a JSONL file, appended as stages finish and rendered for people.

Rows are only ever appended, under a lock; of a stage and task that came twice the last one is shown.
"""

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from posttrain.core.errors import RequestError
from posttrain.core.files import append_durably, jsonl_object, whole_lines
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
    """The last row of every stage and task, in the order of their first one; RequestError for another file.

    Half a last line is a row that is being written, or that a crash left; the next one takes its place.
    """
    try:
        lines = whole_lines(Path(path).read_bytes())
    except OSError as error:
        raise RequestError(f"the table of stages {path} cannot be read: {error.strerror}") from None
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = jsonl_object(line, path, number)
        missing = [column for column in COLUMNS if column not in row]
        if missing:
            raise RequestError(f"{path}:{number} is no row of a stage table: it has no {', '.join(missing)}")
        told = (row["accuracy"], row.get("standard_error"), row["n"])
        if not all(isinstance(value, int | float | None) for value in told):
            raise RequestError(f"{path}:{number} is no row of a stage table: its accuracy, error or n is no number")
        latest[str(row["stage"]), str(row["task"])] = row
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
        # As text: a stage may be called sft[lora], which is no markup.
        cells: list[str | Text] = [Text(str(row[title])) for title in ("stage", "task")[: 1 + several]]
        cells += [_number(row["accuracy"]), _number(row.get("standard_error")), str(row["n"])]
        cells += [_number(row.get("metrics", {}).get(name, {}).get("value")) for name in further]
        table.add_row(*cells)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

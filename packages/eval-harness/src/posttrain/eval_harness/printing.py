"""A result for people and as JSON: a table of tasks and metrics, and a preset's own columns."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from posttrain.eval_harness.presets import Preset
from posttrain.eval_harness.result import EvaluationResult, Metric, finite


def print_result(
    result: EvaluationResult, folder: Path, store: Path, console: Console, preset: Preset | None = None
) -> None:
    """Every metric with its standard error, a preset's columns in one row, notes, and where it all lies."""
    table = Table(box=None, pad_edge=False)
    table.add_column("task and metric", no_wrap=True)
    table.add_column("value", justify="right")
    table.add_column("± SE", justify="right")
    for name in result.requested:
        task = result[name]
        table.add_row(f"{name}  [dim]v{task.version}, {task.few_shot}-shot, {task.n} items[/]")
        for metric, estimate in task.metrics.items():
            error = "" if estimate.standard_error is None else f"{estimate.standard_error:.4f}"
            table.add_row(f"  {metric}", f"{estimate.value:.4f}", error)
    console.print(result.checkpoint, markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    if preset is not None:
        console.print(_columns(preset.cells(result)))
    for note in result.notes:
        console.print(f"note: {note}", markup=False)
    told = f"{result.seconds:.1f} s; items in {folder}/, results in {store}"
    console.print(told, markup=False, highlight=False, soft_wrap=True)


def as_object(
    result: EvaluationResult,
    identity: dict[str, Any],
    folder: Path,
    preset: Preset | None = None,
    stages: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """What `--json` prints."""
    told = {
        **identity,
        "seconds": round(result.seconds, 3),
        "notes": list(result.notes),
        "out": str(folder),
        "results": [result[name].row({}) for name in result.requested],
    }
    if preset is not None:
        told["columns"] = {
            title: {"value": finite(cell.value), "standard_error": finite(cell.standard_error)}
            for title, cell in preset.cells(result).items()
        }
    return told | ({"stages": stages} if stages else {})


def _columns(cells: dict[str, Metric]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in cells:
        table.add_column(title, justify="right")
    table.add_row(
        *(
            f"{cell.value:.4f}" + ("" if cell.standard_error is None else f" ± {cell.standard_error:.4f}")
            for cell in cells.values()
        )
    )
    return table

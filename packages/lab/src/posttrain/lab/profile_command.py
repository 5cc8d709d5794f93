"""`posttrain profile RUN`: where the seconds of a run's steps went, phase by phase, from its metrics.jsonl.

Only reads, also while the run goes on. Knows no method: every `seconds/<phase>` that a step logged is a phase.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from posttrain.core.errors import RequestError
from posttrain.core.metrics import MetricsLog
from posttrain.lab.runs_command import RUNS, Json, RunsFolder, one_run

PHASE = "seconds/"
VALIDATION = f"{PHASE}validation"
TOKENS = {"generation": "tokens_generated", "update": "tokens_trained"}
"""What a phase works on, by the name under which a step logs it."""


def profile(
    run: Annotated[str, typer.Argument(help="A run's directory, its fingerprint, or the beginning of that.")],
    runs: RunsFolder = RUNS,
    as_json: Json = False,
) -> None:
    """Show where the seconds of a run's steps went."""
    directory = Path(run) if Path(run).is_dir() else one_run(runs, run).run.path
    found = profile_of(read_steps(directory))
    if as_json:
        print(json.dumps({"run": str(directory), **found}))
    else:
        _print(directory, found)


def read_steps(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl that time phases; RequestError, saying what is there, for none."""
    path = directory / "metrics.jsonl"
    rows = MetricsLog(path).rows()
    if not rows:
        raise RequestError(
            f"{path} {'is empty' if path.exists() else 'does not exist'}: the run has logged no step yet"
        )
    if not any(_is_step(row) for row in rows):
        rate = rows[-1].get("tokens_per_second")
        known = f" (its last line says {rate:,.0f} tokens/s)" if rate else ""
        raise RequestError(f"{path} times no phases{known}: only methods that sample while they train, as ppo, do")
    return [row for row in rows if any(name.startswith(PHASE) for name in row)]


def _is_step(row: Mapping[str, Any]) -> bool:
    return any(name.startswith(PHASE) and name != VALIDATION for name in row)


def profile_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By phase, costliest first: its steps, seconds of the first, the median and the last of them, their sum, the share
    of all seconds and, where it works on tokens, tokens a second; and the same of whole steps.

    A phase that not every step has (validation, save) counts those that have it, its share the seconds of all. The last
    validation of a run comes after its steps: it counts as seconds, not as a step.
    """
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(PHASE))
    steps = [row for row in rows if _is_step(row)]
    whole = [sum(row.get(name) or 0.0 for name in names) for row in steps]
    total = sum(row.get(name) or 0.0 for row in rows for name in names)
    phases = []
    for name in names:
        phase = name.removeprefix(PHASE)
        having = [row for row in rows if row.get(name) is not None]
        seconds = [row[name] for row in having]
        entry = {"phase": phase, **_summary(seconds, total)}
        tokens = sum(row.get(TOKENS.get(phase, "")) or 0.0 for row in having)
        if tokens and sum(seconds):
            entry["tokens_per_second"] = tokens / sum(seconds)
        phases.append(entry)
    return {
        "steps": len(steps),
        "first_step": steps[0]["step"],
        "last_step": steps[-1]["step"],
        "phases": sorted(phases, key=lambda entry: -entry["seconds"]),
        "whole": _summary(whole, total),
    }


def _summary(seconds: Sequence[float], total: float) -> dict[str, Any]:
    return {
        "steps": len(seconds),
        "first": seconds[0],
        "median": median(seconds),
        "last": seconds[-1],
        "seconds": sum(seconds),
        "share": sum(seconds) / total if total else 0.0,
    }


def _print(directory: Path, found: dict[str, Any]) -> None:
    table = Table("phase", *("median s", "share", "first s", "last s", "in all s", "steps", "tokens/s"), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for entry in [*found["phases"], {"phase": "whole step", **found["whole"]}]:
        rate = entry.get("tokens_per_second")
        table.add_row(
            entry["phase"],
            f"{entry['median']:.3f}",
            f"{entry['share']:.1%}",
            f"{entry['first']:.3f}",
            f"{entry['last']:.3f}",
            f"{entry['seconds']:.1f}",
            str(entry["steps"]),
            f"{rate:,.0f}" if rate else "",
        )
    Console().print(f"{directory}: steps {found['first_step']} to {found['last_step']}", highlight=False)
    Console().print(table)

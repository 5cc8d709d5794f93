"""Which tasks let the model write an answer, rather than ask how likely given ones are.

A policy that is a choice among samples, such as best of n, answers the former only: it has no likelihood of its own
that could be computed. Reads task files, and no data; lm-eval is loaded only for what lies outside the known folders.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.core.errors import RequestError
from posttrain.eval_harness.catalog import task_folders, task_manager
from posttrain.eval_harness.task_files import leaves, read_entries

GENERATION = "generate_until"
"""lm-eval's output type of a task whose answer is generated; also what a task file means that names none."""


def generation_tasks(names: Sequence[str], include_path: Path | None = None) -> list[str]:
    """Those of the named tasks, groups and tags all of whose tasks are generation tasks, in the order given.

    Tasks written in Python are not among them: what they ask is not in their file (squadv2 asks both). RequestError for
    a name that no task has.
    """
    index: Mapping[str, Any] = read_entries(task_folders(names, include_path))
    if not all(name in index for name in names):
        from posttrain.eval_harness.quiet import quiet

        with quiet():
            index = task_manager(names, include_path).task_index
    tasks = {name: _tasks(index, name) for name in names}
    return [name for name, entries in tasks.items() if entries and all(map(_generates, entries))]


def refuse_likelihood_tasks(tasks: Mapping[str, Any], who: str = "best of n") -> None:
    """RequestError when one of lm-eval's loaded tasks, by name, is not a generation task."""
    others = {name: task.OUTPUT_TYPE for name, task in tasks.items() if task.OUTPUT_TYPE != GENERATION}
    if others:
        name, kind = next(iter(others.items()))
        raise RequestError(
            f"{who} has no likelihoods, which {len(others)} of {len(tasks)} tasks ask for: {name} is a "
            f"{kind} task; name tasks that generate an answer, such as nano_problems, gsm8k, ifeval"
        )


def _tasks(index: Mapping[str, Any], name: str) -> list[Any]:
    """The entries of the tasks that a name stands for, without those of the groups and tags on the way."""
    entries = [index[leaf] for leaf in leaves(index, [name])]
    return [entry for entry in entries if "task" in (entry.cfg or {}) and "group" not in entry.cfg]


def _generates(entry: Any) -> bool:
    return "class" not in entry.cfg and entry.cfg.get("output_type", GENERATION) == GENERATION

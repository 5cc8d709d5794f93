"""What a generation task asks: each item's prompt as text, and the reference that a verifier needs to score an answer.

For whoever judges answers that an evaluation left in its item file, which holds the answers and no prompts. Prompts are
the bare questions, without the examples before them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core.errors import RequestError
from posttrain.eval_harness.catalog import load_tasks
from posttrain.eval_harness.generation_tasks import GENERATION
from posttrain.eval_harness.quiet import quiet
from posttrain.eval_harness.raw_results import item_id


@dataclass(frozen=True)
class Asked:
    """One item."""

    prompt: str
    reference: Any = None
    """As the reward service's verifiers take it; None for a task of which it is not known."""


def asked(task: str, include_path: Path | None = None) -> dict[str, Asked]:
    """Every item of the task by the id that it has in item files, in the task's order.

    RequestError for a task that there is not, a group, or a task that generates nothing.
    """
    with quiet():
        loaded = load_tasks([task], include_path)["tasks"]
        if task not in loaded:
            raise RequestError(f"'{task}' is a group of tasks; name one of them")
        built = loaded[task]
        if built.OUTPUT_TYPE != GENERATION:
            raise RequestError(
                f"task {task} is a {built.OUTPUT_TYPE} task, which has no answers; name one that generates"
            )
        docs = list(built.eval_docs)
        reference = REFERENCES.get(task.removesuffix("_validation"), lambda doc: None)
        return {
            item_id(doc, number): Asked(str(built.doc_to_text(doc)), reference(doc)) for number, doc in enumerate(docs)
        }


def has_references(task: str) -> bool:
    """Whether it is known what a verifier needs to score answers to this task."""
    return task.removesuffix("_validation") in REFERENCES


def _instructions(doc: Mapping[str, Any]) -> dict[str, Any]:
    names, arguments = doc["instruction_id_list"], json.loads(doc["kwargs"])
    return {"instructions": [{"id": name, "kwargs": given} for name, given in zip(names, arguments, strict=True)]}


def _after_hashes(doc: Mapping[str, Any]) -> str:
    return str(doc["answer"]).rpartition("####")[2].strip()


REFERENCES: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "nano_instructions": _instructions,
    "nano_problems": lambda doc: {"answer": _after_hashes(doc)},
    "gsm8k": lambda doc: {"gsm8k": _after_hashes(doc)},
    "gsm8k_climb": lambda doc: {"gsm8k": _after_hashes(doc)},
}
"""By task, how a doc of it becomes what the verifiers of posttrain.reward_model take."""

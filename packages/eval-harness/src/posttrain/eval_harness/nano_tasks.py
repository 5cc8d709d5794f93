"""What the nano task files call: their items, the mc2 score, and the checks of verifiable instructions.

Items come from posttrain.data.nano by generator and seed, so no file is written and nothing is downloaded. The task
files name these functions by module path: stock `lm_eval --include_path` runs them as well.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from posttrain.data.nano.corpus import evaluation_items
from posttrain.data.nano.instructions import check


def dataset(task: Any, splits: Sequence[Any], **_: Any) -> dict[str, datasets.Dataset]:
    """Items of one nano task by split. lm-eval passes the task's metadata too, which is not needed.

    Only the splits asked for are made: a validation task cannot see a test item.
    """
    return {
        split: datasets.Dataset.from_list([_storable(i) for i in evaluation_items(task, split)]) for split in splits
    }


def _storable(item: Mapping[str, Any]) -> dict[str, Any]:
    """The item with its keyword arguments as JSON: a table's column would give every row the keys of all rows."""
    return dict(item) | {"kwargs": json.dumps(item["kwargs"])} if "kwargs" in item else dict(item)


def mc2(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """TruthfulQA's mc2 (Lin et al. 2022): probability of the true answers, of that of all answers.

    `results` holds (log-likelihood, is greedy) of each choice. As lm-eval's, but normalised before leaving
    logarithms: long answers of a small model underflow to 0 / 0 otherwise.
    """
    loglikelihoods = np.array([loglikelihood for loglikelihood, _ in results])
    p = np.exp(loglikelihoods - loglikelihoods.max())
    return {"acc": float(p[np.array(doc["mc2_targets"]["labels"]) == 1].sum() / p.sum())}


def instructions(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """IFEval's four metrics (Zhou et al. 2023) of one answer; an empty answer obeys nothing."""
    asked = list(zip(doc["instruction_id_list"], json.loads(doc["kwargs"]), strict=True))
    strict = [check(name, kwargs, results[0]) for name, kwargs in asked]
    loose = [check(name, kwargs, results[0], strict=False) for name, kwargs in asked]
    return {
        "prompt_level_strict_acc": all(strict),
        "inst_level_strict_acc": strict,
        "prompt_level_loose_acc": all(loose),
        "inst_level_loose_acc": loose,
    }


def mean_over_instructions(items: Sequence[Sequence[bool]]) -> float:
    """Share of obeyed instructions over all prompts."""
    return float(np.mean([obeyed for prompt in items for obeyed in prompt]))

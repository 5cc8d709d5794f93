"""Named evaluations: tasks, how they are posed, and the columns in which their result is told.

`lab` is the evaluation of the reference lab: MMLU, GSM8K, TruthfulQA and IFEval by lm-eval at its own defaults, which
are 0 examples for MMLU, 5 for GSM8K, a primer inside TruthfulQA's prompt and none for IFEval; no chat template, since
stock lm-eval applies none unless told to (its published base row can only be read so); bf16; seed 42.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.core.errors import RequestError, suggest
from posttrain.eval_harness.posing import Posing
from posttrain.eval_harness.result import EvaluationResult, Metric


@dataclass(frozen=True)
class Preset:
    """What a name stands for."""

    tasks: tuple[str, ...]
    posing: Posing
    """For a GPU of this process; `dtype` does not hold on a CPU, which computes in float32, and for a service."""
    columns: Mapping[str, tuple[str, str]]
    """Title → task and metric."""
    seed: int

    def cells(self, result: EvaluationResult) -> dict[str, Metric]:
        """The columns of a result, of those tasks that it holds."""
        return {
            title: result[task].metrics[metric]
            for title, (task, metric) in self.columns.items()
            if task in result.tasks
        }


PRESETS = {
    "lab": Preset(
        tasks=("mmlu", "gsm8k", "truthfulqa_mc2", "ifeval"),
        posing=Posing(apply_chat_template=False, few_shot_seed=42, dtype="bfloat16"),
        columns={
            "MMLU": ("mmlu", "acc"),
            "GSM8K strict": ("gsm8k", "exact_match,strict-match"),
            "TruthfulQA mc2": ("truthfulqa_mc2", "acc"),
            "IFEval prompt-strict": ("ifeval", "prompt_level_strict_acc"),
            "IFEval inst-strict": ("ifeval", "inst_level_strict_acc"),
        },
        seed=42,
    )
}


def preset(name: str) -> Preset:
    """The preset of that name; RequestError when there is none."""
    if name not in PRESETS:
        raise RequestError(f"unknown preset '{name}' {suggest(name, PRESETS)}")
    return PRESETS[name]

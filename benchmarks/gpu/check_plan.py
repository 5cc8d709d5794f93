"""Which stages the check runs, with which settings, and what `posttrain plan` says of the trainer's memory in each.

Settings and predictions come from one recipe, so what is predicted is what is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.core.files import atomic_write_text
from posttrain.lab.forecast import forecast, rows_of
from posttrain.lab.gpus import find_gpu
from posttrain.lab.models import resolve_shape
from posttrain.lab.recipe import load_recipe
from posttrain.lab.stage_walk import needed_stages
from posttrain.trainers.registry import get_method

ADAPTERS = ("full", "lora")
TENSORS = ("weights", "gradients", "optimiser state", "activations and logits", "reference model", "critic")
"""Parts of the plan that torch's allocator of the trainer counts: not its reserve, contexts and services."""


@dataclass(frozen=True)
class CheckSizes:
    """How much a stage does. Every row is as long as the settings let through, as the plan assumes."""

    model: str
    steps: int
    batch: int
    """Examples of an offline step, completions of an online one; a multiple of 4."""
    micro_batch: int
    """Offline examples on the device at once."""
    length: int
    """Tokens of a sequence: half of them prompt."""
    new: int
    """Tokens of a completion."""


GPU = CheckSizes("random:qwen2.5-0.5b", steps=4, batch=32, micro_batch=4, length=512, new=256)
CPU = CheckSizes("random:qwen2-tiny", steps=2, batch=4, micro_batch=2, length=64, new=8)


@dataclass(frozen=True)
class StagePlan:
    """A stage to run, and the bytes that it is expected to take."""

    stage: str
    adapter: str
    settings: dict[str, Any]
    data: Path
    reads_reference: bool
    predicted: Mapping[str, int]


def stage_plans(folder: Path, adapter: str, sizes: CheckSizes) -> list[StagePlan]:
    """SFT, the reward model, DPO, PPO and GRPO with one adapter setting, on the rows in `folder`."""
    file = folder / "recipe.yaml"
    atomic_write_text(file, yaml.safe_dump(_recipe(folder, adapter, sizes)))
    recipe = load_recipe(str(file))
    shape, card = resolve_shape(recipe.model, None), find_gpu("l4")  # the trainer's bytes are the same on any card
    stages = needed_stages(recipe, ("sft", "dpo", "ppo", "grpo"))
    by_name = {stage.name: stage for stage in stages}
    plans = []
    for stage in stages:
        found = forecast(recipe, stage, shape, card, rows_of(recipe, stage, by_name))
        described = get_method(stage.method)
        plans.append(
            StagePlan(
                stage.name,
                adapter,
                stage.settings.model_dump(mode="json"),
                folder / f"{stage.field}.jsonl",
                described.reads_reference,
                {part: size for part, size in found.memory.items() if part in TENSORS},
            )
        )
    return plans


def _recipe(folder: Path, adapter: str, sizes: CheckSizes) -> dict[str, Any]:
    offline = {
        "precision": "bf16",
        "epochs": 1,
        "batch_size": sizes.batch,
        "micro_batch_size": sizes.micro_batch,
        "max_length": sizes.length,
        "optimizer": "adamw",
        "lr": 1e-5,
    }
    online = {
        "precision": "bf16",
        "steps": sizes.steps,
        "max_new_tokens": sizes.new,
        "minibatches": 2,
        "micro_batch_tokens": sizes.micro_batch * sizes.length,
        "lr": 1e-6,
        "importance_cap": 2.0,
    }
    group = {"prompts_per_step": sizes.batch // 4, "samples_per_prompt": 4}
    rows = {name: {"path": str(folder / f"{name}.jsonl")} for name in ("sft", "pairs", "prompts")}
    return {
        "name": f"gpu-check-{adapter}",
        "model": sizes.model,
        "adapter": adapter,
        "data": {**rows, "validation": rows["prompts"]},
        "expected": {"tokens": {"prompt": sizes.length // 2, "pair_prompt": sizes.length // 2}},
        # Only the table of a comparison would ask for it.
        "evaluation": {"tasks": ["nano_problems"], "table": {"nano_problems/exact_match": "problems"}},
        "sft": offline,
        "dpo": offline,
        "rm": offline,
        "ppo": {**online, "prompts_per_step": sizes.batch, "critic_lr": 1e-5},
        # A random model ends no completion, so that all have one reward.
        "grpo": {**online, **group, "refuse_constant_groups": False},
    }

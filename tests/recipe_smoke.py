"""The shipped recipes made small: the same stages, methods and data, on an untrained model of two layers, a few steps.

What is changed is sizes, and 4-bit weights where this platform has none; never what a stage does. Rows come in their
real schema: from the real files of GSM8K and HH-RLHF where they are ($POSTTRAIN_DATA or ../shared/data), else from our
own under tests/fixtures/hub.
"""

import os
from importlib.util import find_spec
from pathlib import Path

from posttrain.lab.recipe import Recipe, load_recipe
from posttrain.lab.stage_walk import needed_stages
from posttrain.trainers.offline import OfflineSettings
from posttrain.trainers.online_settings import GroupSettings, OnlineSettings

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures" / "hub"
REAL = Path(os.environ.get("POSTTRAIN_DATA", ROOT.parent / "shared" / "data"))
GSM8K, HH = "openai/gsm8k", "Anthropic/hh-rlhf"
ROWS = 12

RECIPES = {
    "qwen2.5-0.5b": ("rm", "dpo", "kto", "orpo", "simpo", "ppo", "grpo", "rloo", "grpo-verifier", "best_of_n"),
    "gsm8k": ("rm", "dpo", "ppo", "grpo", "rloo", "simpo", "kto", "orpo", "dpo-own", "best_of_n"),
    "simpo-onpolicy": ("simpo", "dpo", "simpo-offline", "dpo-offline"),
}
"""Recipe to the arms that bring every stage it can have: each with the stages before it."""


def small_recipe(name: str) -> Recipe:
    """The recipe with a few steps a stage; RequestError where it is not what its settings take."""
    return load_recipe(name, small(name))


def small(name: str) -> list[str]:
    """The overrides that make a recipe small."""
    recipe = load_recipe(name)
    # What `auto` is on a GPU; on a CPU it would compile its own kernel first.
    changes = ["model=random:qwen2-tiny", "engine=torch", "threads=1"]
    changes += ["on_policy.chunk_prompts=8", "on_policy.max_new_tokens=24"]
    changes += ["evaluation.policy_prompts=4", "evaluation.policy_max_tokens=24", "evaluation.limit=2"]
    changes += [f"best_of_n.{change}" for change in ("n=2", "samples_per_prompt=2")]
    changes += [f"on_policy.max_prompt_tokens={LONGEST}", f"best_of_n.max_prompt_tokens={LONGEST}"]
    # An untrained model solves nothing: verifiers would find no better and worse answer.
    changes += ["on_policy.source=rm", "grpo.refuse_constant_groups=false"]
    for field in ("sft", "sft_validation", "pairs", "prompts", "preference_prompts", "validation", "measured"):
        if getattr(recipe.data, field) is not None:
            changes.append(f"data.{field}.rows={ROWS}")
    if recipe.data.pairs and recipe.data.pairs.skip:
        changes.append("data.pairs.skip=8")
    if recipe.data.pairs and recipe.data.pairs.path == HH and _real(HH) and not list((REAL / HH).rglob("train*")):
        changes.append("data.pairs.split=test")
    if find_spec("bitsandbytes") is None:
        changes.append("sft.adapter=lora")
    for stage in needed_stages(recipe, RECIPES[name]):
        if stage.name == stage.method:
            changes += [f"{stage.method}.{change}" for change in _sizes(stage.settings)]
    return list(dict.fromkeys(changes))


LONGEST = 1024
"""Tokens of a prompt: nano's are shorter than Qwen2.5's, so that there are more."""


def _sizes(settings: object) -> list[str]:
    if isinstance(settings, OnlineSettings):
        sizes = ["steps=2", "minibatches=2", "max_new_tokens=24", f"max_prompt_tokens={LONGEST}"]
        groups = isinstance(settings, GroupSettings)
        return [*sizes, "prompts_per_step=4", *(["samples_per_prompt=2"] if groups else []), "micro_batch_tokens=4096"]
    if isinstance(settings, OfflineSettings):
        more = ["offset_prompts=2", "offset_max_tokens=24"] if hasattr(settings, "offset_prompts") else []
        return ["batch_size=4", "micro_batch_size=2", "epochs=1", "max_length=1536", "held_out=0.25", *more]
    return []


def mirror(folder: Path) -> Path:
    """A data mirror in `folder`: every data set of the fixtures, and in place of ours the real GSM8K and HH-RLHF."""
    for data_set in sorted(FIXTURES.glob("*/*")):
        place = folder / data_set.relative_to(FIXTURES)
        place.parent.mkdir(parents=True, exist_ok=True)
        name = data_set.relative_to(FIXTURES).as_posix()
        place.symlink_to(REAL / name if name in (GSM8K, HH) and _real(name) else data_set)
    return folder


def _real(name: str) -> bool:
    return (REAL / name).is_dir()

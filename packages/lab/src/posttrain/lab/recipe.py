"""A recipe: one YAML file that defines an experiment at one scale, validated whole before anything runs.

It names the base model, the data of every stage, the reward, the evaluation, and each method's settings (whose
classes, with their vetted defaults, live in the method's own file).
"""

from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from posttrain.core.config import Settings, apply_overrides, read_yaml, validate
from posttrain.core.errors import RequestError, suggest
from posttrain.data.sources import Source
from posttrain.rollout.settings import EngineKind, VllmSettings
from posttrain.trainers.ppo import Settings as PPOSettings
from posttrain.trainers.preferences import Settings as PreferenceSettings
from posttrain.trainers.reward_model import Settings as RewardModelSettings
from posttrain.trainers.sft import Settings as SFTSettings

LEARNED = "rm"
"""The reward source that is the recipe's own reward model."""


def _weights(value: object) -> object:
    return {value: 1.0} if isinstance(value, str) else value


class RecipeData(Settings):
    """Where each stage's rows come from."""

    sft: Source
    """Demonstrations."""
    sft_validation: Source | None = None
    """Held-out demonstrations for loss and perplexity; none: a share of `sft` is held out."""
    pairs: Source | None = None
    """Preference pairs that exist; none: the SFT policy's own samples on `preference_prompts` are compared."""
    preference_prompts: Source | None = None
    """Prompts whose sampled answers become preference pairs."""
    prompts: Source
    """Prompts that reinforcement learning samples from."""
    validation: Source
    """Held-out prompts for KL and gold reward."""


class Evaluation(Settings):
    """What every checkpoint is evaluated on; equal for all rows of a table."""

    tasks: tuple[str, ...]
    """lm-eval task names, ours or any other."""
    table: dict[str, str] = Field(min_length=1)
    """What the table shows, in its order: `task/metric: column title`."""
    few_shot: int | None = None
    """Examples before each question; none: the task's own number."""
    limit: int | None = Field(default=None, gt=1)
    """Items a task; none: all. One item has no standard error."""
    batch_size: int = Field(default=128, gt=0)
    """Sequences a forward pass."""
    max_gen_toks: int | None = Field(default=None, gt=0)
    """Longest generated answer in tokens; none: the task's own limit."""
    include_path: Path | None = None
    """A folder with the user's own lm-eval tasks."""
    policy_prompts: int = Field(default=512, gt=1)
    """Validation prompts on which KL, gold and learned reward are measured."""
    policy_max_tokens: int = Field(default=96, gt=0)
    """Longest completion in that measurement."""

    @model_validator(mode="after")
    def _known_tasks(self) -> Self:
        for key in self.table:
            task, slash, metric = key.partition("/")
            if task not in self.tasks or not slash or not metric:
                raise ValueError(f"table entry '{key}' must be task/metric with a task of {', '.join(self.tasks)}")
        return self

    def columns(self) -> dict[tuple[str, str], str]:
        """(task, metric) to the column's title."""
        return {(key.partition("/")[0], key.partition("/")[2]): title for key, title in self.table.items()}


class Recipe(Settings):
    """An experiment, but for its method and seed."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Names the folder under runs/."""
    description: str = ""
    """A sentence for people."""
    model: str
    """The base: `nano`, a folder, or a Hub id."""
    revision: str | None = None
    """The Hub commit, tag or branch of the base; resolved to a commit and recorded."""
    data: RecipeData
    """Rows of every stage."""
    reward: Annotated[dict[str, float], BeforeValidator(_weights)] = Field(default={LEARNED: 1.0}, min_length=1)
    """Weights of the named reward sources; a name alone has weight 1. `rm` is the recipe's own reward model."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Further reward sources: a name to `path/to/file.py:function` or to a reward-model checkpoint."""
    gold: str = "verifier"
    """The verifier that is always logged and measured beside the learned reward."""
    evaluation: Evaluation
    """How every checkpoint is evaluated."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of trainer and services; none: all cores. Another number gives other last digits."""
    engine: EngineKind = "auto"
    """What the run's own policy service generates with; `vllm` runs in an environment of its own (`make vllm`)."""
    vllm: VllmSettings = VllmSettings()
    """For `engine: vllm`."""
    sft: SFTSettings = SFTSettings()
    """Supervised fine-tuning."""
    preferences: PreferenceSettings = PreferenceSettings()
    """Pairs sampled from the SFT policy."""
    rm: RewardModelSettings = RewardModelSettings()
    """The reward model."""
    ppo: PPOSettings = PPOSettings()
    """PPO."""

    @cached_property
    def uses_reward_model(self) -> bool:
        """Whether the reward has a learned part."""
        return LEARNED in self.reward


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    folder = files("posttrain.lab") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe called so, or in that YAML file, with `key=value` overrides put in; RequestError for what is wrong."""
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
    elif name_or_path in recipe_names():
        path = Path(str(files("posttrain.lab") / "recipes" / f"{name_or_path}.yaml"))
    else:
        raise RequestError(f"unknown recipe '{name_or_path}' {suggest(name_or_path, recipe_names())}")
    return validate(Recipe, apply_overrides(read_yaml(path), overrides), f"recipe {name_or_path}")

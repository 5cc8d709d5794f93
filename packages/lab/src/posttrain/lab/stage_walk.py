"""Which stages an arm needs, by its recipe alone: no model, data or service is looked at.

The stages and their order are those of posttrain.lab.graph, which also says what identifies each and needs all that.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from posttrain.core.config import Settings
from posttrain.core.errors import RequestError
from posttrain.data.sources import Source
from posttrain.lab.arms import LEARNED, Arm
from posttrain.lab.plan import BASE, REFERENCE
from posttrain.lab.recipe import Recipe


@dataclass(frozen=True)
class NeededStage:
    """A stage as its recipe has it."""

    name: str
    """The arm's, `rm`, or `preferences`."""
    method: str
    settings: Settings
    field: str
    """Of the recipe's data, what it learns from; `made` for pairs that a stage makes."""
    learned_reward: bool = False
    """Whether it is scored by the recipe's own reward model."""
    pairs_of: str = ""
    """For `made`: the stage that makes its pairs."""


def needed_stages(recipe: Recipe, names: Iterable[str]) -> list[NeededStage]:
    """The stages of all named arms, each once, every one after what it needs; RequestError for an unknown name."""
    walk = _Walk(recipe)
    for name in names:
        walk.policy(REFERENCE, ())
        arm = recipe.arm(name)
        if arm.described.makes == "pairs":
            walk.pairs("preferences", recipe.arm("preferences").settings)
        elif arm.described.makes == "reward model":
            walk.reward_model()
        else:
            walk.policy(name, ())
    return list(walk.stages.values())


def data_source(recipe: Recipe, field: str) -> Source | None:
    """The source under a field of the recipe's data."""
    source: Source | None = getattr(recipe.data, field, None)
    return source


class _Walk:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.stages: dict[str, NeededStage] = {}

    def policy(self, name: str, chain: tuple[str, ...]) -> None:
        if name == BASE or name in self.stages:
            return
        if name in chain:
            raise RequestError(f"'from' goes in a circle: {' → '.join((*chain, name))}; let one of them start at sft")
        arm = self.recipe.arm(name)
        self.policy(arm.start, (*chain, name))
        self.add(arm)

    def add(self, arm: Arm) -> None:
        described = arm.described
        field, made_by = "prompts", ""
        if described.trains_on == "demonstrations":
            field = "sft"
        elif described.trains_on == "pairs":
            field, made_by = self.pairs_of(arm.pairs)
        elif described.makes == "choice":
            field = "measured"
        learned = described.scores and LEARNED in arm.reward
        if learned:
            self.reward_model()
        self.stages[arm.name] = NeededStage(arm.name, arm.method, arm.settings, field, learned, made_by)

    def pairs_of(self, kind: str) -> tuple[str, str]:
        if kind == "offline":
            if self.recipe.data.pairs:
                return "pairs", ""
            settings, name = self.recipe.arm("preferences").settings, "preferences"
        else:
            settings, name = self.recipe.on_policy, "on-policy pairs"
        self.pairs(name, settings)
        return "made", name

    def pairs(self, name: str, settings: Settings) -> None:
        learned = getattr(settings, "source", None) == LEARNED
        if name not in self.stages:
            if learned:
                self.reward_model()
            self.stages[name] = NeededStage(name, "preferences", settings, "preference_prompts", learned)

    def reward_model(self) -> None:
        if LEARNED not in self.stages:
            field, made_by = self.pairs_of("offline")
            arm = self.recipe.arm(LEARNED)
            self.stages[LEARNED] = NeededStage(LEARNED, LEARNED, arm.settings, field, pairs_of=made_by)

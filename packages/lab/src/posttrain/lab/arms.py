"""An arm of the experiment: one method with its settings, where it starts, what it learns from.

A recipe's section under a method's name is an arm, and so is a variant, which says its `method` and what differs from
that method's section. Both may say, beside the method's own settings, `from` (where it starts), `pairs` (offline or
on_policy) and `reward`. A setting is, in rising order, the class's default, what tuning chose for the method, what its
section says, what tuning chose for the variant, what the variant says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from posttrain.core.config import Settings, validate
from posttrain.core.errors import RequestError, suggest
from posttrain.trainers.registry import Method, get_method, method_names

if TYPE_CHECKING:
    from posttrain.lab.recipe import Recipe

LEARNED = "rm"
"""The reward source that is the recipe's own reward model."""

PairsKind = Literal["offline", "on_policy"]


def _weights(value: object) -> object:
    return {value: 1.0} if isinstance(value, str) else value


Weights = Annotated[dict[str, float], BeforeValidator(_weights)]
"""Reward source to weight; a name alone has weight 1."""


class Tuned(Settings):
    """What `posttrain tune` chose for an arm, and where its trials are recorded."""

    values: dict[str, Any]
    """The chosen settings."""
    trials: int = Field(ge=1)
    """How many were tried."""
    metric: str
    """What decided, on the validation split."""
    record: str
    """The file with every trial."""


class _Place(Settings):
    """What an arm says beside its method's settings."""

    start: str | None = Field(default=None, alias="from")
    pairs: PairsKind | None = None
    reward: Weights | None = Field(default=None, min_length=1)


@dataclass(frozen=True)
class Arm:
    """A method as the recipe has it."""

    name: str
    """The method's name, or the variant's."""
    method: str
    described: Method
    settings: Settings
    start: str
    """`base`, `sft` or another arm."""
    pairs: PairsKind
    """Which pairs, for a method that trains on pairs."""
    reward: Mapping[str, float]
    """What it learns from, for a method that learns from a reward."""
    trials: int
    """Settings tried for it; 0 where the ones in use are not what tuning chose."""

    @property
    def learns_from(self) -> str:
        """In words, for the table: like is compared with like."""
        if self.described.scores:
            return reward_name(self.reward)
        if self.described.trains_on == "pairs":
            return "on-policy pairs" if self.pairs == "on_policy" else "offline pairs"
        return self.described.trains_on

    @property
    def row_name(self) -> str:
        """The arm's name, with what a method under its own name does otherwise than by default."""
        if self.name != self.method:
            return self.name
        parts = [reward_name(self.reward)] if self.described.scores and self.reward != {LEARNED: 1.0} else []
        if self.described.trains_on == "pairs" and self.pairs != "offline":
            parts.append("on-policy pairs")
        if self.start != self.described.start:
            parts.append(f"from {self.start}")
        return f"{self.name} ({', '.join(parts)})" if parts else self.name


def reward_name(reward: Mapping[str, float]) -> str:
    """Sources with their weights: `rm + 0.5·verifier`."""
    return " + ".join(name if weight == 1 else f"{weight:g}·{name}" for name, weight in reward.items())


def resolve_arm(recipe: "Recipe", name: str) -> Arm:
    """The arm called `name`; RequestError for an unknown name, method, setting or place."""
    known = [*method_names(), *recipe.variants]
    if name not in known:
        raise RequestError(f"unknown method '{name}' {suggest(name, known)}")
    variant: dict[str, Any] = dict(recipe.variants.get(name, {}))
    if name in recipe.variants and name in method_names():
        raise RequestError(f"variants.{name} has the name of a method; give it another")
    method = variant.pop("method", None) if name in recipe.variants else name
    if method is None:
        raise RequestError(f"variants.{name} does not say its method; add `method: …`")
    described = get_method(str(method))
    block = recipe.blocks.get(method, {})
    tuned = {arm: recipe.tuned[arm].values if arm in recipe.tuned else {} for arm in (method, name)}
    merged = tuned[method] | block | ({} if name == method else tuned[name] | variant)
    place: dict[str, Any] = {key: merged.pop(key) for key in ("from", "pairs", "reward") if key in merged}
    where = f"variants.{name}" if name in recipe.variants else name
    settings = _validated(described.settings, merged, where)
    placed = _validated(_Place, place, where)
    if placed.pairs and described.trains_on != "pairs":
        raise RequestError(f"{where}.pairs: {method} does not train on pairs; remove it")
    if placed.reward and not described.scores:
        raise RequestError(f"{where}.reward: {method} learns from no reward; remove it")
    reward = dict(placed.reward or recipe.reward)
    if described.scores:
        settings = settings.model_copy(update={"rewards": reward, "gold_source": recipe.gold})
    settings = _within_budget(recipe, described, settings)
    chosen = recipe.tuned.get(name)
    in_use = chosen is not None and all(getattr(settings, key) == value for key, value in chosen.values.items())
    return Arm(
        name,
        method,
        described,
        settings,
        placed.start or described.start,
        placed.pairs or "offline",
        reward,
        chosen.trials if chosen and in_use else 0,
    )


def _validated(cls: Any, mapping: Mapping[str, Any], where: str) -> Any:
    """`validate`, with the arm's name before the key that it complains of."""
    try:
        return validate(cls, mapping, where)
    except RequestError as error:
        raise RequestError(str(error).replace(f"{where}: unknown key '", f"unknown key '{where}.", 1)) from None


def _within_budget(recipe: "Recipe", described: Method, settings: Settings) -> Settings:
    """The bounds of the comparison apply to policies that are compared, not to what they are made from."""
    bounds = {"max_tokens": recipe.budget.tokens, "max_seconds": recipe.budget.seconds}
    known = {key: value for key, value in bounds.items() if value is not None and key in type(settings).model_fields}
    is_compared = described.makes == "policy" and described.trains_on != "demonstrations"
    return settings.model_copy(update=known) if known and is_compared else settings

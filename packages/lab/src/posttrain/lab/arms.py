"""An arm of the experiment: one method with its settings, where it starts, what it learns from.

A recipe's section under a method's name is an arm, and so is a variant, which says its `method` and what differs from
that method's section. Both may say, beside the method's own settings, `from` (where it starts), `pairs` (offline or
on_policy) and `reward`. A setting is, in rising order, the class's default, what the recipe says for all methods
(`SHARED`), the first value of the method's grid in the recipe, what tuning chose for the method, what its section says,
then the first value of the variant's own grid, what tuning chose for the variant, what the variant says.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from posttrain.core.config import Settings, parse_overrides, validate
from posttrain.core.errors import RequestError, suggest
from posttrain.trainers.model_settings import Adapter
from posttrain.trainers.registry import Method, get_method, method_names

if TYPE_CHECKING:
    from posttrain.lab.recipe import Recipe

LEARNED = "rm"
"""The reward source that is the recipe's own reward model."""

PairsKind = Literal["offline", "on_policy"]

PAIRS: Mapping[PairsKind, str] = {"offline": "offline pairs", "on_policy": "on-policy pairs"}
"""Kinds of pairs in the words of the table."""

NOT_TRIED = frozenset({"length", "max_tokens", "max_seconds", "rewards", "gold_source", "variant"})
"""Settings that no grid varies: how far a trial goes, what it learns from, which published variant it is."""

SHARED = ("adapter", "precision", "attention", "gradient_checkpointing", "liger")
"""How models are held: what a recipe may say once for all methods that have the setting."""

BOUNDS = {"tokens": "max_tokens", "seconds": "max_seconds"}
"""A budget's bounds to the settings that keep them."""

RESERVED = ("base", "all")
"""What a variant cannot be called: the untrained model's row, and `--methods all`."""


def _weights(value: object) -> object:
    return {value: 1.0} if isinstance(value, str) else value


def _not_zero(weight: float) -> float:
    if weight == 0:
        raise ValueError("must not be 0; leave the source out")
    return weight


Weight = Annotated[float, AfterValidator(_not_zero)]
Weights = Annotated[dict[str, Weight], BeforeValidator(_weights)]
"""Reward source to weight; a name alone has weight 1."""


class Tuned(Settings):
    """What `posttrain tune` chose for an arm, and where its trials are recorded."""

    values: dict[str, Any]
    """The chosen settings."""
    learns_from: str
    """What all trials learnt from, as `Arm.learns_from` says it."""
    start: str
    """Where they started."""
    trials: int = Field(ge=1)
    """How many were tried."""
    metric: str
    """What decided, on the validation split."""
    record: str
    """The file with every trial."""
    variant: str | None = None
    """The setting `variant` of all trials, for a method that has it; none: its default."""
    adapter: Literal["lora", "qlora"] | None = None
    """The kind of adapter that all trials trained; none: all weights."""


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
    """Settings tried for it by itself; 0 where the ones in use are not what tuning chose for it, or where the trials
    learnt from something else or started elsewhere."""
    grid: Mapping[str, tuple[Any, ...]]
    """What `posttrain tune` tries for it: the recipe's grid, else the method's."""
    unbound: tuple[str, ...] = ()
    """Bounds of the recipe's budget that its method has no setting for."""

    @property
    def learns_from(self) -> str:
        """In words, for the table: like is compared with like."""
        if self.described.scores:
            return reward_name(self.reward)
        if self.described.trains_on == "pairs":
            return PAIRS[self.pairs]
        return self.described.trains_on

    @property
    def row_name(self) -> str:
        """The arm's name, with what a method under its own name does otherwise than by default."""
        if self.name != self.method:
            return self.name
        parts = [reward_name(self.reward)] if self.described.scores and self.reward != {LEARNED: 1.0} else []
        if self.described.trains_on == "pairs" and self.pairs != "offline":
            parts.append(PAIRS[self.pairs])
        if self.start != self.described.start:
            parts.append(f"from {self.start}")
        return f"{self.name} ({', '.join(parts)})" if parts else self.name


def reward_name(reward: Mapping[str, float]) -> str:
    """Sources with their weights: `rm + 0.5·verifier`."""
    return " + ".join(name if weight == 1 else f"{weight:g}·{name}" for name, weight in reward.items())


@cache
def _methods() -> tuple[str, ...]:
    """Looked up once: it takes reading what every installed distribution declares, and a recipe has many arms."""
    return tuple(method_names())


def resolve_arm(recipe: "Recipe", name: str) -> Arm:
    """The arm called `name`; RequestError for an unknown name, method, setting or place."""
    known = [*_methods(), *recipe.variants]
    if name not in known:
        raise RequestError(f"unknown method '{name}' {suggest(name, known)}")
    where = f"variants.{name}" if name in recipe.variants else name
    variant: dict[str, Any] = dict(recipe.variants.get(name, {}))
    method = _method_of_variant(name, variant.pop("method", None)) if name in recipe.variants else name
    described = get_method(method)
    published = _variant_in_use(described, recipe.blocks.get(method, {}) | variant)
    grids = {arm: _grid_in_recipe(recipe, arm, described, published, variant) for arm in (method, name)}
    chosen_or_first = {
        arm: {key: values[0] for key, values in grids[arm].items()} | _tuned_values(recipe, arm, described, published)
        for arm in (method, name)
    }
    own = {} if name == method else chosen_or_first[name] | variant
    merged = _shared(recipe, described) | chosen_or_first[method] | recipe.blocks.get(method, {}) | own
    place: dict[str, Any] = {key: merged.pop(key) for key in ("from", "pairs", "reward") if key in merged}
    if described.scores:
        for key, instead in (("rewards", f"{where}.reward"), ("gold_source", "the recipe's gold")):
            if key in merged:
                raise RequestError(f"{where}.{key} is not said here; set {instead}")
    settings = _validated(described.settings, merged, where)
    placed = _validated(_Place, place, where)
    _check_place(placed, described, method, where)
    reward = dict(placed.reward or recipe.reward)
    if described.scores:
        settings = settings.model_copy(update={"rewards": reward, "gold_source": recipe.gold})
    if described.makes == "choice":
        settings = _as_long_as_measured(recipe, settings, merged, where)
    settings = _within_budget(recipe, described, settings)
    arm = Arm(
        name,
        method,
        described,
        settings,
        placed.start or described.start,
        placed.pairs or "offline",
        reward,
        trials=0,
        grid=grids[name] or grids[method] or described.grid_of(settings),
        unbound=_unbound(recipe, described),
    )
    chosen = recipe.tuned.get(name)
    if chosen is None or not _tried_as(chosen, arm, published):
        return arm
    in_use = all(value in (merged[key], getattr(settings, key)) for key, value in chosen.values.items())
    return replace(arm, trials=chosen.trials) if in_use else arm


def _shared(recipe: "Recipe", described: Method) -> dict[str, Any]:
    """What the recipe says for all methods, as far as this one has the setting and takes the value."""
    fields = described.settings.model_fields
    said = {key: getattr(recipe, key) for key in SHARED if key in recipe.model_fields_set and key in fields}
    # The reward model has one attention only; said for all, another is meant for the others.
    return {
        key: value for key, value in said.items() if key != "attention" or value in get_args(fields[key].annotation)
    }


def refuse_unheeded(recipe: "Recipe", names: Iterable[str], overrides: Iterable[str]) -> None:
    """RequestError for an override of a method's section (`grpo.steps=7`) that one of the named arms, or an arm which
    it starts from, would not heed: a variant that has a value of its own, said or tuned, and gets no override of it.
    """
    given: dict[str, set[str]] = {}
    for keys, value in parse_overrides(overrides):
        depth = 2 if keys[0] == "variants" else 1
        inner = keys[depth : depth + 1] or (value if isinstance(value, dict) else ())
        given.setdefault(".".join(keys[:depth]), set()).update(inner)
    for name in dict.fromkeys(each for asked in names for each in _with_starts(recipe, asked)):
        if name not in recipe.variants:
            continue
        own = {*recipe.variants[name], *recipe.grids.get(name, ())}
        own |= {*(recipe.tuned[name].values if name in recipe.tuned else ())}
        method = recipe.arm(name).method
        for key in sorted((own & given.get(method, set())) - given.get(f"variants.{name}", set())):
            raise RequestError(
                f"--set {method}.{key} does nothing for {name}, which has its own; set variants.{name}.{key}"
            )


def _with_starts(recipe: "Recipe", name: str) -> list[str]:
    """An arm and those that it starts from; no further than a circle or an unknown name, which planning refuses."""
    names: list[str] = []
    while name in recipe.arm_names() and name not in names:
        names.append(name)
        name = recipe.arm(name).start
    return names


def _method_of_variant(name: str, method: Any) -> str:
    """The method that a variant names; RequestError where it names none, or could not be told from something else."""
    if name in _methods():
        raise RequestError(f"variants.{name} has the name of a method; give it another")
    if name in RESERVED:
        raise RequestError(f"variants.{name}: '{name}' means something else already; give it another name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise RequestError(f"variants.{name}: a variant's name holds letters, digits, - and _ only; give it another")
    if method is None:
        raise RequestError(f"variants.{name} does not say its method; add `method: …`")
    if method not in _methods():
        raise RequestError(f"variants.{name}.method: unknown method '{method}' {suggest(str(method), _methods())}")
    if get_method(method).makes not in ("policy", "choice"):
        raise RequestError(f"variants.{name}.method: {method} makes no policy; set it up in its own section, {method}")
    return str(method)


def _variant_in_use(described: Method, said: Mapping[str, Any]) -> str:
    """The published variant that an arm says, or the method's default; empty for a method without variants."""
    default = described.settings.model_fields.get("variant")
    return str(said.get("variant", default.default if default else ""))


def _variant_tuned(described: Method, tuned: Tuned) -> str:
    return _variant_in_use(described, {"variant": tuned.variant} if tuned.variant else {})


def adapter_kind(settings: Settings) -> Literal["lora", "qlora"] | None:
    """The kind of adapter that settings ask for; None for all weights, and for a method of another package that has no
    such setting."""
    adapter: Adapter | None = getattr(settings, "adapter", None)
    return adapter.kind if adapter else None


def _tried_as(tuned: Tuned, arm: Arm, published: str) -> bool:
    """Whether the trials were of what the arm is now: its variant, what it trains, what it learns from, where it
    starts."""
    place = (tuned.learns_from, tuned.start, tuned.adapter) == (arm.learns_from, arm.start, adapter_kind(arm.settings))
    return place and _variant_tuned(arm.described, tuned) == published


def _tuned_values(recipe: "Recipe", arm: str, described: Method, published: str) -> dict[str, Any]:
    """What tuning chose for an arm, unless it was tried under another variant than the `published` one, which says
    that value itself."""
    values = recipe.tuned[arm].values if arm in recipe.tuned else {}
    for key in values:
        if key not in described.settings.model_fields:
            known = suggest(key, described.settings.model_fields)
            raise RequestError(f"tuned.{arm}.values: unknown setting '{key}' {known}; remove it, or tune {arm} again")
    if not values or published not in described.variants or _variant_tuned(described, recipe.tuned[arm]) == published:
        return dict(values)
    return {key: value for key, value in values.items() if key not in described.variants[published].settings}


def _grid_in_recipe(
    recipe: "Recipe", arm: str, described: Method, published: str, variant: Mapping[str, Any]
) -> dict[str, tuple[Any, ...]]:
    """What the recipe's `grids` say of an arm, as the method's settings hold it; of a method without what the
    `published` variant in use fixes. RequestError for what cannot be tried."""
    where = f"grids.{arm}"
    if arm not in recipe.grids:
        return {}
    if described.makes != "policy" or arm == "sft":
        raise RequestError(f"{where}: {arm} is what rows are made from or measured with, not tuned; remove it")
    section = recipe.blocks.get(arm, {}) if arm not in recipe.variants else variant
    beside = {key: value for key, value in section.items() if key not in ("from", "pairs", "reward")}
    _validated(described.settings, beside, arm if arm not in recipe.variants else f"variants.{arm}")
    grid = {}
    for key, values in recipe.grids[arm].items():
        if key not in described.settings.model_fields or key in NOT_TRIED:
            known = suggest(key, set(described.settings.model_fields) - NOT_TRIED)
            raise RequestError(f"{where}: '{key}' is no setting that can be tried {known}")
        held = [getattr(_validated(described.settings, beside | {key: value}, where), key) for value in values]
        if any(value in held[:place] for place, value in enumerate(held)):
            raise RequestError(f"{where}.{key} holds a value twice; say each once")
        grid[key] = tuple(held)
    fixed = described.variants[published].settings if published in described.variants else {}
    return grid if arm in recipe.variants else {key: values for key, values in grid.items() if key not in fixed}


def _check_place(placed: _Place, described: Method, method: str, where: str) -> None:
    """RequestError for what the method would not heed."""
    in_table = described.makes in ("policy", "choice")
    if placed.start and not in_table:
        raise RequestError(f"{where}.from: {method} always starts from the SFT policy; remove it")
    if placed.pairs and described.trains_on != "pairs":
        raise RequestError(f"{where}.pairs: {method} does not train on pairs; remove it")
    if placed.pairs and not in_table:
        raise RequestError(f"{where}.pairs: {method} always trains on the offline pairs; remove it")
    if placed.reward and not described.scores:
        raise RequestError(f"{where}.reward: {method} learns from no reward; remove it")


def _validated(cls: Any, mapping: Mapping[str, Any], where: str) -> Any:
    """`validate`, with the arm's name before the key that it complains of."""
    try:
        return validate(cls, mapping, where)
    except RequestError as error:
        raise RequestError(str(error).replace(f"{where}: unknown key '", f"unknown key '{where}.", 1)) from None


def _as_long_as_measured(recipe: "Recipe", settings: Settings, merged: Mapping[str, Any], where: str) -> Settings:
    """A choice's samples end where the completions do that the other rows' policies are measured on."""
    key, measured = "max_new_tokens", recipe.evaluation.policy_max_tokens
    if key not in type(settings).model_fields:
        return settings
    if key in merged and getattr(settings, key) != measured:
        raise RequestError(
            f"{where}.{key} is {getattr(settings, key)}, and the other rows are measured on completions of at most "
            f"{measured} tokens (evaluation.policy_max_tokens); leave it out, or set both alike"
        )
    return settings.model_copy(update={key: measured})


def _within_budget(recipe: "Recipe", described: Method, settings: Settings) -> Settings:
    """The bounds of the comparison apply to policies that are compared, not to what they are made from. An arm that
    sets itself a lower bound keeps it."""
    update = {}
    for name, bound in _bounds(recipe, described).items():
        if BOUNDS[name] in type(settings).model_fields:
            own = getattr(settings, BOUNDS[name])
            update[BOUNDS[name]] = bound if own is None else min(own, bound)
    return settings.model_copy(update=update) if update else settings


def _unbound(recipe: "Recipe", described: Method) -> tuple[str, ...]:
    """The bounds that a row's method could not keep."""
    if described.makes == "choice":
        return tuple(recipe.budget.bounds)
    return tuple(name for name in _bounds(recipe, described) if BOUNDS[name] not in described.settings.model_fields)


def _bounds(recipe: "Recipe", described: Method) -> Mapping[str, float]:
    """The bounds of the budget that a policy of this method is to keep."""
    compared = described.makes == "policy" and described.trains_on != "demonstrations"
    return recipe.budget.bounds if compared else {}


def refuse_budget_twice(recipe: "Recipe", name: str) -> None:
    """RequestError for an arm that starts where another one ends that has spent the budget already."""
    arm = recipe.arm(name)
    if arm.start not in recipe.arm_names():
        return
    if _bounds(recipe, arm.described) and _bounds(recipe, recipe.arm(arm.start).described):
        raise RequestError(
            f"{name} starts from {arm.start}: each would have the whole budget, the row twice as much as others; leave "
            f"{name} out, or compare without a budget"
        )

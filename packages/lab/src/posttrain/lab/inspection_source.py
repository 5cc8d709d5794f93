"""What of a recipe `posttrain data inspect` looks at: the rows of one of its sources, the tokenizer, the length limits.

The rows are those that a stage would load first, in its order; what it then holds out for validation is among them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerFast

from posttrain.core.errors import RequestError, WorkError, suggest
from posttrain.data.sources import Source, load_conversations, load_pairs, load_prompts, load_rankings
from posttrain.data.tokenizer import load_tokenizer
from posttrain.lab.inspection import InspectedRow, Limits, inspect_conversation, inspect_prompt, inspect_ranking
from posttrain.lab.models import NANO, resolve_model
from posttrain.lab.random_models import is_random
from posttrain.lab.recipe import Recipe, RecipeData
from posttrain.trainers.comparisons import from_pair


@dataclass(frozen=True)
class Inspected:
    """A source's rows as ids."""

    source: Source
    tokenizer: PreTrainedTokenizerFast
    rows: list[InspectedRow]
    limits: Limits


def inspect_source(recipe: Recipe, name: str, count: int, seed: int) -> Inspected:
    """The first `count` rows of `data.<name>` in the order of this seed.

    RequestError for an unknown source or one that the recipe lacks, or a tokenizer that cannot be had; WorkError for a
    row whose loss mask is empty or covers everything, or where no row fits.
    """
    source = _source(recipe, name)
    tokenizer, context = _tokenizer_and_context(recipe)
    limits, look = _look(recipe, name, context, tokenizer)
    rows = look(source, seed, count)
    if limits and all(set(row.dropped_by) == set(limits) for row in rows):
        told = ", ".join(f"{method} {limit}" for method, limit in limits.items())
        raise WorkError(
            f"none of {len(rows)} rows fits its length limit in tokens ({told}); raise it or shorten the data"
        )
    return Inspected(source, tokenizer, rows, limits)


def _source(recipe: Recipe, name: str) -> Source:
    if name not in RecipeData.model_fields:
        raise RequestError(f"recipe {recipe.name} has no source '{name}' {suggest(name, RecipeData.model_fields)}")
    source = getattr(recipe.data, name)
    if source is None:
        there = [field for field in RecipeData.model_fields if getattr(recipe.data, field) is not None]
        why = f"recipe {recipe.name} says no data.{name}"
        if name == "pairs":
            why += ": its pairs are sampled from the SFT policy, on data.preference_prompts"
        raise RequestError(f"{why} (it has {', '.join(there)})")
    assert isinstance(source, Source)
    return source


def _look(
    recipe: Recipe, name: str, context: int, tokenizer: PreTrainedTokenizerFast
) -> tuple[Limits, Callable[[Source, int, int], list[InspectedRow]]]:
    """The length limits of the methods that read a source, and what loads and renders its rows."""
    if name in ("sft", "sft_validation"):
        limits = _max_lengths(recipe, ["sft"], context)
        return limits, partial(_rows, load_conversations, inspect_conversation, tokenizer, limits)
    if name == "pairs":
        methods = [arm for arm in ("rm", *recipe.compared()) if recipe.arm(arm).described.trains_on == "pairs"]
        limits = _max_lengths(recipe, methods, context)
        kwise = getattr(recipe.arm("rm").settings, "loss", None) == "kwise"
        load = load_rankings if kwise else _pairs_as_rankings
        return limits, partial(_rows, load, inspect_ranking, tokenizer, limits)
    limits = _prompt_limits(recipe, name, context)
    return limits, partial(_rows, load_prompts, inspect_prompt, tokenizer, limits)


def _rows(
    load: Callable[[Source, int, int], Sequence[Any]],
    look: Callable[[PreTrainedTokenizerFast, Any, Limits], InspectedRow],
    tokenizer: PreTrainedTokenizerFast,
    limits: Limits,
    source: Source,
    seed: int,
    count: int,
) -> list[InspectedRow]:
    return [look(tokenizer, row, limits) for row in load(source, seed, count)]


def _pairs_as_rankings(source: Source, seed: int, count: int) -> list[Any]:
    return [from_pair(pair) for pair in load_pairs(source, seed, count)]


def _max_lengths(recipe: Recipe, methods: Sequence[str], context: int) -> Limits:
    return {method: min(context, getattr(recipe.arm(method).settings, "max_length", context)) for method in methods}


def _prompt_limits(recipe: Recipe, name: str, context: int) -> Limits:
    """By who samples answers to the prompts of this source."""
    if name == "preference_prompts":
        return {"preferences": _prompt_limit(recipe.arm("preferences").settings, context)}
    if name == "measured":
        return {"evaluation": context - recipe.evaluation.policy_max_tokens}
    arms = {arm: recipe.arm(arm) for arm in recipe.compared()}
    return {
        name: _prompt_limit(arm.settings, context)
        for name, arm in arms.items()
        if arm.described.trains_on == "prompts" and arm.described.makes == "policy"
    }


def _prompt_limit(settings: Any, context: int) -> int:
    """Tokens that a prompt may have so that prompt and completion fit the context."""
    room = context - int(getattr(settings, "max_new_tokens", 0))
    return min(room, getattr(settings, "max_prompt_tokens", None) or room)


def _tokenizer_and_context(recipe: Recipe) -> tuple[PreTrainedTokenizerFast, int]:
    """Of a model on the Hub only these are fetched, not its weights."""
    model, revision = recipe.model, recipe.revision
    if model == NANO or is_random(model) or Path(model).is_dir():
        model, revision = str(resolve_model(model, revision).folder), None
    tokenizer = load_tokenizer(model, revision)
    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise RequestError(f"model '{recipe.model}' has no configuration that could be read: {reason}") from error
    return tokenizer, int(getattr(config, "max_position_embeddings", tokenizer.model_max_length))

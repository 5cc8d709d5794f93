"""What the methods that sample are given: services that are there, and prompts rendered to ids that fit the model.

Missing or unfit inputs are refused before anything is trained.
"""

from collections.abc import Sequence
from typing import Any

from posttrain.core.clients import PolicyClient, RewardClient
from posttrain.core.errors import RequestError
from posttrain.data.chat import render_prompt
from posttrain.data.sources import Source, load_prompts
from posttrain.trainers.rollouts import RenderedPrompt
from posttrain.trainers.stage import StageInputs


def services(inputs: StageInputs) -> tuple[PolicyClient, RewardClient]:
    """The two services of a stage; RequestError when one is missing."""
    if inputs.policy is None or inputs.reward is None:
        missing = "policy" if inputs.policy is None else "reward"
        raise RequestError(f"the method samples and scores over HTTP and was given no {missing} service; give its URL")
    return inputs.policy, inputs.reward


def read_prompts(
    source: Source | None,
    seed: int,
    tokenizer: Any,
    *,
    context: int | None,
    max_new_tokens: int,
    max_prompt_tokens: int | None,
) -> list[RenderedPrompt]:
    """The prompts of a source as ids. RequestError for no source, or a prompt that does not fit the context."""
    if source is None:
        raise RequestError("the method needs prompts and was given none; set its data source")
    rendered = [RenderedPrompt(p, render_prompt(tokenizer, p["prompt"])) for p in load_prompts(source, seed)]
    return fitting_prompts(rendered, max_new_tokens, context, max_prompt_tokens)


def fitting_prompts(
    prompts: Sequence[RenderedPrompt], max_new_tokens: int, context: int | None, max_prompt_tokens: int | None
) -> list[RenderedPrompt]:
    """The prompts of at most `max_prompt_tokens`. RequestError if one of them and its completion exceed the context."""
    kept = [p for p in prompts if max_prompt_tokens is None or len(p.ids) <= max_prompt_tokens]
    if not kept:
        raise RequestError(f"none of {len(prompts)} prompts has at most max_prompt_tokens = {max_prompt_tokens} tokens")
    for prompt in kept:
        if context is not None and len(prompt.ids) + max_new_tokens > context:
            raise RequestError(
                f"prompt '{prompt.prompt['id']}' has {len(prompt.ids)} tokens; with max_new_tokens = {max_new_tokens} "
                f"that exceeds the context of {context}; set max_prompt_tokens = {max(context - max_new_tokens, 0)} "
                "or less to leave such prompts out"
            )
    return kept

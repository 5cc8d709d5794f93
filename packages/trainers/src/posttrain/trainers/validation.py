"""Gold and learned reward of the policy in training on held-out prompts; what the number of steps is chosen on."""

from collections.abc import Sequence

import torch

from posttrain.core.clients import RewardClient
from posttrain.core.seeds import derive_seed
from posttrain.core.statistics import mean_and_se
from posttrain.trainers.online_settings import OnlineSettings
from posttrain.trainers.rewards import score_completions
from posttrain.trainers.rollouts import RenderedPrompt, VersionedPolicy


def validate(
    policy: VersionedPolicy,
    reward: RewardClient,
    sources: Sequence[str],
    prompts: Sequence[RenderedPrompt],
    step: int,
    settings: OnlineSettings,
    seed: int,
) -> dict[str, float]:
    """`validation/<source>` and its standard error, raw and unweighted, the gold one by kind of prompt as well."""
    choices = policy.complete(
        [prompt.ids for prompt in prompts],
        step,
        n=1,
        max_tokens=settings.max_new_tokens,
        temperature=settings.validation_temperature,
        seed=derive_seed(seed, "validation", step),
    )
    completions = [choice for (choice,) in choices]
    scores = score_completions(reward, sources, [p.prompt for p in prompts], completions)
    metrics: dict[str, float] = {}
    for source, values in scores.items():
        name = "gold" if source == settings.gold_source else source
        metrics |= _estimate(f"validation/{name}", values)
    if settings.gold_source:
        kinds = [prompt.prompt["kind"] for prompt in prompts]
        for kind in sorted(set(kinds)):
            of_kind = torch.tensor([k == kind for k in kinds])
            metrics |= _estimate(f"validation/gold/{kind}", scores[settings.gold_source][of_kind])
    truncated = sum(completion.finish_reason == "length" for completion in completions)
    return metrics | {"validation/truncated": truncated / len(completions)}


def _estimate(name: str, values: torch.Tensor) -> dict[str, float]:
    if len(values) < 2:
        return {name: float(values.mean())}
    estimate = mean_and_se(values.tolist())
    return {name: estimate.value, f"{name}_se": estimate.standard_error}

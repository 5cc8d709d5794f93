"""The clipped surrogate losses of PPO (Schulman et al. 2017) and of CISPO (MiniMax 2025), one number a token.

They give a loss for each token and leave the averaging to the caller, because what one divides by (tokens of the whole
minibatch) must not depend on how a minibatch is split. Pure functions, differentiable.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def clipped_policy_loss(
    logprobs: Float[Tensor, "*shape"],
    old_logprobs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Tensor, "*shape"], Bool[Tensor, "*shape"]]:
    """−min(ρA, clip(ρ, 1 − clip_low, 1 + clip_high) A) with ρ = π/π_old (eq. 7), and where the clip took the gradient.

    The paper has one ε for both sides; two are for methods that clip higher above than below (DAPO).
    """
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.maximum(unclipped, clipped), clipped > unclipped


def clipped_weight_loss(
    logprobs: Float[Tensor, "*shape"],
    old_logprobs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Tensor, "*shape"], Bool[Tensor, "*shape"]]:
    """−sg(clip(ρ, 1 − clip_low, 1 + clip_high)) A log π (CISPO, MiniMax 2025), and where the clip acted.

    The importance weight is clipped, not the update: every token keeps a gradient. `clip_low` ≥ 1 is no lower bound.
    """
    ratio = torch.exp(logprobs - old_logprobs).detach()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -weight * advantages * logprobs, weight != ratio


def clipped_value_loss(
    values: Float[Tensor, "*shape"],
    old_values: Float[Tensor, "*shape"],
    returns: Float[Tensor, "*shape"],
    clip_range: float,
) -> tuple[Float[Tensor, "*shape"], Bool[Tensor, "*shape"]]:
    """½ max((V − R)², (clip(V, V_old ± clip_range) − R)²), and where the clip took the gradient away.

    Not in the paper but in its authors' implementation (OpenAI baselines, ppo2), and in InstructGPT's.
    """
    unclipped = (values - returns) ** 2
    clipped = (old_values + (values - old_values).clamp(-clip_range, clip_range) - returns) ** 2
    return 0.5 * torch.maximum(unclipped, clipped), clipped > unclipped

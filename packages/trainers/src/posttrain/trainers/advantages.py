"""Advantages: how good each sampled token was, from rewards and values.

Takes and gives tensors of shape [batch, time], where time counts the tokens of a completion. Pure functions; they know
nothing of models, services or files.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gae(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Generalised advantage estimation; gives (advantages, returns), neither of them whitened.

    δ_t = r_t + γ V(s_{t+1}) − V(s_t) and A_t = δ_t + γλ A_{t+1} (Schulman et al. 2016, eq. 11 and 16); returns are
    A_t + V(s_t), what the critic is fitted to. `values[b, t]` is V of the prompt and the first t tokens. `mask` is true
    on the completion's tokens, a prefix of each row; after its last token the episode is over (V = 0), and both results
    are 0 where the mask is false. Raises ValueError when the shapes differ.
    """
    if not rewards.shape == values.shape == mask.shape:
        raise ValueError(
            f"rewards {tuple(rewards.shape)}, values {tuple(values.shape)} and mask {tuple(mask.shape)} differ"
        )
    present = mask.to(values.dtype)
    rewards, values = rewards * present, values * present
    advantages = torch.zeros_like(values)
    following = values.new_zeros(values.shape[0])  # A_{t+1}
    next_value = values.new_zeros(values.shape[0])  # V(s_{t+1})
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * present[:, t]
        next_value = values[:, t]
        advantages[:, t] = following
    return advantages, advantages + values


def token_rewards(
    terminal: Float[Tensor, " batch"],
    log_ratio: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    kl_coef: float,
) -> Float[Tensor, "batch time"]:
    """The reward of each token: −kl_coef · (log π − log π_ref), and at the last token the completion's reward as well.

    Ziegler et al. 2019, eq. 2, spread over the tokens as in InstructGPT (Ouyang et al. 2022, appendix C). `log_ratio`
    is the estimator k1 of each token; `mask` is a prefix of each row, and a row without a token gets nothing.
    """
    rewards = torch.where(mask, -kl_coef * log_ratio, torch.zeros_like(log_ratio))
    lengths = mask.sum(dim=1)
    rows = torch.nonzero(lengths > 0).squeeze(1)
    rewards[rows, lengths[rows] - 1] += terminal[rows].to(rewards.dtype)
    return rewards

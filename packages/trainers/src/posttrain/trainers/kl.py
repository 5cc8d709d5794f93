"""Estimators of KL(π ‖ π_ref) from tokens sampled from π (Schulman 2020, "Approximating KL Divergence").

Each takes the log-probabilities that both models give to the sampled tokens, in nats, and gives one estimate a token;
the mean over tokens sampled from π estimates the KL. Pure functions, differentiable.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def k1(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log π − log π_ref: unbiased, of high variance, often negative. The definition of KL in our tables."""
    return logprobs - ref_logprobs


def k2(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """½ (log π − log π_ref)²: biased, of low variance, never negative; its gradient is that of the true KL."""
    return 0.5 * (logprobs - ref_logprobs) ** 2


def k3(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """r − 1 − log r with r = π_ref / π: unbiased, of low variance, never negative."""
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio

"""Sums, means and whitening over the real tokens of a padded [batch, time] tensor.

Pure functions. `mask` is true where a value counts; whatever stands elsewhere, even NaN, has no influence.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_sum(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The sum of the values where the mask is true."""
    return torch.where(mask, values, torch.zeros_like(values)).sum()


def masked_mean(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The mean of the values where the mask is true; 0 when it is true nowhere."""
    return masked_sum(values, mask) / mask.sum().clamp(min=1)


def whiten(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], shift_mean: bool = True
) -> Float[Tensor, "*shape"]:
    """Values scaled to variance 1 (of the population) and, if `shift_mean`, shifted to mean 0; 0 outside the mask.

    Constant values become 0 (or stay their mean), not infinite: 1e-8 is added to the variance.
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask, whitened, torch.zeros_like(whitened))


def explained_variance(
    predictions: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]
) -> float:
    """1 − Var(targets − predictions) / Var(targets); NaN if the targets are constant or none.

    1 is a perfect critic, 0 one that knows the mean only, below 0 worse than that.
    """
    targets, errors = targets[mask], (targets - predictions)[mask]
    variance = targets.var(correction=0) if len(targets) else 0.0
    if not variance > 0:
        return float("nan")
    return float(1 - errors.var(correction=0) / variance)

"""KTO's mathematics: the value of an answer that was called desirable or not, and the weights of the two labels.

Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", arXiv 2402.01306. Pure functions;
what a batch is, and where log-probabilities come from, is the trainer's.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def kl_baseline(logratios: Float[Tensor, " mismatched"]) -> Float[Tensor, ""]:
    """z0 = max(0, mean of log π(y'|x) − log π_ref(y'|x)) over answers y' to other prompts than x; without gradient.

    What an answer's log-ratio is compared with (section 4.1): an estimate of KL(π ‖ π_ref), biased but stable.
    """
    return logratios.detach().mean().clamp(min=0)


def kto_losses(
    logratios: Float[Tensor, " examples"],
    desirable: Bool[Tensor, " examples"],
    kl: Float[Tensor, ""],
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Float[Tensor, " examples"]:
    """λ_y − v(x, y) of each answer, equations 7 and 8, where r = log π(y|x) − log π_ref(y|x) is its log-ratio:

    v = λ_D σ(β (r − z0)) if it is desirable, λ_U σ(β (z0 − r)) if not. The loss of a batch is the mean of these.
    """
    signs = torch.where(desirable, 1.0, -1.0)
    weights = torch.where(desirable, desirable_weight, undesirable_weight)
    return weights * (1 - torch.sigmoid(beta * signs * (logratios - kl)))


def balanced_weights(desirable: int, undesirable: int, ratio: float = 1.0) -> tuple[float, float]:
    """(λ_D, λ_U) with λ_D n_D / (λ_U n_U) = `ratio`, the smaller one being 1; section 4.2 wants the ratio in [1, 4/3].

    ValueError without any example of a kind.
    """
    if min(desirable, undesirable) < 1:
        raise ValueError(f"{desirable} desirable and {undesirable} undesirable examples cannot be balanced")
    weight = ratio * undesirable / desirable
    return (weight, 1.0) if weight >= 1 else (1.0, 1 / weight)

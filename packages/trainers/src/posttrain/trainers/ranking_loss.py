"""Losses of a reward model from comparisons: Bradley-Terry of a pair, and of all pairs of a ranking.

Pure functions of scores; Bradley and Terry 1952, Ouyang et al. 2022 (InstructGPT), eq. 1.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def bradley_terry_loss(chosen: Float[Tensor, " batch"], rejected: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """−log σ(r_chosen − r_rejected) of each pair: the negative log-likelihood that the chosen one wins."""
    return -F.logsigmoid(chosen - rejected)


def ranking_loss(scores: Float[Tensor, " completions"]) -> Float[Tensor, ""]:
    """Mean of the Bradley-Terry loss over all C(K, 2) pairs of one prompt's K completions, scored best first.

    All pairs of a prompt in one step, weighted 1 / C(K, 2): as separate examples each completion would be seen K − 1
    times an epoch, and the model over-fits (InstructGPT, section 3.5). K = 2 is Bradley-Terry. ValueError for fewer.
    """
    if scores.ndim != 1 or len(scores) < 2:
        raise ValueError(f"a ranking needs at least two scores in one dimension, not shape {tuple(scores.shape)}")
    better, worse = torch.triu_indices(len(scores), len(scores), offset=1, device=scores.device)
    return bradley_terry_loss(scores[better], scores[worse]).mean()

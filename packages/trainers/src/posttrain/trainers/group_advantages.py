"""Advantages against the other completions of a prompt: no critic, one number a completion.

Takes rewards of shape [batch] with the group of each; rows of a group need not lie together. `counted` is false for
completions that take no part (truncated ones under the rule `mask`): they have advantage 0 and are nobody's baseline,
and who is left alone has advantage 0 as well. Pure functions; ValueError for a group of one row, which has nothing to
be compared with.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROUNDING = 1e-4
"""Rewards that differ by no more count as equal: a reward model's last digits depend on the batch around them."""


def group_relative(
    rewards: Float[Tensor, " batch"],
    groups: Int[Tensor, " batch"],
    counted: Bool[Tensor, " batch"],
    scale_by_deviation: bool,
) -> Float[Tensor, " batch"]:
    """r − mean of the group, and if asked divided by its standard deviation + 1e-4; they sum to 0 in each group.

    With the division Shao et al. 2024, section 4.1.2; without Liu et al. 2025, who show that it weighs groups of
    nearly equal rewards too much. The deviation is the sample's (n − 1) and the 1e-4 keeps rounding small, as in TRL.
    """
    means, sizes = _group_means(rewards, groups, counted)
    centred = torch.where(counted, rewards - means, torch.zeros_like(rewards))
    if not scale_by_deviation:
        return centred
    return centred / (_deviations(centred, groups, sizes) + ROUNDING)


def leave_one_out(
    rewards: Float[Tensor, " batch"], groups: Int[Tensor, " batch"], counted: Bool[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """r − mean of the group's others (Kool et al. 2019; Ahmadian et al. 2024).

    The baseline does not depend on the completion's own reward, so the gradient is unbiased. Equal to
    n / (n − 1) · (r − mean of the group).
    """
    means, sizes = _group_means(rewards, groups, counted)
    baselines = (means * sizes - rewards) / (sizes - 1).clamp(min=1)
    return torch.where(counted & (sizes > 1), rewards - baselines, torch.zeros_like(rewards))


def group_deviations(
    rewards: Float[Tensor, " batch"], groups: Int[Tensor, " batch"], counted: Bool[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """The standard deviation (of the sample) of each row's group; 0 where fewer than two count."""
    means, sizes = _group_means(rewards, groups, counted)
    return _deviations(torch.where(counted, rewards - means, torch.zeros_like(rewards)), groups, sizes)


def is_constant(rewards: Float[Tensor, " samples"]) -> bool:
    """Whether the rewards of one group (of any size) are equal up to `ROUNDING`: it then teaches nothing."""
    return len(rewards) < 2 or float(rewards.max() - rewards.min()) <= ROUNDING


def _group_means(rewards: Tensor, groups: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each row's group over the rows that count, and their number."""
    if int(groups.bincount()[groups].min()) < 2:
        raise ValueError("a group of one completion has no other to be compared with; sample two or more a prompt")
    counts = _group_sums(counted.to(rewards.dtype), groups)
    sums = _group_sums(torch.where(counted, rewards, torch.zeros_like(rewards)), groups)
    return sums / counts.clamp(min=1), counts


def _deviations(centred: Tensor, groups: Tensor, sizes: Tensor) -> Tensor:
    return (_group_sums(centred**2, groups) / (sizes - 1).clamp(min=1)).sqrt()


def _group_sums(values: Tensor, groups: Tensor) -> Tensor:
    """The sum of each row's group, at each row."""
    return values.new_zeros(int(groups.max()) + 1).index_add(0, groups, values)[groups]

"""The data of one rollout on its way through a method: ids, masks, log-probabilities, rewards, groups.

Tensors are [batch, time], time counting a completion's tokens, padded on the right. A `Batch` holds what was true when
the completions were sampled; a `Minibatch` adds what the models in training say now, with gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from posttrain.trainers.masked import masked_sum

if TYPE_CHECKING:
    from posttrain.trainers.online_method import Group


@dataclass
class Batch:
    """Completions with all that is known about them; `[batch, time]` tensors are 0 where `mask` is false."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    mask: Bool[Tensor, "batch time"]
    sampled_logprobs: Float[Tensor, "batch time"]
    """What the engine sampled with."""
    rewards: Float[Tensor, " batch"]
    """Weighted sum of the reward sources, after the rule for truncated completions."""
    groups: Int[Tensor, " batch"]
    """Equal for completions of one prompt."""
    finished: Bool[Tensor, " batch"]
    """False for completions cut at the length limit."""
    logprobs: Float[Tensor, "batch time"]
    """π_old, what ratios divide by: the engine's, or the trainer's own with the same weights (`old_logprobs`)."""
    importance: Float[Tensor, "batch time"] | None = None
    """What each token's gradient is multiplied by because π_old is not what sampled it; None for 1."""
    ref_logprobs: Float[Tensor, "batch time"] | None = None
    outputs: dict[str, Float[Tensor, "batch time"]] = field(default_factory=dict)
    """By name of the method's extra modules, before the update."""
    credit: dict[str, Float[Tensor, "batch time"]] = field(default_factory=dict)
    """What `method.credit` gave, for example advantages and returns."""

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def sampled(self) -> Bool[Tensor, "batch time"]:
        """Where completions have tokens, also those that the rule `mask` has taken out of `mask`."""
        lengths = torch.tensor([len(ids) for ids in self.completion_ids], device=self.mask.device)
        return torch.arange(self.mask.shape[1], device=self.mask.device) < lengths[:, None]

    def record(self, rows: Sequence[int], tensor: Tensor, values: Float[Tensor, "some some_time"]) -> None:
        """Writes what was computed for some rows into one of this batch's tensors; their time may be shorter."""
        tensor[torch.as_tensor(rows, device=tensor.device), : values.shape[1]] = values

    def select(self, rows: Sequence[int]) -> "Batch":
        """These rows, in this order, without the time steps that none of them has."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.mask.device)
        completion_ids = [self.completion_ids[row] for row in rows]
        time = max(len(ids) for ids in completion_ids)

        def cut(tensor: Tensor) -> Tensor:
            return tensor[index, :time]

        return replace(
            self,
            prompt_ids=[self.prompt_ids[row] for row in rows],
            completion_ids=completion_ids,
            mask=cut(self.mask),
            sampled_logprobs=cut(self.sampled_logprobs),
            rewards=self.rewards[index],
            groups=self.groups[index],
            finished=self.finished[index],
            logprobs=cut(self.logprobs),
            importance=None if self.importance is None else cut(self.importance),
            ref_logprobs=None if self.ref_logprobs is None else cut(self.ref_logprobs),
            outputs={name: cut(tensor) for name, tensor in self.outputs.items()},
            credit={name: cut(tensor) for name, tensor in self.credit.items()},
        )


def collate(groups: Sequence["Group"], device: Any) -> Batch:
    """The completions of all groups as one batch; π_old is the engine's."""
    flat = [(group, choice) for group in groups for choice in range(len(group.completions))]
    completions = [group.completions[choice] for group, choice in flat]
    lengths = torch.tensor([len(completion.token_ids) for completion in completions])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    sampled = torch.zeros(mask.shape)
    sampled[mask] = torch.tensor([logprob for completion in completions for logprob in completion.logprobs])
    sampled = sampled.to(device)
    return Batch(
        prompt_ids=[group.prompt.ids for group, _ in flat],
        completion_ids=[completion.token_ids for completion in completions],
        mask=mask.to(device),
        sampled_logprobs=sampled,
        rewards=torch.cat([group.rewards for group in groups]).to(device),
        groups=torch.tensor([i for i, group in enumerate(groups) for _ in group.completions], device=device),
        finished=torch.tensor([c.finish_reason == "stop" for c in completions], device=device),
        logprobs=sampled,
    )


def split_minibatches(groups: Sequence[int], count: int, seed: int) -> list[list[int]]:
    """The rows in at most `count` minibatches of like size, in an order drawn by `seed`.

    Groups stay whole: their prompt is then computed once, and their advantages, which may sum to zero over a group,
    act in one step. Only where there are fewer groups than minibatches are rows dealt out one by one.
    """
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    units = list(members.values()) if len(members) >= count else [[row] for row in range(len(groups))]
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed))
    parts = order.tensor_split(min(count, len(units)))
    return [[row for unit in part.tolist() for row in units[unit]] for part in parts]


@dataclass(frozen=True)
class Minibatch:
    """What `method.loss` gets: some rows of the rollout and what the models say about them now.

    The rows may be a part of a larger minibatch. Means divide by `tokens` or `sequences`, which count the whole: then
    the gradients do not depend on how it was split, and the parts' means add up to the whole's.
    """

    rows: Batch
    logprobs: Float[Tensor, "batch time"]
    """Gradients through them are multiplied by `Batch.importance`."""
    entropy: Float[Tensor, "batch time"]
    """Of the distribution of each token, differentiable like `logprobs`."""
    outputs: dict[str, Float[Tensor, "batch time"]]
    tokens: int
    """Tokens of the minibatch with a loss."""
    sequences: int
    """Rows of the minibatch with such a token."""

    def token_mean(self, values: Float[Tensor, "batch time"]) -> Float[Tensor, ""]:
        """The mean over tokens: long completions weigh more than short ones."""
        return masked_sum(values, self.rows.mask) / self.tokens

    def sequence_mean(self, values: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
        """The mean over completions of one number each."""
        return masked_sum(values, self.rows.mask.any(dim=1)) / self.sequences

    def row_sums(self, values: Float[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
        """The sum over each completion's tokens."""
        return torch.where(self.rows.mask, values, torch.zeros_like(values)).sum(dim=1)

    def row_means(self, values: Float[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
        """The mean over each completion's tokens; 0 for one without."""
        return self.row_sums(values) / self.rows.mask.sum(dim=1).clamp(min=1)

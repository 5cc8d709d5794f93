"""What a method of the online loop is: a small object of mathematics with a few named parts.

The loop samples, scores, runs the models and steps the optimiser; a method says what a completion's tokens deserve and
what the loss is. `OnlineMethod` has the parts that most methods leave as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from posttrain.core.clients import Completion
from posttrain.trainers.batch import Batch, Minibatch
from posttrain.trainers.rollouts import RenderedPrompt

REF_LOGPROBS = "ref_logprobs"


@dataclass(frozen=True)
class ExtraModule:
    """A module trained beside the policy; `module(input_ids, **layout)` gives one number a position, [batch, length].

    `layout` (see `Rows.inputs`) is for the transformer in it, which is a copy of the policy's."""

    module: nn.Module
    lr: float
    new_modules: tuple[str, ...] = ()
    """Its parts that no checkpoint has: they train whole where the rest trains through an adapter."""


@dataclass(frozen=True)
class Group:
    """The completions of one prompt and their rewards, after the rule for truncated ones."""

    prompt: RenderedPrompt
    completions: Sequence[Completion]
    rewards: Float[Tensor, " samples"]
    scores: Mapping[str, Float[Tensor, " samples"]]
    """Raw score by source."""

    @property
    def finished(self) -> Bool[Tensor, " samples"]:
        """False for completions cut at the length limit."""
        return torch.tensor([completion.finish_reason == "stop" for completion in self.completions])


class OnlineMethod:
    """Base of the methods: accepts every group, trains nothing beside the policy, keeps no state."""

    needs: frozenset[str] = frozenset()
    """`ref_logprobs`: fill `Batch.ref_logprobs`."""

    def extra_modules(self, policy: Any) -> dict[str, ExtraModule]:
        """Modules that the loop optimises, saves and resumes with the policy; their outputs carry these names."""
        return {}

    def accept(self, group: Group) -> bool:
        """Whether a group is worth training on; the loop may sample other prompts in place of those that are not."""
        return True

    def credit(self, batch: Batch) -> tuple[dict[str, Float[Tensor, "batch time"]], dict[str, float]]:
        """What each token deserves (kept in `Batch.credit`), and numbers to log. Called once a step."""
        raise NotImplementedError

    def loss(self, minibatch: Minibatch) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """These rows' share of the minibatch's mean loss, and parts of it to log, shares as well.

        The loop has put the correction for an inexact engine into the gradient of `minibatch.logprobs`."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart besides modules."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""

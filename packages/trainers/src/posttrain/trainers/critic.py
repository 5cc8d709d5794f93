"""PPO's critic: a transformer body with a linear value head, one value a position.

It starts as a copy of the policy's body, or shares its weights where they stay frozen below an adapter; it lives in
the trainer's state and never in a checkpoint.
"""

import copy
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn


class Critic(nn.Module):
    """V(s) after each token. The head starts at zero, so V = 0: no token is blamed before the critic has learnt."""

    def __init__(self, policy: Any, share_weights: bool = False) -> None:
        """`share_weights`: modules of its own around the policy's own parameters, which then have to stay frozen."""
        super().__init__()
        body = policy.get_decoder()
        # What deepcopy finds in its memo it takes for the copy.
        shared = {id(parameter): parameter for parameter in body.parameters()} if share_weights else {}
        self.body = copy.deepcopy(body, shared)
        self.head = nn.Linear(policy.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: Int[Tensor, "batch length"], **layout: Any) -> Float[Tensor, "batch length"]:
        """Values of the states that end with each token. `layout` is for the body; padding stands on the right."""
        return self.head(self.body(input_ids=input_ids, use_cache=False, **layout).last_hidden_state).squeeze(-1)

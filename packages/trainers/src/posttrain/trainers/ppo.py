"""PPO for language models: an actor, a critic, a KL penalty in the reward, GAE, clipped losses.

Schulman et al. 2017 (the clipped objective), Ziegler et al. 2019 (the KL penalty and its controller), Ouyang et al.
2022 (RLHF as it is done). The loop around it is posttrain.trainers.online.
"""

from typing import Any, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from posttrain.trainers.advantages import gae, token_rewards
from posttrain.trainers.batch import Batch, Minibatch
from posttrain.trainers.clipped import clipped_policy_loss, clipped_value_loss
from posttrain.trainers.controllers import AdaptiveKL, FixedKL, KLController
from posttrain.trainers.critic import Critic
from posttrain.trainers.kl import k1
from posttrain.trainers.masked import explained_variance, masked_mean, whiten
from posttrain.trainers.online import train_online
from posttrain.trainers.online_method import REF_LOGPROBS, ExtraModule, OnlineMethod
from posttrain.trainers.online_settings import OnlineSettings
from posttrain.trainers.registry import Method
from posttrain.trainers.stage import StageInputs


class Settings(OnlineSettings):
    """PPO under the names of its papers; the defaults are those of the nano lab."""

    critic_lr: float = Field(5e-4, gt=0)
    """Learning rate of the critic, which starts from the policy's body and a head of zeros."""
    gamma: float = Field(1.0, ge=0, le=1)
    """γ, the discount a token (InstructGPT: 1)."""
    lam: float = Field(0.99, ge=0, le=1)
    """λ of GAE. InstructGPT has .95; 0.99 is the nano prototype's, whose reward comes once, at the end."""
    clip_range: float = Field(0.2, gt=0)
    """ε of the policy's ratio (Schulman et al. 2017, table 3)."""
    value_clip_range: float = Field(0.2, gt=0)
    """How far a value may move from its old one in an update (OpenAI baselines, InstructGPT)."""
    kl_coef: float = Field(0.1, ge=0)
    """β of the KL penalty a token, or the controller's first value. With .02 the nano policy over-optimised its reward
    model, with .1 it did not."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive`: β follows `kl_target` (Ziegler et al. 2019, section 2.2)."""
    kl_target: float = Field(6.0, gt=0)
    """Target of the adaptive controller in nats a sequence (Ziegler et al. 2019 used 6 to 10)."""
    kl_gain: float = Field(0.1, gt=0)
    """K_β of the adaptive controller (the paper's)."""
    whiten_advantages: bool = True
    """Advantages of a rollout scaled to mean 0 and variance 1 (Ziegler et al. 2019)."""
    entropy_coef: float = Field(0.0, ge=0)
    """c₂, the weight of an entropy bonus (Schulman et al. 2017, eq. 9; unused in RLHF)."""


class PPO(OnlineMethod):
    """Actor-critic with a clipped ratio."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.needs = frozenset({REF_LOGPROBS})
        self._kl: KLController = FixedKL(settings.kl_coef)
        if settings.kl_controller == "adaptive":
            self._kl = AdaptiveKL(settings.kl_coef, settings.kl_target, settings.kl_gain)

    def extra_modules(self, policy: Any) -> dict[str, ExtraModule]:
        critic = Critic(policy, share_weights=self._settings.adapter is not None)
        return {"values": ExtraModule(critic, self._settings.critic_lr, new_modules=("head",))}

    def credit(self, batch: Batch) -> tuple[dict[str, Float[Tensor, "batch time"]], dict[str, float]]:
        assert batch.ref_logprobs is not None
        settings, values = self._settings, batch.outputs["values"]
        log_ratio = k1(batch.logprobs, batch.ref_logprobs)
        kl_coef = self._kl.coef
        rewards = token_rewards(batch.rewards, log_ratio, batch.mask, kl_coef)
        advantages, returns = gae(rewards, values, batch.mask, settings.gamma, settings.lam)
        penalised = rewards.sum(dim=1)[batch.mask.any(dim=1)]  # a row that the rule `mask` empties has no reward
        metrics = {
            "kl_coef": kl_coef,
            "reward/penalised": float(penalised.mean()) if len(penalised) else 0.0,
            "explained_variance": explained_variance(values, returns, batch.mask),
            "returns/mean": float(masked_mean(returns, batch.mask)),
            "values/mean": float(masked_mean(values, batch.mask)),
        }
        if settings.whiten_advantages:
            advantages = whiten(advantages, batch.mask)
        self._kl.update(float(log_ratio.sum(dim=1).mean()))
        return {"advantages": advantages, "returns": returns}, metrics

    def loss(self, minibatch: Minibatch) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        settings, rows, mean = self._settings, minibatch.rows, minibatch.token_mean
        policy_losses, policy_clipped = clipped_policy_loss(
            minibatch.logprobs, rows.logprobs, rows.credit["advantages"], settings.clip_range, settings.clip_range
        )
        value_losses, value_clipped = clipped_value_loss(
            minibatch.outputs["values"], rows.outputs["values"], rows.credit["returns"], settings.value_clip_range
        )
        policy_loss, value_loss = mean(policy_losses), mean(value_losses)
        # Policy and critic share no parameter, so the weight of the value loss is the critic's learning rate.
        loss = policy_loss + value_loss
        parts = {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "clip_fraction": mean(policy_clipped.float()),
            "value_clip_fraction": mean(value_clipped.float()),
            "ratio": mean((minibatch.logprobs - rows.logprobs).exp()),
            "approx_kl": mean(0.5 * (minibatch.logprobs - rows.logprobs) ** 2),
        }
        if settings.entropy_coef:
            entropy = mean(minibatch.entropy)
            loss = loss - settings.entropy_coef * entropy
            parts["loss/entropy"] = -entropy
        return loss, parts

    def state_dict(self) -> dict[str, Any]:
        return {"kl_coef": self._kl.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kl.coef = state["kl_coef"]


def train(settings: Settings, inputs: StageInputs) -> dict[str, Any]:
    """Runs or resumes PPO from `inputs.start`; see posttrain.trainers.online."""
    return train_online(PPO(settings), settings, inputs)


METHOD = Method(
    Settings,
    version=2,
    train=train,
    trains_on="prompts",
    reads_reference=True,
    samples=True,
    scores=True,
    grid={"lr": (2e-4, 4e-4), "kl_coef": (0.05, 0.1)},
)

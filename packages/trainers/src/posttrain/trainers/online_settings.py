"""Settings that every method on the online loop has; the methods' own classes inherit them."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from posttrain.trainers.model_settings import Adapter, ModelSettings
from posttrain.trainers.rewards import TruncationRule


class OnlineSettings(ModelSettings):
    """One loop of sampling and updating. Defaults are those of the nano lab, measured with a prototype of it."""

    OPERATIONAL: ClassVar[frozenset[str]] = ModelSettings.OPERATIONAL | {
        "save_every", "validate_every", "validation_prompts", "validation_temperature", "mismatch_limit",
    }  # fmt: skip

    steps: int = Field(8, ge=1)
    """Rollouts, each followed by an update. Chosen on the nano lab's validation prompts (`validate_every=2`) for the
    learned reward: gold rises to about step 8 and falls after it while the learned reward goes on rising."""
    prompts_per_step: int = Field(256, ge=1)
    """Prompts a rollout."""
    samples_per_prompt: int = Field(1, ge=1)
    """Completions of each prompt (a group)."""
    resample_rounds: int = Field(0, ge=0)
    """How often a step samples further prompts in place of groups that the method refuses; 0 leaves them out."""
    max_new_tokens: int = Field(64, ge=1)
    """Length limit of a completion, in tokens."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Longer prompts are left out; None for none, and one that exceeds the context is an error."""
    temperature: float = Field(1.0, gt=0)
    """Of sampling, and of the distribution whose log-probabilities are trained."""
    rewards: dict[str, float] = Field({"rm": 1.0}, min_length=1)
    """Reward source to weight; a completion's reward is the weighted sum of its scores."""
    gold_source: str | None = "verifier"
    """Source that is asked and logged as `gold` whether the policy learns from it or not; None for none."""
    truncation: TruncationRule = "lowest"
    """What a completion cut at the length limit gets instead of its score. `lowest`: the lowest reward of a finished
    one in the same step, so far as it has sampled. `penalty`: `truncation_reward`. `mask`: it is left out of the loss
    (DAPO's overlong filtering)."""
    truncation_reward: float = 0.0
    """For the rule `penalty`, and for `lowest` when nothing finished."""
    overlap_scoring: bool = False
    """Ask for each prompt in a request of its own, and score its completions while the others are generated. Worth it
    where completions end seconds apart; on the nano lab a request costs more than there is to hide. The reward service
    merges the requests that wait, so a reward model's last digits (1e-4) depend on when completions end, and such a run
    is not repeated to the bit; verifiers are exact."""
    epochs: int = Field(1, ge=1)
    """Passes over each rollout."""
    minibatches: int = Field(4, ge=1)
    """Optimiser steps a pass. Eight learnt no faster than four on the nano lab (validation, one seed, 8 steps)."""
    micro_batch_tokens: int = Field(2048, ge=1)
    """Tokens on the device at once, a shared prompt counted once; the result does not depend on it but for rounding. On
    a CPU small ones stay in its cache: an update at 2,048 took three quarters of the core-seconds of one at 8,192
    (nano)."""
    lr: float = Field(2e-4, gt=0)
    """Learning rate of the policy (AdamW). The prototype diverged with 1e-3 and was slow with 1e-4."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's β₁ and β₂ (InstructGPT, appendix C)."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rates rise from zero."""
    final_lr_fraction: float = Field(1.0, ge=0, le=1)
    """The learning rates fall linearly to this share of themselves at the last step; 1 keeps them."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients of the policy and of each further module are clipped to this norm, each by itself."""
    save_every: int = Field(5, ge=1)
    """Steps between points that a killed run resumes from."""
    validate_every: int = Field(0, ge=0)
    """Steps between measurements on validation prompts, also before the first step and after the last; 0 for none."""
    validation_prompts: int = Field(200, ge=1)
    """How many of the validation prompts are asked each time."""
    validation_temperature: float = Field(0.0, ge=0)
    """Of sampling in validation; 0 is greedy, as accuracy in the tables is."""
    old_logprobs: Literal["auto", "sampled", "recomputed"] = "auto"
    """What the ratio divides by (π_old). `sampled`: the log-probabilities that the engine sampled with. `recomputed`:
    the trainer's own, a forward pass more; without it the rounding of an engine in bf16 would pass for a change of
    policy. `auto`: the engine's as long as those of the last step were the trainer's within 1e-4 nats a token on
    average, as ours are in fp32, so that ratios start at one; the trainer's otherwise, and in the first step."""
    importance_cap: float | None = Field(2.0, ge=1)
    """Where the trainer's own log-probabilities are π_old and differ from the engine's, each token's gradient is
    multiplied by π_old / π_engine, at most by this (truncated importance sampling, Yao et al. 2025, who take 2). None
    leaves the difference as it is. 1 throughout while the engine's are the trainer's."""
    mismatch_limit: float = Field(0.1, gt=0)
    """Mean absolute difference of the engine's and the trainer's log-probabilities, in nats, beyond which the service
    is taken to hold other weights and the run stops."""

    @field_validator("adapter")
    @classmethod
    def _on_whole_weights(cls, value: Adapter | None) -> Adapter | None:
        if value is not None and value.kind == "qlora":
            raise ValueError(
                "must be lora or full: the policy service merges what is pushed into whole weights, and qlora trains "
                "beside 4-bit ones, which are another model; set adapter: lora in this method's section"
            )
        return value


class GroupSettings(OnlineSettings):
    """For methods whose advantages compare the completions of a prompt with each other; as many completions as PPO."""

    prompts_per_step: int = Field(32, ge=1)
    """Prompts a rollout."""
    samples_per_prompt: int = Field(8)
    """Completions of each prompt (a group), at least two."""
    minibatches: int = Field(2, ge=1)
    """Optimiser steps a pass; groups stay whole."""

    @field_validator("samples_per_prompt")
    @classmethod
    def _more_than_one(cls, value: int) -> int:
        if value < 2:
            raise ValueError(
                "must be 2 or more: a completion's advantage is measured against the others of its prompt; "
                "for one completion a prompt use ppo"
            )
        return value

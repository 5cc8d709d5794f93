"""One sequence on its way: what was asked, whose weights answer, what has become of it.

Plain data that engines fill, the scheduler hands around and answers are written from. Knows nothing of tensors.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from posttrain.rollout.sampling import Sampling

TopLogprobs = list[tuple[int, float]]


class Watcher(Protocol):
    """Somebody who follows a sample token by token, to stream it or to end it at a stop string."""

    def push(self, token_id: int) -> bool:
        """Takes the next token; True ends the sample."""
        ...


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of one version. `held` is the engine's own form of them; they live as long as a sample needs them."""

    version: int
    digest: str
    held: Any


@dataclass(eq=False)
class PromptLogprobs:
    """What `echo` reports: `logprobs[t]` of prompt token t + 1 given those before it, and the best tokens there."""

    logprobs: list[float] = field(default_factory=list)
    top: list[TopLogprobs] = field(default_factory=list)


@dataclass(eq=False)
class Sample:
    """One sequence to generate, and what has become of it."""

    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int
    """Its random numbers depend on this alone."""
    watcher: Watcher | None = None
    weights: Weights | None = None
    """What it runs on, from its first token to its last; given when it is queued."""
    cancelled: bool = False
    """Set from any thread; the sample ends at the next step."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[TopLogprobs] = field(default_factory=list)
    prompt_logprobs: PromptLogprobs | None = None
    finish_reason: Literal["stop", "length", "cancelled"] | None = None

    def take(self, token: int, logprob: float, top: TopLogprobs, ends: bool) -> None:
        """Adds a sampled token; `ends` says that it is one of the model's end tokens."""
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        if self.sampling.top_logprobs:
            self.top_logprobs.append(top)
        # The watcher sees the end token too, so it comes first.
        stopped = self.watcher is not None and self.watcher.push(token)
        if stopped or (ends and not self.sampling.ignore_eos):
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.sampling.max_tokens:
            self.finish_reason = "length"

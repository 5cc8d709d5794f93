"""What every generation engine is: a model with versions of weights, and sequences in flight, one step at a time.

In: prompts as token ids and sampling settings. Out: token ids with their log-probabilities. Engines differ in how they
compute (`torch_engine.py`, `native_engine.py`); who may enter when is `scheduler.py`'s. One thread adds and steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from posttrain.core.errors import RequestError
from posttrain.rollout.sample import Sample, Weights
from posttrain.rollout.sampling import Sampling, sample_seed

MAX_BATCH = 256
"""Sequences that run together; on the nano model more of them gain nothing."""


class Step(NamedTuple):
    """What a step did: tokens sampled, and the samples that ended."""

    tokens: int
    ended: list[Sample]


class Engine(ABC):
    """Generates with `model`; `eos_ids` are the tokens that end a sequence, `weights` the version that new ones get."""

    weights: Weights

    def __init__(self, model: PreTrainedModel, eos_ids: Collection[int], max_batch: int = MAX_BATCH) -> None:
        self.model = model.eval().requires_grad_(False)
        self.eos_ids = frozenset(eos_ids)
        self.max_batch = max_batch
        self.vocab_size: int = model.config.vocab_size
        self.context = context_length(model)

    @property
    @abstractmethod
    def free(self) -> int:
        """How many samples may be added now."""

    @property
    @abstractmethod
    def running(self) -> int:
        """How many samples are in flight."""

    @abstractmethod
    def add(self, samples: Sequence[Sample]) -> None:
        """Puts at most `free` checked samples in flight, each on its own `weights`; those without get the current."""

    @abstractmethod
    def step(self) -> Step:
        """Goes on with everything in flight by a token or a few; a cancelled sample ends here."""

    @abstractmethod
    def drop(self) -> None:
        """Forgets everything in flight, as after a failed step."""

    @abstractmethod
    def load(self, tensors: Mapping[str, torch.Tensor], version: int, digest: str) -> Weights:
        """Makes checked tensors, under the model's own names, the current weights. What is in flight keeps its own.

        May be called from any thread, by one at a time, while another steps.
        """

    def check(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """RequestError when the prompt is empty, holds an unknown id, or does not fit the context."""
        if not prompt:
            raise RequestError("the prompt is empty; it needs one token at least")
        if not (min(prompt) >= 0 and max(prompt) < self.vocab_size):
            worst = min(prompt) if min(prompt) < 0 else max(prompt)
            raise RequestError(f"token id {worst} is outside the vocabulary of {self.vocab_size}")
        if len(prompt) > self.context:
            raise RequestError(f"the prompt has {len(prompt)} tokens, more than the context of {self.context}")
        if len(prompt) + sampling.max_tokens > self.context:
            raise RequestError(
                f"the prompt's {len(prompt)} tokens and max_tokens = {sampling.max_tokens} exceed the context of "
                f"{self.context}; lower max_tokens or shorten the prompt"
            )
        if sampling.max_tokens == 0 and not sampling.echo:
            raise RequestError("max_tokens is 0, which needs echo; ask for one token at least")
        if sampling.logit_bias and not all(0 <= token < self.vocab_size for token in sampling.logit_bias):
            raise RequestError(f"logit_bias names a token id outside the vocabulary of {self.vocab_size}")

    def samples(self, prompts: Sequence[Sequence[int]], sampling: Sampling, n: int = 1, seed: int = 0) -> list[Sample]:
        """`n` samples of each prompt, prompt by prompt; sample (j, i) depends on `seed`, j, i and its prompt alone."""
        for prompt in prompts:
            self.check(prompt, sampling)
        return [
            Sample(shared, sampling, sample_seed(seed, j, i))
            for j, shared in enumerate(map(tuple, prompts))
            for i in range(n)
        ]

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, n: int = 1, seed: int = 0
    ) -> list[list[Sample]]:
        """Finished samples as `[prompt][choice]`. `sampling.stop` needs text and is ignored here."""
        samples = self.samples(prompts, sampling, n, seed)
        self.run(samples)
        return [samples[start : start + n] for start in range(0, len(samples), n)]

    def run(self, samples: Sequence[Sample]) -> None:
        """Generates checked samples to their ends, as many at a time as fit."""
        waiting = list(samples)
        while waiting or self.running:
            entering, waiting = waiting[: self.free], waiting[self.free :]
            if entering:
                self.add(entering)
            self.step()


def context_length(model: PreTrainedModel) -> int:
    """Most positions of a sequence. Where layers look back over a window only, the window: inside it both agree."""
    config = model.config
    context = int(config.max_position_embeddings)
    layer_types = getattr(config, "layer_types", None)
    windowed = "sliding_attention" in layer_types if layer_types else True
    window = getattr(config, "sliding_window", None)
    return min(context, int(window)) if window and windowed else context

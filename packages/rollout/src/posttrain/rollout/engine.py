"""The generation engine: a model, its end tokens, and requests cut into batches of a fixed size.

In: prompts as token ids and sampling settings. Out: token ids with their log-probabilities. It runs on whatever
device and in whatever dtype the model is; on CPU that is fp32. Scheduling between requests is `scheduler.py`'s.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from posttrain.core.errors import RequestError
from posttrain.rollout.decode import Batch, Sample
from posttrain.rollout.sampling import Sampling, sample_seed

MAX_BATCH = 256
"""Sequences that run together; on the nano model more of them gain nothing."""


class Engine:
    """Generates with `model`; `eos_ids` are the tokens that end a sequence."""

    def __init__(self, model: PreTrainedModel, eos_ids: Collection[int], max_batch: int = MAX_BATCH) -> None:
        self.model = model.eval().requires_grad_(False)
        self.eos_ids = frozenset(eos_ids)
        self.max_batch = max_batch
        self.vocab_size: int = model.config.vocab_size
        self.context = context_length(model)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        eos_ids: Collection[int] = (),
        max_batch: int = MAX_BATCH,
        revision: str | None = None,
    ) -> "Engine":
        """The engine of a checkpoint folder or Hub id. `eos_ids` come on top of those of its generation config."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if device.type == "cpu" else "auto"
        try:
            config = AutoConfig.from_pretrained(checkpoint, revision=revision)
            model = AutoModelForCausalLM.from_pretrained(
                checkpoint, revision=revision, config=config, dtype=dtype, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise RequestError(f"{checkpoint} is not a causal language model: {str(error).splitlines()[0]}") from None
        return cls(model.to(device), {*eos_ids, *generation_eos_ids(model)}, max_batch)

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

    def batches(self, samples: Sequence[Sample]) -> Iterator[Batch]:
        """The samples in order, `max_batch` at a time."""
        for start in range(0, len(samples), self.max_batch):
            yield Batch(self.model, samples[start : start + self.max_batch], self.eos_ids)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, n: int = 1, seed: int = 0
    ) -> list[list[Sample]]:
        """Finished samples as `[prompt][choice]`. `sampling.stop` needs text and is ignored here."""
        samples = self.samples(prompts, sampling, n, seed)
        for batch in self.batches(samples):
            while not batch.done:
                batch.step()
        return [samples[start : start + n] for start in range(0, len(samples), n)]


def context_length(model: PreTrainedModel) -> int:
    """Most positions of a sequence. Where layers look back over a window only, the window: inside it both agree."""
    config = model.config
    context = int(config.max_position_embeddings)
    layer_types = getattr(config, "layer_types", None)
    windowed = "sliding_attention" in layer_types if layer_types else True
    window = getattr(config, "sliding_window", None)
    return min(context, int(window)) if window and windowed else context


def generation_eos_ids(model: PreTrainedModel) -> set[int]:
    """End tokens that the checkpoint's generation config, or else its config, names."""
    eos = model.generation_config.eos_token_id if model.generation_config else None
    if eos is None:
        eos = model.config.eos_token_id
    if eos is None:
        return set()
    return set(eos) if isinstance(eos, list | tuple) else {int(eos)}

"""Draws that need more than the kernel does by itself: it leaves the logits, and `sampling.py` draws from them.

Rows share one `Sampler`, made anew only when other samples take part.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from posttrain.rollout.decode import top_logprobs
from posttrain.rollout.sample import Sample, TopLogprobs
from posttrain.rollout.sampling import Sampler, Sampling


def needs_logits(sampling: Sampling) -> bool:
    """Whether the kernel cannot draw by itself what a request asks for."""
    truncated = sampling.temperature > 0 and (sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0)
    return truncated or bool(sampling.logit_bias) or sampling.top_logprobs > 0


@dataclass(eq=False)
class Draws:
    """What was drawn in one step, a row for each sample."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[TopLogprobs] = field(default_factory=list)


class LogitDraws:
    """Holds Float[rows, vocab], which the kernel fills, and draws a token from each row."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._samples: list[Sample] = []
        self._sampler: Sampler | None = None
        self._logits = torch.empty(0, vocab)

    def prepare(self, sequences: np.ndarray, slots: Sequence[int], samples: Sequence[Sample]) -> None:
        """Tells the kernel where the logits of the sequences in `slots` belong."""
        if self._samples != samples:
            self._samples = list(samples)
            self._logits = torch.empty(len(samples), self._vocab)
            seeds = [sample.seed for sample in samples]
            self._sampler = Sampler([s.sampling for s in samples], seeds, self._logits.device) if samples else None
        for row, slot in enumerate(slots):
            sequences["logits"][slot] = self._logits[row].data_ptr()

    def draw(self, sequences: np.ndarray, slots: Sequence[int]) -> Draws:
        """A token for each of `slots`, which goes in next; counted in their sequences."""
        if self._sampler is None:
            return Draws()
        logprobs = self._sampler.logprobs(self._logits)
        places = torch.from_numpy(sequences["count"][list(slots)].astype(np.int64))
        tokens = self._sampler.draw(logprobs, places)
        sequences["token"][list(slots)] = tokens.numpy()
        sequences["count"][list(slots)] += 1
        chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
        tops = top_logprobs(logprobs, [sample.sampling.top_logprobs for sample in self._samples])
        return Draws(tokens.tolist(), chosen, tops or [[] for _ in chosen])

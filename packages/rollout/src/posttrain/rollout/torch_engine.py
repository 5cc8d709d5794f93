"""The plain engine: any causal language model of transformers, by its own modules, on any device and in any dtype.

Batches run whole: samples are added when nothing is in flight, and rows that end are dropped on the way. It holds a
copy of the module for each version of weights that still has samples.
"""

import copy
from collections.abc import Collection, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from posttrain.rollout.decode import Batch
from posttrain.rollout.engine import MAX_BATCH, Engine, Step
from posttrain.rollout.sample import Sample, Weights
from posttrain.rollout.weights import load_weights


class TorchEngine(Engine):
    """Runs transformers' own modules; see `Engine`."""

    def __init__(
        self, model: PreTrainedModel, eos_ids: Collection[int], max_batch: int = MAX_BATCH, digest: str = ""
    ) -> None:
        super().__init__(model, eos_ids, max_batch)
        self.weights = Weights(0, digest, self.model)
        self._batches: list[Batch] = []

    @property
    def free(self) -> int:
        return 0 if self._batches else self.max_batch

    @property
    def running(self) -> int:
        return sum(len(batch.rows) for batch in self._batches)

    def add(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            sample.weights = sample.weights or self.weights
        versions = dict.fromkeys(sample.weights for sample in samples if sample.weights)
        self._batches = [
            Batch(weights.held, [sample for sample in samples if sample.weights is weights], self.eos_ids)
            for weights in versions
        ]

    def step(self) -> Step:
        tokens = 0
        ended: list[Sample] = []
        for batch in self._batches:
            before = [row for row in batch.rows if not row.finish_reason]
            tokens += batch.step()
            ended += [row for row in before if row.finish_reason]
        self._batches = [batch for batch in self._batches if not batch.done]
        return Step(tokens, ended)

    def drop(self) -> None:
        self._batches = []

    def load(self, tensors: Mapping[str, torch.Tensor], version: int, digest: str) -> Weights:
        model = copy.deepcopy(self.model)
        load_weights(model, tensors)
        self.model, self.weights = model, Weights(version, digest, model)
        return self.weights

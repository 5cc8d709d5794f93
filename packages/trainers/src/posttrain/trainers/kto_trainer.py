"""TRL's KTOTrainer over tokenised examples: z0 of the whole batch, reference log-probabilities that are given, and
logits at completion positions only.

TRL estimates z0 on each micro-batch, so that its loss depends on the split; here all micro-batches of a step share the
estimate of the step. On a batch that is not split, loss and gradients are TRL's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor
from trl import KTOTrainer

from posttrain.trainers.forward import Layout, completion_logprobs
from posttrain.trainers.kto_data import Example
from posttrain.trainers.kto_loss import kl_baseline, kto_losses
from posttrain.trainers.resumable_trainer import TokenisedTrainer

Columns = dict[str, list[Any]]


def as_dataset(
    examples: Sequence[Example], logprobs: Float[Tensor, " examples"], mismatched_logprobs: Float[Tensor, " examples"]
) -> Dataset:
    """The examples with the reference's log-probabilities of their two answers, under TRL's names."""
    return Dataset.from_dict(
        {
            "prompt_ids": [example.prompt_ids for example in examples],
            "completion_ids": [example.completion_ids for example in examples],
            "KL_completion_ids": [example.mismatched_ids for example in examples],
            "label": [example.desirable for example in examples],
            "ref_logps": logprobs.tolist(),
            "ref_KL_logps": mismatched_logprobs.tolist(),
        }
    )


def columns(rows: Sequence[dict[str, Any]]) -> Columns:
    """Rows as lists by column. They become tensors when the model reads them, in the layout that it can read."""
    return {name: [row[name] for row in rows] for name in rows[0]}


class AnswerTrainer(TokenisedTrainer, KTOTrainer):
    """TRL's trainer in a fixed order. Set `layout` after construction: what the model reads."""

    layout: Layout

    def examples_in(self, batch: Columns) -> int:
        return len(batch["label"])

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The micro-batches of a step, each with the step's z0, and their number of examples."""
        batches, examples = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            kl = self.baseline(self.model, batches)
            self._metrics["train"]["kl"].append(kl.item())
            batches = [{**batch, "kl": kl} for batch in batches]
        return batches, examples

    @torch.no_grad()
    def baseline(self, model: Any, batches: Sequence[Columns]) -> Float[Tensor, ""]:
        """z0 over all micro-batches, without an adapter's dropout: a resumed run gets its generators back after this:
        drawing from them here would give it other bits than an uninterrupted one."""
        was_training = model.training
        model.eval()
        parts = [self._logratios(model, batch, "KL_completion_ids", "ref_KL_logps") for batch in batches]
        model.train(was_training)
        return kl_baseline(torch.cat(parts))

    def compute_loss(
        self, model: Any, inputs: Columns, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        kl: Any = inputs["kl"] if "kl" in inputs else self.baseline(model, [inputs])
        logratios = self._logratios(model, inputs, "completion_ids", "ref_logps")
        desirable = torch.tensor(inputs["label"], device=logratios.device)
        losses = kto_losses(logratios, desirable, kl, self.beta, self.desirable_weight, self.undesirable_weight)
        rewards = self.beta * logratios.detach()
        # By example, so that what is logged is their mean however they were split.
        for name, side in (("reward/chosen", desirable), ("reward/rejected", ~desirable)):
            if side.any():
                self._metrics["train"][name].extend(rewards[side].tolist())
        loss = losses.sum() / (num_items_in_batch or len(losses))
        return (loss, logratios) if return_outputs else loss

    def _logratios(self, model: Any, batch: Columns, completions: str, reference: str) -> Float[Tensor, " examples"]:
        """log π(y|x) − log π_ref(y|x) of each row."""
        device = self.args.device
        # Examples come in an order without pairs: hardly two of a batch have one prompt.
        alone = range(len(batch["label"]))
        rows = self.layout.rows(batch["prompt_ids"], batch[completions], alone, device)
        with self.accelerator.autocast():
            logprobs, _ = completion_logprobs(model, rows)
        return logprobs.sum(dim=1) - torch.tensor(batch[reference], device=device)

"""Log-probabilities of both answers of preference pairs, as a policy gives them and as a reference gave them.

Each prompt is computed once for its two answers, without padding and with logits at completion positions only, where
the model's attention allows it (packed_rows); else in padded rows. Trains nothing and knows no loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.trainers.comparisons import Comparison
from posttrain.trainers.forward import Layout, Rows, completion_logprobs
from posttrain.trainers.logit_batches import logit_batches
from posttrain.trainers.packed_attention import layout_for, read_packed
from posttrain.trainers.padded_rows import PaddedRows

BATCH = 64
"""Pairs at once without gradients, fewer where their logits would be too many."""


@dataclass(frozen=True)
class PairLogps:
    """Of each pair, log π(y|x) in nats summed over the answer's tokens, and the number of these."""

    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]
    chosen_lengths: Int[Tensor, " pairs"]
    rejected_lengths: Int[Tensor, " pairs"]
    ref_chosen: Float[Tensor, " pairs"] | None = None
    """The reference's; None for methods without one."""
    ref_rejected: Float[Tensor, " pairs"] | None = None


def pair_layout(model: PreTrainedModel, attention: str = "sdpa") -> Layout:
    """Prepares a model for the fastest arrangement of pairs that it can read, and gives that. With another attention
    than sdpa it is left as it is and reads rectangles."""
    return layout_for(read_packed(model.eval())) if attention == "sdpa" else PaddedRows()


def pair_rows(layout: Layout, pairs: Sequence[tuple[list[int], list[int], list[int]]], device: Any = "cpu") -> Rows:
    """(prompt, chosen, rejected) ids as rows: chosen and rejected of the first pair, then of the second, and so on."""
    prompts = [prompt for prompt, _, _ in pairs for _ in range(2)]
    answers = [answer for _, chosen, rejected in pairs for answer in (chosen, rejected)]
    return layout.rows(prompts, answers, [place // 2 for place in range(len(answers))], device)


def pair_logps(model: Any, rows: Rows, ref_logps: Float[Tensor, "pairs 2"] | None = None) -> PairLogps:
    """One differentiable pass over what `pair_rows` made; `ref_logps` are passed on."""
    logprobs, _ = completion_logprobs(model, rows)
    chosen, rejected = logprobs.sum(dim=1).view(-1, 2).unbind(1)
    chosen_lengths, rejected_lengths = rows.mask.sum(dim=1).view(-1, 2).unbind(1)
    ref_chosen, ref_rejected = (None, None) if ref_logps is None else ref_logps.unbind(1)
    return PairLogps(chosen, rejected, chosen_lengths, rejected_lengths, ref_chosen, ref_rejected)


@torch.no_grad()
def all_pair_logps(
    model: PreTrainedModel,
    layout: Layout,
    pairs: Sequence[Comparison],
    precision: Literal["fp32", "bf16"],
    ref_logps: Float[Tensor, "all 2"] | None = None,
) -> PairLogps:
    """Of all pairs, in order, on the CPU: in batches of like length, in evaluation mode, all generators untouched."""
    was_training, device = model.training, model.device
    model.eval()
    order = sorted(range(len(pairs)), key=lambda index: pairs[index].tokens)
    logps, lengths = torch.zeros(2, len(pairs)), torch.zeros(2, len(pairs), dtype=torch.long)
    vocabulary = model.config.get_text_config().vocab_size
    positions = [sum(len(answer) for answer in pairs[index].answers) for index in order]
    for batch in logit_batches(positions, vocabulary, BATCH):
        chosen = order[batch.start : batch.stop]
        rows = pair_rows(layout, [as_pair(pairs[index]) for index in chosen], device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            found = pair_logps(model, rows)
        logps[:, chosen] = torch.stack([found.chosen, found.rejected]).cpu()
        lengths[:, chosen] = torch.stack([found.chosen_lengths, found.rejected_lengths]).cpu()
    model.train(was_training)
    ref_chosen, ref_rejected = (None, None) if ref_logps is None else ref_logps.unbind(1)
    return PairLogps(logps[0], logps[1], lengths[0], lengths[1], ref_chosen, ref_rejected)


def as_pair(row: Comparison) -> tuple[list[int], list[int], list[int]]:
    """(prompt, chosen, rejected) ids of a comparison of two."""
    chosen, rejected = row.answers
    return row.prompt_ids, chosen, rejected

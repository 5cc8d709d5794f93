"""Teacher-forced passes over sampled completions: log-probability, entropy and value of each completion token.

Takes ids as they were sampled, never text. Rows are padded on the right, where causal attention cannot see it, so no
attention mask is needed; the vocabulary's logits are made for completion positions only. Knows nothing of rewards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Prompts with completions as one rectangle of inputs, and where the completions lie in it."""

    input_ids: Int[Tensor, "batch length"]
    """Prompt and completion without its last token, which predicts nothing."""
    targets: Int[Tensor, "batch time"]
    mask: Bool[Tensor, "batch time"]
    """True on the completion's tokens, a prefix of each row."""
    predicts: Bool[Tensor, "batch length"]
    """True at positions whose next token is a completion token; row by row as many as in `mask`."""


def pad_rows(prompt_ids: Sequence[list[int]], completion_ids: Sequence[list[int]], device: Any = "cpu") -> Rows:
    """Lays rows out for a forward pass. Every prompt and completion must have at least one token (ValueError)."""
    if any(not ids for ids in (*prompt_ids, *completion_ids)):
        raise ValueError("an empty prompt or completion has no log-probability")
    length = max(len(p) + len(c) for p, c in zip(prompt_ids, completion_ids, strict=True)) - 1
    time = max(len(c) for c in completion_ids)
    input_ids = torch.zeros(len(prompt_ids), length, dtype=torch.long)
    targets = torch.zeros(len(prompt_ids), time, dtype=torch.long)
    lengths = torch.tensor([[len(p), len(c)] for p, c in zip(prompt_ids, completion_ids, strict=True)])
    for row, (prompt, completion) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
        ids = torch.tensor([*prompt, *completion])
        input_ids[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(completion)] = ids[len(prompt) :]
    first, count = lengths[:, :1] - 1, lengths[:, 1:]
    positions = torch.arange(length)
    predicts = (positions >= first) & (positions < first + count)
    mask = torch.arange(time) < count
    return Rows(input_ids.to(device), targets.to(device), mask.to(device), predicts.to(device))


def completion_logprobs(
    model: Any, rows: Rows, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"] | None]:
    """log softmax(logits / temperature) of each completion token in nats, and if asked that distribution's entropy.

    `model` is any causal language model of transformers (or a wrapper with the same forward). 0 outside the mask.
    """
    first = int(rows.predicts.any(dim=0).to(torch.uint8).argmax())
    keep = torch.arange(first, rows.input_ids.shape[1], device=rows.input_ids.device)
    logits = model(input_ids=rows.input_ids, logits_to_keep=keep, use_cache=False).logits
    logits = logits[rows.predicts[:, first:]].float() / temperature
    logprobs = _scatter(-F.cross_entropy(logits, rows.targets[rows.mask], reduction="none"), rows.mask)
    if not with_entropy:
        return logprobs, None
    log_p = torch.log_softmax(logits, dim=-1)
    return logprobs, _scatter(-(log_p.exp() * log_p).sum(dim=-1), rows.mask)


def completion_outputs(module: Any, rows: Rows) -> Float[Tensor, "batch time"]:
    """What `module(input_ids)`, one number a position, says before each completion token (a critic: V of the state)."""
    return _scatter(module(rows.input_ids)[rows.predicts].float(), rows.mask)


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Row indices grouped so that rows of like length share a rectangle of at most `max_tokens` (or a single row).

    Longest first, so that too large a budget fails at once. The same lengths give the same groups.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _scatter(values: Float[Tensor, " tokens"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)

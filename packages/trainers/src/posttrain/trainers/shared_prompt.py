"""Several answers to one prompt in one row, so that the prompt is computed once.

A row is `prompt, answer 1, …, answer K`. Every answer sees the prompt and itself only, and its positions go on from
the prompt's, so each token's hidden state is what it would be in a sequence of its own (a tree of attention, as in
Cai et al. 2024, Medusa, section 2.1.2). With answers as long as their prompt this saves a quarter of a pair's tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class PromptBatch:
    """B rows padded on the right to T tokens, holding N answers in all."""

    input_ids: Int[Tensor, "B T"]
    position_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B 1 T T"]
    """True where the query (third axis) sees the key (fourth)."""
    rows: Int[Tensor, " N"]
    """The row of each answer."""
    ends: Int[Tensor, " N"]
    """The place of each answer's last token in its row."""
    sizes: list[int]
    """Answers of each row."""


class SharedPromptCollator:
    """Examples `{"prompt_ids": [...], "answers": [[...], …]}` to what a model and `PromptBatch` need, as a dict."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return vars(prompt_batch([(e["prompt_ids"], e["answers"]) for e in examples], self.pad_token_id))


def prompt_batch(examples: Sequence[tuple[list[int], list[list[int]]]], pad_token_id: int) -> PromptBatch:
    """The batch of (prompt ids, ids of each answer); ValueError for an example without answers or an empty one."""
    if not all(answers and all(answers) for _, answers in examples):
        raise ValueError("every example needs at least one answer, and every answer at least one token")
    length = max(len(prompt) + sum(map(len, answers)) for prompt, answers in examples)
    ids = torch.full((len(examples), length), pad_token_id)
    positions = torch.zeros((len(examples), length), dtype=torch.long)
    segments = torch.full((len(examples), length), -1)  # 0 the prompt, k answer k, -1 padding
    rows, ends = [], []
    for row, (prompt, answers) in enumerate(examples):
        place = 0
        for segment, part in enumerate([prompt, *answers]):
            end = place + len(part)
            ids[row, place:end] = torch.tensor(part, dtype=torch.long)
            start = 0 if segment == 0 else len(prompt)
            positions[row, place:end] = torch.arange(start, start + len(part))
            segments[row, place:end] = segment
            place = end
            if segment:
                rows.append(row)
                ends.append(end - 1)
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    # Padding sees itself: a query without any key would give NaN.
    mask = causal & ((key == 0) | (key == query))
    sizes = [len(answers) for _, answers in examples]
    return PromptBatch(ids, positions, mask[:, None], torch.tensor(rows), torch.tensor(ends), sizes)

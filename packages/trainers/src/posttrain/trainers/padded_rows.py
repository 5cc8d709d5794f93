"""Completions as a rectangle: every row its prompt and completion, padded on the right.

Causal attention cannot see padding on the right, so no attention mask is needed and every causal model can read it.
"""

from collections.abc import Sequence
from typing import Any

import torch

from posttrain.trainers.forward import Rows, refuse_empty


class PaddedRows:
    """The layout that every causal model can read; groups mean nothing to it."""

    def split(
        self,
        prompt_ids: Sequence[list[int]],
        completion_ids: Sequence[list[int]],
        groups: Sequence[int],
        max_tokens: int,
    ) -> list[list[int]]:
        """Rectangles of at most `max_tokens`, padding included."""
        lengths = [len(p) + len(c) for p, c in zip(prompt_ids, completion_ids, strict=True)]
        batches: list[list[int]] = []
        for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
            if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
                batches[-1].append(row)
            else:
                batches.append([row])
        return batches

    def rows(
        self,
        prompt_ids: Sequence[list[int]],
        completion_ids: Sequence[list[int]],
        groups: Sequence[int],
        device: Any = "cpu",
    ) -> Rows:
        """Prompt and completion without its last token, which predicts nothing."""
        refuse_empty(prompt_ids, completion_ids)
        prompts = torch.tensor([len(ids) for ids in prompt_ids])[:, None]
        counts = torch.tensor([len(ids) for ids in completion_ids])[:, None]
        length = int((prompts + counts).max()) - 1
        input_ids = torch.zeros(len(prompt_ids), length, dtype=torch.long)
        for row, (prompt, completion) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
            ids = [*prompt, *completion][:-1]
            input_ids[row, : len(ids)] = torch.tensor(ids)
        positions = torch.arange(length)
        predicts = (positions >= prompts - 1) & (positions < prompts - 1 + counts)
        first = int(prompts.min()) - 1
        return Rows(
            inputs={"input_ids": input_ids.to(device)},
            keep=positions[first:].to(device),
            among_kept=predicts[:, first:].flatten().nonzero().squeeze(1).to(device),
            predicts=predicts.flatten().nonzero().squeeze(1).to(device),
            targets=torch.tensor([token for ids in completion_ids for token in ids]).to(device),
            mask=(torch.arange(int(counts.max())) < counts).to(device),
        )

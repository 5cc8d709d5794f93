"""Completions without padding: all tokens of a micro-batch in one sequence, the prompt of a group once.

The layers of a transformer see each token by itself, so they need no rectangle; attention alone must know which token
sees which, and gets that as a `Packing` (see `packed_attention`). A completion's positions go on from its prompt's, so
every token's state is what it would be in a sequence of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from posttrain.trainers.forward import Rows, refuse_empty


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Segments of the sequence, one after the other, as rows padded on the right."""

    to_padded: Int[Tensor, " rows*length"]
    """The token (counted from the first segment's first) at each place; 0 for padding."""
    to_flat: Int[Tensor, " tokens"]
    """The place of each token."""
    rows: int
    length: int
    sizes: Int[Tensor, " rows"]
    """Tokens of each row."""

    @property
    def filled(self) -> Bool[Tensor, "rows length"]:
        """Where a place holds a token."""
        return torch.arange(self.length, device=self.sizes.device) < self.sizes[:, None]


@dataclass(frozen=True, eq=False)
class Packing:
    """Which token of a packed sequence sees which: itself and what is before it in its own row."""

    rows: Rectangle
    """Prompts with their completions; or, if `completions` is there, prompts alone, one a group."""
    completions: Rectangle | None
    """Completions without their last token, as many rows a group as its largest has; they see their group's prompt."""
    needed: Int[Tensor, " needed"]
    """Positions whose last hidden state is asked for, ascending."""
    longest: int
    """Tokens of the longest prompt with its completion."""

    @property
    def members(self) -> int:
        """Rows of completions a group."""
        return self.completions.rows // self.rows.rows if self.completions else 1


class PackedRows:
    """The layout without padding, for models that `packed_attention.read_packed` has prepared."""

    def split(
        self,
        prompt_ids: Sequence[list[int]],
        completion_ids: Sequence[list[int]],
        groups: Sequence[int],
        max_tokens: int,
    ) -> list[list[int]]:
        """Sequences of at most `max_tokens`, without padding and with each prompt once; groups stay together."""
        members: dict[int, list[int]] = {}
        for row, group in enumerate(groups):
            members.setdefault(group, []).append(row)

        def longest(group: int) -> int:
            return max(len(prompt_ids[row]) + len(completion_ids[row]) for row in members[group])

        batches: list[list[int]] = []
        room, shares = 0, False
        for group in sorted(members, key=lambda group: (-longest(group), group)):
            joined = False
            for row in sorted(members[group], key=lambda row: (-len(completion_ids[row]), row)):
                alone = len(prompt_ids[row]) + len(completion_ids[row]) - 1
                # A batch of nothing but single tokens has its rows whole (`rows`).
                tokens = len(completion_ids[row]) - 1 if joined and shares else alone
                if not batches or tokens > room:
                    batches.append([])
                    room, shares, tokens = max_tokens, False, alone
                batches[-1].append(row)
                room, joined, shares = room - tokens, True, shares or len(completion_ids[row]) > 1
        return batches

    def rows(
        self,
        prompt_ids: Sequence[list[int]],
        completion_ids: Sequence[list[int]],
        groups: Sequence[int],
        device: Any = "cpu",
    ) -> Rows:
        """The prompts and then the completions without their last tokens, or each completion behind its prompt."""
        refuse_empty(prompt_ids, completion_ids)
        if len(set(groups)) == len(groups) or max(len(ids) for ids in completion_ids) == 1:
            packed = _behind_prompts(prompt_ids, completion_ids)
        else:
            packed = _apart_from_prompts(prompt_ids, completion_ids, groups)
        ids, positions, rectangles, predicts = packed
        prompts, completions = (_to(rectangle, device) for rectangle in rectangles)
        assert prompts is not None
        predicts = predicts.to(device)
        counts = torch.tensor([len(ids) for ids in completion_ids])
        packing = Packing(prompts, completions, predicts.unique(), int(positions.max()) + 1)
        return Rows(
            inputs={
                "input_ids": ids[None].to(device),
                "position_ids": positions[None].to(device),
                "packing": packing,
            },
            keep=predicts,
            among_kept=None,
            predicts=predicts,
            targets=torch.tensor([token for ids in completion_ids for token in ids]).to(device),
            mask=(torch.arange(int(counts.max())) < counts[:, None]).to(device),
        )


_Packed = tuple[Tensor, Tensor, tuple[Rectangle, Rectangle | None], Tensor]
"""Ids, positions, rectangles, and the position that predicts each completion token."""


def _behind_prompts(prompt_ids: Sequence[list[int]], completion_ids: Sequence[list[int]]) -> _Packed:
    """Every row whole."""
    rows = [[*prompt, *completion[:-1]] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
    rectangle = _rectangle([len(ids) for ids in rows])
    ends = rectangle.sizes.cumsum(0)
    predicts = [torch.arange(int(end) - len(ids), int(end)) for end, ids in zip(ends, completion_ids, strict=True)]
    ids = torch.tensor([token for row in rows for token in row])
    return ids, rectangle.to_flat % rectangle.length, (rectangle, None), torch.cat(predicts)


def _apart_from_prompts(
    prompt_ids: Sequence[list[int]], completion_ids: Sequence[list[int]], groups: Sequence[int]
) -> _Packed:
    """Each group's prompt once, and behind all prompts the completions, group by group."""
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    order = [row for rows in members.values() for row in rows]
    prompts = [prompt_ids[rows[0]] for rows in members.values()]
    most = max(len(rows) for rows in members.values())
    # Rows that a small group lacks stay empty.
    lengths = [
        len(completion_ids[rows[i]]) - 1 if i < len(rows) else 0 for rows in members.values() for i in range(most)
    ]
    first, second = _rectangle([len(ids) for ids in prompts]), _rectangle(lengths)
    before = first.sizes.repeat_interleave(most)
    positions = torch.cat(
        [first.to_flat % first.length, second.to_flat % second.length + before[second.to_flat // second.length]]
    )
    ends = dict(zip(members, (first.sizes.cumsum(0) - 1).tolist(), strict=True))
    place = len(first.to_flat)
    predicts: dict[int, list[int]] = {}
    for row in order:
        count = len(completion_ids[row]) - 1
        predicts[row] = [ends[groups[row]], *range(place, place + count)]
        place += count
    ids = [token for prompt in prompts for token in prompt] + [t for row in order for t in completion_ids[row][:-1]]
    return (
        torch.tensor(ids),
        positions,
        (first, second),
        torch.tensor([place for row in range(len(groups)) for place in predicts[row]]),
    )


def _rectangle(lengths: Sequence[int]) -> Rectangle:
    sizes, length = torch.tensor(lengths), max(lengths)
    to_flat = (torch.arange(length) < sizes[:, None]).flatten().nonzero().squeeze(1)
    to_padded = torch.zeros(len(lengths) * length, dtype=torch.long)
    to_padded[to_flat] = torch.arange(len(to_flat))
    return Rectangle(to_padded, to_flat, len(lengths), length, sizes)


def _to(rectangle: Rectangle | None, device: Any) -> Rectangle | None:
    if rectangle is None:
        return None
    tensors = (rectangle.to_padded.to(device), rectangle.to_flat.to(device))
    return Rectangle(*tensors, rectangle.rows, rectangle.length, rectangle.sizes.to(device))

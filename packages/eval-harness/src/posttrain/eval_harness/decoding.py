"""Greedy or sampled answers of a model to prompts as token ids: the loop behind the hf backend's generated answers.

What all prompts begin with is computed once, and so is a prompt that is asked for several samples; rows that have ended
leave the batch. A sample depends on its own seed and nothing beside it, up to the last digits of the arithmetic. Knows
nothing of text: who looks for stop strings passes `ended`.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from posttrain.eval_harness.column_cache import ColumnCache
from posttrain.eval_harness.passes import forward

LOOK_EVERY = 8
"""Tokens between two calls of `ended`; a row may overshoot by as many, and the caller cuts."""
KEPT_SHARE = 0.75
"""Of the rows of a batch: when no more are running, those are copied together."""


@dataclass(frozen=True)
class Draws:
    """How rows are sampled: softmax(logits / temperature), row r by a Philox stream of `seeds[r]`."""

    temperature: float
    seeds: Sequence[int]


@torch.inference_mode()
def decode(
    model: Any,
    prefix: ColumnCache,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    ends: Collection[int],
    ended: Callable[[list[list[int]]], list[bool]],
    draws: Draws | None = None,
) -> list[list[int]]:
    """The tokens that follow each prompt, the first end token included; at most `new_tokens`.

    prompts: what comes after the tokens in `prefix` (a cache of one row), at least one token each.
    ended: told the tokens of running rows every few tokens, it says which of them are done.
    draws: None takes the likeliest token.
    """
    logits, cache, cached, lengths = _prefill(model, prefix, prompts, new_tokens)
    chooser = _Chooser(draws, len(prompts), new_tokens, model.device)
    answers: list[list[int]] = [[] for _ in prompts]
    running = list(range(len(prompts)))  # row of the batch → prompt
    live = [True] * len(running)
    for step in range(new_tokens):
        tokens = chooser.choose(logits, step)
        for row, token in enumerate(tokens.tolist()):
            if live[row]:
                answers[running[row]].append(token)
                live[row] = token not in ends
        if (step + 1) % LOOK_EVERY == 0 and any(live):
            looked = [row for row, alive in enumerate(live) if alive]
            for row, over in zip(looked, ended([answers[running[row]] for row in looked]), strict=True):
                live[row] = not over
        if step + 1 == new_tokens or not any(live):
            break
        if sum(live) <= KEPT_SHARE * len(live):
            kept = [row for row, alive in enumerate(live) if alive]
            cache, cached, lengths = cache.fork(kept, cache.capacity), cached[kept], lengths[kept]
            tokens, running, live = tokens[kept], [running[row] for row in kept], [True] * len(kept)
            chooser.select(kept)
        cached = torch.cat([cached, cached.new_ones(len(cached), 1)], dim=1)
        visible = None if bool(cached.all()) else cached[:, None]
        logits = forward(model, cache, tokens[:, None], lengths[:, None], visible, 1)[:, -1]
        lengths = lengths + 1
    return answers


def _prefill(
    model: Any, prefix: ColumnCache, prompts: Sequence[Sequence[int]], new_tokens: int
) -> tuple[torch.Tensor, ColumnCache, torch.Tensor, torch.Tensor]:
    """Float[rows, vocab] logits, cache, Bool[rows, columns] of what each row sees of it, Long[rows] tokens of each."""
    unique = list(dict.fromkeys(map(tuple, prompts)))
    begun, own = prefix.length, max(map(len, unique))
    ids = torch.zeros(len(unique), own, dtype=torch.long)
    for row, prompt in enumerate(unique):
        ids[row, own - len(prompt) :] = torch.tensor(prompt)
    lengths = torch.tensor([len(prompt) for prompt in unique])
    columns = torch.arange(own)
    positions = (columns - own + lengths[:, None]).clamp(min=0) + begun
    present = columns >= own - lengths[:, None]
    cached = torch.cat([torch.ones(len(unique), begun, dtype=torch.bool), present], dim=1)
    causal = torch.ones(own, begun + own, dtype=torch.bool).tril(begun)
    visible = None if begun == 0 and bool(present.all()) else (causal & cached[:, None, :]).to(model.device)
    cache = prefix.fork([0] * len(unique), begun + own + new_tokens) if begun else ColumnCache(own + new_tokens)
    logits = forward(model, cache, ids.to(model.device), positions.to(model.device), visible, 1)[:, -1]
    places = {prompt: row for row, prompt in enumerate(unique)}
    rows = [places[tuple(prompt)] for prompt in prompts]
    if len(unique) < len(prompts):
        cache = cache.fork(rows, cache.capacity)
    return logits[rows], cache, cached[rows].to(model.device), (begun + lengths[rows]).to(model.device)


class _Chooser:
    """Takes one token a row: the likeliest, or by the row's own random numbers."""

    def __init__(self, draws: Draws | None, rows: int, count: int, device: torch.device) -> None:
        self.temperature = draws.temperature if draws else 0.0
        uniforms = np.zeros((rows, 0))
        if draws and draws.temperature > 0:
            streams = [np.random.Generator(np.random.Philox(key=seed & (2**64 - 1))) for seed in draws.seeds]
            uniforms = np.stack([stream.random(count) for stream in streams])
        self.uniforms = torch.from_numpy(uniforms).to(device)

    def choose(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        """Long[rows] from Float[rows, vocab]."""
        if not self.temperature:
            return logits.argmax(-1)
        # In float64: in float32 the tail of a large vocabulary would vanish.
        cumulative = (logits.double() / self.temperature).softmax(-1).cumsum(-1)
        targets = self.uniforms[:, step, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, targets, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)

    def select(self, rows: list[int]) -> None:
        """Keeps those rows, in that order."""
        self.uniforms = self.uniforms[rows]

"""How one token is drawn from logits: settings of a request, random numbers of a sample, the draw itself.

Pure functions of tensors. Every row carries its own settings and its own random number, so what a row draws depends
on its logits alone and never on the rows beside it. Nothing here knows of models, caches or text.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, Field

from posttrain.core.config import Settings
from posttrain.core.seeds import derive_seed

LARGEST_DRAW = 1.0 - 2.0**-40
"""Draws stay below it, so that `u * total` never rounds up to `total`, which would pick a token of probability 0."""


LOWEST_TEMPERATURE = 0.01
"""Of sampling: fp32 overflows far below it, and vLLM takes no lower one."""


def _greedy_or_warm(temperature: float) -> float:
    if 0 < temperature < LOWEST_TEMPERATURE:
        raise ValueError(f"temperature must be 0, which is greedy, or at least {LOWEST_TEMPERATURE}")
    return temperature


Temperature = Annotated[float, Field(ge=0.0, le=100.0), AfterValidator(_greedy_or_warm)]


class Sampling(Settings):
    """What a request asks of each of its completions."""

    max_tokens: int = Field(default=16, ge=0)
    """Most tokens to sample, the end token included. 0 is for `echo` alone."""
    temperature: Temperature = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Keeps the smallest set of most probable tokens whose probability reaches it (Holtzman et al. 2020)."""
    top_k: int = Field(default=0, ge=-1)
    """Keeps the k most probable tokens; 0 and -1 keep all."""
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    """Drops tokens below this share of the most probable one's probability (Nguyen et al. 2024)."""
    logit_bias: dict[int, float] = Field(default_factory=dict)
    """Added to the logits of these token ids before everything else."""
    stop: tuple[str, ...] = ()
    """Generation ends when one of these appears in the text, which is cut before it."""
    ignore_eos: bool = False
    """Goes on to `max_tokens` past end tokens; for measurements."""
    top_logprobs: int = Field(default=0, ge=0)
    """How many of the most probable tokens to report at each place."""
    echo: bool = False
    """Also report the log-probabilities of the prompt's own tokens."""


def sample_seed(seed: int, prompt: int, choice: int) -> int:
    """The seed of choice `choice` of prompt `prompt` under a request's `seed`."""
    return derive_seed(seed, "sample", prompt, choice)


def uniform_draws(seeds: Sequence[int], count: int) -> torch.Tensor:
    """Float64[rows, count] in [0, 1): row r is a Philox stream keyed by `seeds[r]` alone (Salmon et al. 2011)."""
    generator = np.random.Philox(key=0)
    fresh: dict[str, Any] = generator.state  # type: ignore[assignment]
    raw = np.empty((len(seeds), count), np.uint64)
    for row, seed in enumerate(seeds):
        # A new generator a row would take five times as long as setting one back.
        fresh["state"]["key"][:] = seed & (2**64 - 1), seed >> 64
        generator.state = fresh  # type: ignore[assignment]
        raw[row] = generator.random_raw(count)
    uniforms = (raw >> np.uint64(11)) * 2.0**-53
    return torch.from_numpy(np.minimum(uniforms, LARGEST_DRAW))


class Sampler:
    """Draws for a fixed list of rows. Settings that no row uses cost nothing.

    `settings` and `seeds` are one a row. `select` keeps some rows when others have finished.
    """

    def __init__(self, settings: Sequence[Sampling], seeds: Sequence[int], device: torch.device) -> None:
        def column(values: list[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self.greedy = column([s.temperature == 0 for s in settings], torch.bool)
        # Greedy rows report log-probabilities at temperature 1.
        self.temperature = column([s.temperature or 1.0 for s in settings])
        self.top_p = column([s.top_p for s in settings])
        self.top_k = column([s.top_k if s.top_k > 0 else 2**31 for s in settings], torch.long)
        self.min_p = column([s.min_p for s in settings])
        self.bias = [s.logit_bias for s in settings]
        sampled = any(s.temperature > 0 for s in settings)
        count = max(s.max_tokens for s in settings)
        self.draws = uniform_draws(seeds, count).to(device) if sampled and count else None
        self._summarise()

    def select(self, rows: torch.Tensor) -> None:
        """Keeps `rows` (Long[kept]), in that order."""
        for name in ("greedy", "temperature", "top_p", "top_k", "min_p"):
            setattr(self, name, getattr(self, name)[rows])
        self.bias = [self.bias[row] for row in rows.tolist()]
        self.draws = None if self.draws is None else self.draws[rows]
        self._summarise()

    def _summarise(self) -> None:
        self._any_greedy, self._all_greedy = bool(self.greedy.any()), bool(self.greedy.all())
        self._scaled = bool((self.temperature != 1).any())
        self._biased = any(self.bias)
        sampled = ~self.greedy
        self._truncated = bool(((self.top_p < 1) | (self.top_k < 2**31) | (self.min_p > 0))[sampled].any())

    def logprobs(self, logits: torch.Tensor) -> torch.Tensor:
        """Float[rows, vocab]: log softmax((logits + bias) / temperature), before any truncation."""
        logits = logits.float()
        if self._biased:
            logits = logits.clone()
            for row, bias in enumerate(self.bias):
                if bias:
                    ids = torch.tensor(list(bias), device=logits.device)
                    logits[row, ids] += torch.tensor(list(bias.values()), device=logits.device)
        if self._scaled:
            logits = logits / self.temperature[:, None]
        return logits.log_softmax(-1)

    def draw(self, logprobs: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Long[rows]: a token a row from Float[rows, vocab], with the random number of place `places[row]`."""
        if self._all_greedy:
            return logprobs.argmax(-1)
        assert self.draws is not None
        kept = truncate(logprobs, self.top_k, self.top_p, self.min_p) if self._truncated else logprobs
        uniforms = self.draws.gather(1, places[:, None])[:, 0]
        tokens = inverse_cdf(kept.exp(), uniforms)
        return torch.where(self.greedy, logprobs.argmax(-1), tokens) if self._any_greedy else tokens


def truncate(logprobs: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Float[rows, vocab] with -inf where top-k, then top-p of what is left, then min-p excludes a token.

    As transformers' TopK-, TopP- and MinPLogitsWarper in that order; the most probable token always stays.
    """
    ordered, order = logprobs.sort(descending=True, dim=-1, stable=True)
    vocab = logprobs.shape[-1]
    kth = ordered.gather(1, (top_k.clamp(max=vocab) - 1)[:, None])
    probabilities = ordered.masked_fill(ordered < kth, -torch.inf).softmax(-1).double()
    # A token stays if what lies before it has not reached top_p yet.
    before = probabilities.cumsum(-1) - probabilities
    dropped = (before >= top_p[:, None]) | (ordered < kth) | (probabilities < min_p[:, None] * probabilities[:, :1])
    dropped[:, 0] = False
    return logprobs.masked_fill(torch.zeros_like(dropped).scatter_(1, order, dropped), -torch.inf)


def inverse_cdf(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Long[rows]: the first token whose cumulative share exceeds `uniforms` (Float64[rows] in [0, 1)).

    `weights` (Float[rows, vocab]) need not sum to 1. Sums are in float64: in float32 the tail of a large vocabulary
    would vanish. A token of weight 0 is never drawn.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    targets = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True)[:, 0]

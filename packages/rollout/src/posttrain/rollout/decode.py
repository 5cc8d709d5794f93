"""A batch of sequences on its way: prompts computed once, then one token a row and step.

It runs the transformers modules of any Llama-like model, with `BatchCache` for keys and values. It knows token ids
only: text, requests and schedules are somebody else's.
"""

from collections.abc import Collection, Sequence

import torch
from transformers import PreTrainedModel

from posttrain.rollout.cache import BatchCache
from posttrain.rollout.sample import PromptLogprobs, Sample, TopLogprobs
from posttrain.rollout.sampling import Sampler

KEPT_SHARE = 0.75
"""Finished rows are removed once fewer than this share still runs: removing copies the cache, keeping them computes
for nothing (on the nano model the two are equal near here)."""


class Batch:
    """Samples that run together, in the order given. Call `step` until `done`.

    `eos_ids` end a sample. `prefill_tokens` bounds how many prompt tokens one forward pass takes; `logit_floats` how
    many logits it may produce (only `echo` needs those of every place).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        samples: Sequence[Sample],
        eos_ids: Collection[int],
        *,
        prefill_tokens: int = 8192,
        logit_floats: int = 1 << 25,
    ) -> None:
        self.model, self.eos_ids = model, frozenset(eos_ids)
        self.prefill_tokens, self.logit_floats = prefill_tokens, logit_floats
        self.rows: list[Sample] = list(samples)
        device = model.device
        self.sampler = Sampler([s.sampling for s in self.rows], [s.seed for s in self.rows], device)
        self.cache = BatchCache(model.config.num_hidden_layers)
        self.starts = torch.zeros(len(self.rows), dtype=torch.long, device=device)
        self._tokens: torch.Tensor | None = None

    @property
    def done(self) -> bool:
        """Whether every sample has finished."""
        return not self.rows

    @torch.inference_mode()
    def step(self) -> int:
        """Samples one token for every unfinished row and returns how many; the first call computes the prompts."""
        if self._tokens is None:
            logits = self._prefill()
            for row in self.rows:
                if row.sampling.max_tokens == 0:
                    row.finish_reason = "length"
            if all(row.finish_reason for row in self.rows):
                self.rows = []
                return 0
        else:
            self._drop_finished()
            if self.done:
                return 0
            logits = self._forward(self._tokens[:, None], self.starts, self.cache, keep=1)[:, -1]
        logprobs = self.sampler.logprobs(logits)
        places = torch.tensor([len(row.token_ids) for row in self.rows], device=logits.device)
        # A row that has finished but is still computed draws at a place that it will never report.
        if self.sampler.draws is not None:
            places.clamp_(max=self.sampler.draws.shape[1] - 1)
        self._tokens = self.sampler.draw(logprobs, places)
        count = self._record(logprobs)
        if all(row.finish_reason for row in self.rows):
            self.rows = []
        return count

    def _record(self, logprobs: torch.Tensor) -> int:
        assert self._tokens is not None
        chosen = logprobs.gather(1, self._tokens[:, None])[:, 0].tolist()
        tops = top_logprobs(logprobs, [row.sampling.top_logprobs for row in self.rows])
        count = 0
        for index, (row, token) in enumerate(zip(self.rows, self._tokens.tolist(), strict=True)):
            if row.finish_reason:
                continue
            if row.cancelled:
                row.finish_reason = "cancelled"
                continue
            count += 1
            row.take(token, chosen[index], tops[index] if tops else [], token in self.eos_ids)
        return count

    def _drop_finished(self) -> None:
        assert self._tokens is not None
        running = [index for index, row in enumerate(self.rows) if not row.finish_reason]
        if len(running) > KEPT_SHARE * len(self.rows):
            return
        self.rows = [self.rows[index] for index in running]
        if self.done:
            return
        kept = torch.tensor(running, device=self.starts.device)
        first = int(self.starts[kept].min())
        self.cache.select(kept, first)
        self.starts = self.starts[kept] - first
        self.sampler.select(kept)
        self._tokens = self._tokens[kept]

    def _prefill(self) -> torch.Tensor:
        """Computes each different prompt once; Float[rows, vocab] logits for the first token."""
        # Prompts under different settings differ only in what `echo` reports of them.
        keys = [(row.prompt, row.sampling if row.sampling.echo else None) for row in self.rows]
        where: dict[object, list[int]] = {}
        for index, (prompt, sampling) in enumerate(keys):
            where.setdefault((prompt, sampling.model_dump_json() if sampling else None), []).append(index)
        groups = sorted(where.values(), key=lambda rows: len(self.rows[rows[0]].prompt))
        self.cache.length = len(self.rows[groups[-1][0]].prompt)
        self.cache.reserve(self.cache.length + min(max(row.sampling.max_tokens for row in self.rows), 128))
        logits: torch.Tensor | None = None
        while groups:
            width = 1
            while width < len(groups) and (width + 1) * len(self.rows[groups[width][0]].prompt) <= self.prefill_tokens:
                width += 1
            part, groups = groups[:width], groups[width:]
            cache, last = self._prefill_part([self.rows[rows[0]] for rows in part])
            for rows in part:
                for row in rows:
                    self.rows[row].prompt_logprobs = self.rows[rows[0]].prompt_logprobs
            sources = torch.tensor([i for i, rows in enumerate(part) for _ in rows], device=last.device)
            targets = torch.tensor([row for rows in part for row in rows], device=last.device)
            self.cache.place(cache, sources, targets, len(self.rows))
            self.starts[targets] = self.cache.length - torch.tensor(
                [len(self.rows[row].prompt) for rows in part for row in rows], device=last.device
            )
            if logits is None:
                logits = last.new_empty(len(self.rows), last.shape[-1])
            logits[targets] = last[sources]
        assert logits is not None
        return logits

    def _prefill_part(self, rows: list[Sample]) -> tuple[BatchCache, torch.Tensor]:
        """The cache of some prompts and the logits after each, in passes of bounded size over their columns."""
        device = self.model.device
        length = max(len(row.prompt) for row in rows)
        ids = torch.tensor([[0] * (length - len(row.prompt)) + list(row.prompt) for row in rows], device=device)
        starts = torch.tensor([length - len(row.prompt) for row in rows], device=device)
        echo = any(row.sampling.echo for row in rows)
        sampler = Sampler([row.sampling.model_copy(update={"max_tokens": 0}) for row in rows], [0] * len(rows), device)
        for row in rows:
            row.prompt_logprobs = PromptLogprobs() if row.sampling.echo else None
        columns = max(1, self.prefill_tokens // len(rows))
        if echo:
            columns = max(1, min(columns, self.logit_floats // (len(rows) * self.model.config.vocab_size)))
        cache = BatchCache(self.model.config.num_hidden_layers)
        cache.reserve(length)
        for begin in range(0, length, columns):
            part = ids[:, begin : begin + columns]
            logits = self._forward(part, starts, cache, keep=0 if echo else 1)
            if echo:
                _record_prompt(rows, sampler, logits, ids, begin)
        return cache, logits[:, -1]

    def _forward(self, ids: torch.Tensor, starts: torch.Tensor, cache: BatchCache, keep: int) -> torch.Tensor:
        """Float[rows, q or keep, vocab]: one pass over Long[rows, q] that follow what is in `cache`."""
        begin, end = cache.length, cache.length + ids.shape[1]
        columns = torch.arange(end, device=ids.device)
        queries = columns[begin:]
        mask = None
        if bool(starts.any()) or (begin and ids.shape[1] > 1):
            # Padding sees itself, since a row of a softmax must see something.
            visible = (columns >= starts[:, None, None]) & (columns <= queries[:, None]) | (columns == queries[:, None])
            mask = torch.zeros(visible.shape, dtype=self.model.dtype, device=ids.device)
            mask = mask.masked_fill_(~visible, -torch.inf)[:, None]
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(queries - starts[:, None]).clamp_(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        cache.length = end
        return output.logits


def top_logprobs(logprobs: torch.Tensor, counts: Sequence[int]) -> list[TopLogprobs]:
    """The `counts[row]` most probable tokens of each row of Float[rows, vocab], most probable first."""
    most = max(counts)
    if not most:
        return []
    values, ids = logprobs.topk(min(most, logprobs.shape[-1]), dim=-1)
    pairs = zip(ids.tolist(), values.tolist(), counts, strict=True)
    return [list(zip(row_ids, row_values, strict=True))[:count] for row_ids, row_values, count in pairs]


def _record_prompt(rows: list[Sample], sampler: Sampler, logits: torch.Tensor, ids: torch.Tensor, begin: int) -> None:
    """Adds to each row's `prompt_logprobs` what Float[rows, q, vocab] logits from column `begin` say of the next id."""
    length = ids.shape[1]
    for offset in range(logits.shape[1]):
        column = begin + offset
        if column + 1 >= length:
            return
        logprobs = sampler.logprobs(logits[:, offset])
        chosen = logprobs.gather(1, ids[:, column + 1 : column + 2])[:, 0].tolist()
        tops = top_logprobs(logprobs, [row.sampling.top_logprobs for row in rows])
        for index, row in enumerate(rows):
            if row.prompt_logprobs is not None and column >= length - len(row.prompt):
                row.prompt_logprobs.logprobs.append(chosen[index])
                if row.sampling.top_logprobs:
                    row.prompt_logprobs.top.append(tops[index])

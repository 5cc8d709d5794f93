"""A checkpoint as lm-eval's language model, computed here: stock HFLM with our tokenizer and true greedy decoding.

Same numbers as HFLM, with some things settled: those of `taskwise.py`, and that the tokenizer and chat template are
those of training, and that generation ends at the tokenizer's end token, whatever the checkpoint's generation settings
say; these settings (temperature, repetition penalty) do not enter. What the prompts of a task share is computed once,
by `scoring.py` and `decoding.py`, where the architecture lets it; otherwise stock HFLM computes.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from posttrain.data.chat import load_tokenizer
from posttrain.eval_harness.checkpoint_settings import cannot_load, end_tokens, refuse_other_folders
from posttrain.eval_harness.column_cache import ColumnCache
from posttrain.eval_harness.decoding import LOOK_EVERY, Draws, decode
from posttrain.eval_harness.passes import common_prefix, computes_in_parts, prefill
from posttrain.eval_harness.scoring import Pair, score
from posttrain.eval_harness.taskwise import Limits, TaskwiseLM

Shared = tuple[tuple[int, ...], ColumnCache]
"""What prompts begin with, computed."""


class CheckpointLM(TaskwiseLM, HFLM):
    """A folder's or Hub id's causal language model for `lm_eval.evaluator.evaluate`."""

    def __init__(
        self, checkpoint: str, batch_size: int, device: str, dtype: torch.dtype | str, revision: str | None
    ) -> None:
        """`dtype`: a torch dtype or "auto", the saved one."""
        tokenizer = load_tokenizer(checkpoint, revision)
        model = _load_model(checkpoint, dtype, revision).to(device)
        ends = end_tokens(tokenizer.eos_token_id, model.config, model.generation_config)
        model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.keep_account(ends)

    @cached_property
    def in_parts(self) -> bool:
        """Whether what prompts share can be computed once."""
        return computes_in_parts(self.model)

    def _shared(self, limits: Limits, prompts: Sequence[list[int]]) -> Shared | None:
        """What all prompts that fit begin with, computed; None when stock generation has to do."""
        if not limits.plain or not self.in_parts:
            return None
        prefix = common_prefix([prompt for prompt in prompts if len(prompt) <= limits.room])
        with torch.inference_mode():
            return prefix, prefill(self.model, prefix)

    def _generate(
        self, requests: Sequence[Any], prompts: Sequence[list[int]], limits: Limits, shared: Shared | None
    ) -> list[str]:
        if shared is not None:
            draws = Draws(limits.temperature, [self.seed_of(request) for request in requests])
            tokens = self._decode(prompts, limits, shared, draws if limits.temperature else None)
        else:
            padded = self.tokenizer.pad({"input_ids": list(prompts)}, padding_side="left", return_tensors="pt")
            output = self._model_generate(
                context=padded["input_ids"].to(self.device),
                attention_mask=padded["attention_mask"].to(self.device),
                max_length=padded["input_ids"].shape[1] + limits.new_tokens,
                stop=limits.stops,
                **limits.settings,
            )
            tokens = output[:, padded["input_ids"].shape[1] :].tolist()
        answers = []
        for request, generated in zip(requests, tokens, strict=True):
            answer, reason = self._answer(generated, limits.stops)
            self._note_reason(request, reason)
            answers.append(answer)
        return answers

    def _decode(
        self, prompts: Sequence[list[int]], limits: Limits, shared: Shared, draws: Draws | None
    ) -> list[list[int]]:
        prefix, cache = shared
        begun = len(prefix)
        if any(tuple(prompt[:begun]) != prefix for prompt in prompts):  # one was cut on the left
            begun, cache = 0, ColumnCache(0)
        suffixes = [prompt[begun:] for prompt in prompts]
        looked_for = [stop for stop in limits.stops if stop and stop != self.tokenizer.eos_token]

        def ended(rows: list[list[int]]) -> list[bool]:
            if not looked_for:
                return [False] * len(rows)
            return [any(stop in text for stop in looked_for) for text in self.tokenizer.batch_decode(rows)]

        return decode(self.model, cache, suffixes, limits.new_tokens, self.end_tokens, ended, draws)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **settings: Any) -> torch.Tensor:
        if not settings.get("do_sample"):
            settings.pop("temperature", None)
        return self.model.generate(
            input_ids=context,
            max_length=max_length,
            stopping_criteria=StoppingCriteriaList([_StopStrings(self.tokenizer, stop, context.shape[1])]),
            use_cache=True,
            **settings,
        )

    def _rolling(self, requests: list[Any]) -> list[float]:
        return list(HFLM.loglikelihood_rolling(self, requests, disable_tqdm=True))

    def _likelihoods(self, requests: list[Any], batch_size: int) -> list[tuple[float, bool]]:
        """Log-likelihood and greediness of (texts, context ids, continuation ids)."""
        if not self.in_parts:
            return list(HFLM._loglikelihood_tokens(self, requests, disable_tqdm=True, override_bs=batch_size))
        return score(self.model, [self._cut(*request[1:]) for request in requests], batch_size, self._progress.advance)

    def _cut(self, prompt: list[int], tokens: list[int]) -> Pair:
        """A context that fits with its continuation, of which the last token is not fed."""
        return prompt[-(self.max_length + 1 - len(tokens)) :], tokens

    def _model_call(self, inps: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        logits = super()._model_call(inps, *arguments, **options)
        self._progress.advance(len(inps))
        return logits


class _StopStrings(StoppingCriteria):
    """Which rows hold a stop string in what they generated."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], start: int) -> None:
        # The end token is the model's own business: generate() ends a row at it.
        self.stops = [stop for stop in stops if stop and stop != tokenizer.eos_token]
        self.tokenizer, self.start = tokenizer, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        generated = input_ids[:, self.start :]
        if self.stops and generated.shape[1] % LOOK_EVERY == 0:
            texts = self.tokenizer.batch_decode(generated)
            done |= torch.tensor([any(stop in text for stop in self.stops) for text in texts], device=done.device)
        return done


def _load_model(checkpoint: str, dtype: torch.dtype | str, revision: str | None) -> Any:
    refuse_other_folders(checkpoint)
    try:
        return AutoModelForCausalLM.from_pretrained(
            checkpoint, revision=revision or "main", dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise cannot_load(checkpoint, error) from error

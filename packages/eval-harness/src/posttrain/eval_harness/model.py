"""A checkpoint as lm-eval's language model: stock HFLM with our tokenizer, true greedy decoding and honest ends.

Same numbers as HFLM, with some things settled. The tokenizer and chat template are those of training. Each task is
batched by itself. Generation ends at the tokenizer's end token, whatever the checkpoint's generation settings say, and
these settings (temperature, repetition penalty) do not enter. Stop strings are looked for every few tokens instead of
decoding every row at every one, and a row that has ended is done; the text is cut at the first of them as before. Each
answer's finish reason is kept. Prompts that do not fit the context are cut on the left as HFLM does, and counted.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from posttrain.core.errors import RequestError
from posttrain.core.wire import FinishReason
from posttrain.data.chat import load_tokenizer
from posttrain.eval_harness.late_progress import LateProgress

LOOK_FOR_STOPS_EVERY = 8
"""Tokens between two searches for stop strings; a row may overshoot by as many, which the cut removes."""


class CheckpointLM(HFLM):
    """A folder's or Hub id's causal language model for `lm_eval.evaluator.evaluate`."""

    def __init__(
        self, checkpoint: str, batch_size: int, device: str, dtype: torch.dtype | str, revision: str | None
    ) -> None:
        tokenizer = load_tokenizer(checkpoint, revision)
        model = _load_model(checkpoint, dtype, revision).to(device)
        ends = _end_tokens(model, tokenizer.eos_token_id)
        model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.end_tokens = frozenset(ends)
        self.finish_reasons: dict[tuple[str, int], str] = {}
        """"stop" or "length" by task and item number, of the item's last generation."""
        self.prompts_cut: dict[str, int] = defaultdict(int)
        """How many requests of a task were cut on the left to fit the context."""
        self._progress = LateProgress()
        self._task = ""

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer's text of each request, cut at the first stop string or end token."""
        answers = [""] * len(requests)
        with self._progress.over(len(requests), "generating"):
            for members in _places(requests, lambda request: (request.task_name, repr(request.args[1]))):
                lengths = {index: len(self.tok_encode(requests[index].args[0])) for index in members}
                members.sort(key=lambda index: (-lengths[index], requests[index].args[0]))
                for start in range(0, len(members), self.batch_size):
                    batch = members[start : start + self.batch_size]
                    generated = self._generate([requests[index] for index in batch], [lengths[i] for i in batch])
                    for index, answer in zip(batch, generated, strict=True):
                        answers[index] = answer
                    self._progress.advance(len(batch))
        return answers

    def _generate(self, requests: Sequence[Any], lengths: Sequence[int]) -> list[str]:
        settings, stops, new_tokens, room = self._limits(requests, lengths)
        prompts, mask = self.tok_batch_encode(
            [request.args[0] for request in requests], left_truncate_len=room, truncation=self.truncation
        )
        output = self._model_generate(
            context=prompts.to(self.device),
            attention_mask=mask.to(self.device),
            max_length=prompts.shape[1] + new_tokens,
            stop=stops,
            **settings,
        )
        answers = []
        for request, tokens in zip(requests, output.tolist(), strict=True):
            answer, reason = self._answer(tokens[prompts.shape[1] :], stops)
            self.finish_reasons[request.task_name, request.doc_id] = reason
            answers.append(answer)
        return answers

    def _limits(self, requests: Sequence[Any], lengths: Sequence[int]) -> tuple[dict[str, Any], list[str], int, int]:
        """What requests of one kind share: sampling settings, stop strings, new tokens, and tokens left for a prompt.

        Counts the prompts that are longer.
        """
        settings = normalize_gen_kwargs(requests[0].args[1], self.max_gen_toks)
        stops = handle_stop_sequences(
            settings.pop("until", None), eos=self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        )
        new_tokens = settings.pop("max_gen_toks")
        room = self.max_length - new_tokens
        if room <= 0:
            raise RequestError(
                f"task {requests[0].task_name} generates up to {new_tokens} tokens and the model's context is "
                f"{self.max_length}: nothing is left for the prompt; set --max-gen-toks below that"
            )
        for request, length in zip(requests, lengths, strict=True):
            self.prompts_cut[request.task_name] += length > room
        return settings, stops, new_tokens, room

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

    def _answer(self, tokens: list[int], stops: list[str]) -> tuple[str, FinishReason]:
        """The text of generated tokens up to the first end token or stop string, and whether there was one."""
        end = next((place for place, token in enumerate(tokens) if token in self.end_tokens), None)
        text = self.tok_decode(tokens[:end])
        answer = postprocess_generated_text(text, stops, None)
        return answer, "stop" if end is not None or len(answer) < len(text) else "length"

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, and whether greedy decoding would give it."""
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with self._progress.over(len(requests), "scoring"):
            for members in _places(requests, lambda request: request.task_name):
                self._task = requests[members[0]].task_name
                scored = super().loglikelihood([requests[index] for index in members], disable_tqdm=True)
                for index, answer in zip(members, scored, strict=True):
                    answers[index] = answer
        return answers

    def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = False, **options: Any) -> list[Any]:
        for (_, continuation), _, tokens in requests:
            if len(tokens) > self.max_length:
                raise RequestError(
                    f"task {self._task}: the answer '{continuation[:60]}…' has {len(tokens)} tokens and the model's "
                    f"context is {self.max_length}; take a model with a longer one"
                )
        too_long = sum(len(prompt) + len(tokens) > self.max_length + 1 for _, prompt, tokens in requests)
        self.prompts_cut[self._task] += too_long
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, **options)

    def _model_call(self, inps: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        logits = super()._model_call(inps, *arguments, **options)
        self._progress.advance(len(inps))
        return logits


def _places(requests: Sequence[Any], kind: Callable[[Any], Hashable]) -> list[list[int]]:
    """The places of the requests of each kind. One task at a time, because a row's numbers differ in the last digits
    with the batch around it: what a task gives must not depend on which others were asked for."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        places[kind(request)].append(index)
    return list(places.values())


class _StopStrings(StoppingCriteria):
    """Which rows hold a stop string in what they generated."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], start: int) -> None:
        # The end token is the model's own business: generate() ends a row at it.
        self.stops = [stop for stop in stops if stop and stop != tokenizer.eos_token]
        self.tokenizer, self.start = tokenizer, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        generated = input_ids[:, self.start :]
        if self.stops and generated.shape[1] % LOOK_FOR_STOPS_EVERY == 0:
            texts = self.tokenizer.batch_decode(generated)
            done |= torch.tensor([any(stop in text for stop in self.stops) for text in texts], device=done.device)
        return done


def _load_model(checkpoint: str, dtype: torch.dtype | str, revision: str | None) -> Any:
    folder = Path(checkpoint)
    if folder.is_dir() and not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        raise RequestError(f"{checkpoint} is not a checkpoint: it has no config.json")
    try:
        return AutoModelForCausalLM.from_pretrained(
            checkpoint, revision=revision or "main", dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot load a model from {checkpoint}: {' '.join(str(error).split())[:200]}") from error


def _end_tokens(model: Any, end_token: int) -> list[int]:
    """The tokenizer's end token and every end token that the checkpoint names."""
    ends = {end_token}
    for settings in (model.config, model.generation_config):
        named = getattr(settings, "eos_token_id", None)
        ends |= set(named) if isinstance(named, list) else {named} if named is not None else set()
    return sorted(ends)

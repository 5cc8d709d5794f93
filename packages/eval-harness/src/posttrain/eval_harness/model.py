"""A checkpoint as lm-eval's language model: stock HFLM with our tokenizer, true greedy decoding and honest ends.

Same numbers as HFLM, with some things settled. The tokenizer and chat template are those of training. Each task is
batched by itself. Generation ends at the tokenizer's end token, whatever the checkpoint's generation settings say, and
these settings (temperature, repetition penalty) do not enter. What the prompts of a task share is computed once, by
`scoring.py` and `decoding.py`, where the architecture lets it; otherwise stock HFLM computes. Each answer's finish
reason is kept. Prompts that do not fit the context are cut on the left as HFLM does, and counted.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from posttrain.core.errors import RequestError
from posttrain.core.seeds import derive_seed
from posttrain.core.wire import FinishReason
from posttrain.data.chat import load_tokenizer
from posttrain.eval_harness.column_cache import ColumnCache
from posttrain.eval_harness.decoding import LOOK_EVERY, Draws, decode
from posttrain.eval_harness.late_progress import LateProgress
from posttrain.eval_harness.passes import common_prefix, computes_in_parts, prefill
from posttrain.eval_harness.samples import Samples
from posttrain.eval_harness.scoring import Pair, score


@dataclass(frozen=True)
class Limits:
    """What requests of one kind share."""

    settings: dict[str, Any]
    """Of sampling, as transformers names them."""
    stops: list[str]
    new_tokens: int
    room: int
    """Tokens left for a prompt."""

    @property
    def plain(self) -> bool:
        """Whether a temperature is all that is said of sampling."""
        return self.settings.keys() <= {"do_sample", "temperature"}

    @property
    def temperature(self) -> float:
        """0 takes the likeliest token."""
        return float(self.settings.get("temperature", 1.0)) if self.settings.get("do_sample") else 0.0


Shared = tuple[tuple[int, ...], ColumnCache]
"""What prompts begin with, computed."""


class CheckpointLM(HFLM):
    """A folder's or Hub id's causal language model for `lm_eval.evaluator.evaluate`."""

    def __init__(
        self, checkpoint: str, batch_size: int, device: str, dtype: torch.dtype | str, revision: str | None
    ) -> None:
        """`dtype`: a torch dtype or "auto", the saved one."""
        tokenizer = load_tokenizer(checkpoint, revision)
        model = _load_model(checkpoint, dtype, revision).to(device)
        ends = _end_tokens(model, tokenizer.eos_token_id)
        model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.end_tokens = frozenset(ends)
        self.finish_reasons: dict[tuple[str, int], str] = {}
        """"stop" or "length" by task and item number, of the item's last generation."""
        self.samples: Samples | None = None
        """How answers are sampled, in place of what tasks say; None as they say."""
        self.sample_reasons: dict[tuple[str, int], list[str]] = defaultdict(list)
        """As `finish_reasons`, of all generations."""
        self.prompts_cut: dict[str, int] = defaultdict(int)
        """How many requests of a task were cut on the left to fit the context."""
        self._progress = LateProgress()
        self._task = ""
        self._asked: Counter[tuple[str, int]] = Counter()

    @cached_property
    def in_parts(self) -> bool:
        """Whether what prompts share can be computed once."""
        return computes_in_parts(self.model)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer's text of each request, cut at the first stop string or end token."""
        answers = [""] * len(requests)
        with self._progress.over(len(requests), "generating"):
            for members in _places(requests, lambda request: (request.task_name, repr(request.args[1]))):
                prompts = {index: self._prompt_ids(requests[index].args[0]) for index in members}
                limits = self._limits([requests[index] for index in members], list(prompts.values()))
                members.sort(key=lambda index: (-len(prompts[index]), requests[index].args[0]))
                shared = self._shared(limits, list(prompts.values()))
                for start in range(0, len(members), self.batch_size):
                    batch = members[start : start + self.batch_size]
                    cut = [prompts[index][-limits.room :] for index in batch]
                    generated = self._generate([requests[index] for index in batch], cut, limits, shared)
                    for index, answer in zip(batch, generated, strict=True):
                        answers[index] = answer
                    self._progress.advance(len(batch))
        return answers

    def _prompt_ids(self, text: str) -> list[int]:
        ids, _ = self.tok_batch_encode([text], truncation=self.truncation)
        listed: list[int] = ids[0].tolist()
        return listed

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

    def seed_of(self, request: Any) -> int:
        """Of a sample: by item, and by how often it has been asked, since some tasks take several answers of one."""
        item = (request.task_name, request.doc_id)
        self._asked[item] += 1
        return derive_seed(self.samples.seed if self.samples else 0, "sample", *item, self._asked[item])

    def _note_reason(self, request: Any, reason: str) -> None:
        self.finish_reasons[request.task_name, request.doc_id] = reason
        self.sample_reasons[request.task_name, request.doc_id].append(reason)

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

    def _limits(self, requests: Sequence[Any], prompts: Sequence[list[int]]) -> Limits:
        """What requests of one kind share; counts the prompts that are longer than there is room."""
        settings = normalize_gen_kwargs(requests[0].args[1], self.max_gen_toks)
        stops = handle_stop_sequences(
            settings.pop("until", None), eos=self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        )
        new_tokens = settings.pop("max_gen_toks")
        sampling = {"do_sample": True, "temperature": self.samples.temperature} if self.samples else dict(settings)
        room = self.max_length - new_tokens
        if room <= 0:
            raise RequestError(
                f"task {requests[0].task_name} generates up to {new_tokens} tokens and the model's context is "
                f"{self.max_length}: nothing is left for the prompt; set --max-gen-toks below that"
            )
        for request, prompt in zip(requests, prompts, strict=True):
            self.prompts_cut[request.task_name] += len(prompt) > room
        return Limits(sampling, stops, new_tokens, room)

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

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, in windows of the context (perplexity tasks)."""
        self._task = requests[0].task_name
        with self._progress.over(len(requests), "scoring"):
            likelihoods: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return likelihoods

    def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = False, **options: Any) -> list[Any]:
        for _, _, tokens in requests:
            if len(tokens) > self._longest:
                raise RequestError(
                    f"task {self._task}: '{self.tok_decode(tokens)[:60]}…' has {len(tokens)} tokens and the model's "
                    f"context is {self.max_length}; take a model with a longer one"
                )
        too_long = sum(len(prompt) + len(tokens) > self._longest + 1 for _, prompt, tokens in requests)
        self.prompts_cut[self._task] += too_long
        return self._likelihoods(requests, options.get("override_bs") or self.batch_size)

    @property
    def _longest(self) -> int:
        """Most tokens of a context and a continuation but one."""
        return int(self.max_length)

    def _likelihoods(self, requests: list[Any], batch_size: int) -> list[tuple[float, bool]]:
        """Log-likelihood and greediness of (texts, context ids, continuation ids)."""
        if not self.in_parts:
            scored: list[tuple[float, bool]] = super()._loglikelihood_tokens(
                requests, disable_tqdm=True, override_bs=batch_size
            )
            return scored
        return score(self.model, [self._cut(*request[1:]) for request in requests], batch_size, self._progress.advance)

    def _cut(self, prompt: list[int], tokens: list[int]) -> Pair:
        """A context that fits with its continuation, of which the last token is not fed."""
        return prompt[-(self.max_length + 1 - len(tokens)) :], tokens

    def _model_call(self, inps: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        logits = super()._model_call(inps, *arguments, **options)
        self._progress.advance(len(inps))
        return logits


class WeightlessLM(CheckpointLM):
    """A checkpoint's tokenizer, template and context, without its weights: for who lets others compute."""

    in_parts = False

    def __init__(self, checkpoint: str, batch_size: int, revision: str | None) -> None:
        # On the device `meta` a model has its configuration and shapes, and takes no memory.
        super().__init__(checkpoint, batch_size, "meta", "auto", revision)


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
        if self.stops and generated.shape[1] % LOOK_EVERY == 0:
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

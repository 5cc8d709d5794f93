"""How lm-eval's requests are put, whoever computes: a task at a time, true ends, honest reasons, counted cuts.

Each task is batched by itself. Prompts that do not fit the context are cut on the left as stock HFLM does, and counted.
Each answer ends at the first end token or stop string, and keeps its finish reason. What computes is a class below:
this process (`model.py`), or others for a checkpoint without weights (`weightless.py`). Needs no torch.
"""

from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)

from posttrain.core.errors import RequestError
from posttrain.core.seeds import derive_seed
from posttrain.core.wire import FinishReason
from posttrain.eval_harness.late_progress import LateProgress
from posttrain.eval_harness.samples import Samples


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


class TaskwiseLM(TemplateLM):
    """What every model of ours does with requests. Who computes gives a tokenizer, `max_length` and `batch_size`."""

    def keep_account(self, ends: Sequence[int]) -> None:
        """Begins to keep what is told of answers beside them; `ends` are the tokens that end one."""
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
        """The ids of a prompt, as HFLM's `tok_batch_encode` gives them."""
        special = {"add_special_tokens": False} if has_bos_prefix(text, self.tokenizer.bos_token) else {}
        return list(self.tokenizer(text, **special)["input_ids"])

    def _shared(self, limits: Limits, prompts: Sequence[list[int]]) -> Any:
        """What is computed once for all of these prompts; handed to `_generate`."""
        return None

    @abstractmethod
    def _generate(
        self, requests: Sequence[Any], prompts: Sequence[list[int]], limits: Limits, shared: Any
    ) -> list[str]:
        """The answers of a batch, whose reasons are noted."""

    def seed_of(self, request: Any) -> int:
        """Of a sample: by item, and by how often it has been asked, since some tasks take several answers of one."""
        item = (request.task_name, request.doc_id)
        self._asked[item] += 1
        return derive_seed(self.samples.seed if self.samples else 0, "sample", *item, self._asked[item])

    def _note_reason(self, request: Any, reason: str) -> None:
        self.finish_reasons[request.task_name, request.doc_id] = reason
        self.sample_reasons[request.task_name, request.doc_id].append(reason)

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
            return self._rolling(requests)

    @abstractmethod
    def _rolling(self, requests: list[Any]) -> list[float]:
        """Log-likelihood of each whole text, of which parts go through `_loglikelihood_tokens`."""

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

    @abstractmethod
    def _likelihoods(self, requests: list[Any], batch_size: int) -> list[tuple[float, bool]]:
        """Log-likelihood and greediness of (texts, context ids, continuation ids)."""


def _places(requests: Sequence[Any], kind: Callable[[Any], Hashable]) -> list[list[int]]:
    """The places of the requests of each kind. One task at a time, because a row's numbers differ in the last digits
    with the batch around it: what a task gives must not depend on which others were asked for."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        places[kind(request)].append(index)
    return list(places.values())

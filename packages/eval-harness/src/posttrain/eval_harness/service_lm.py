"""A policy endpoint as lm-eval's language model: log-likelihoods by `echo` with `logprobs`, answers by completions.

Requests and answers are those of lm-eval's `local-completions`, so that our policy service and a stock vLLM server
serve alike; prompts' ids, stop strings and limits are those of CheckpointLM, whose numbers they give. One token less of
context is left to a likelihood, since a server computes one more. Our HTTP client carries it: key, retries, contract.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.models.utils import postprocess_generated_text

from posttrain.core.clients import PolicyClient
from posttrain.core.errors import WorkError
from posttrain.eval_harness.taskwise import Limits
from posttrain.eval_harness.weightless import WeightlessLM


@dataclass(frozen=True)
class Service:
    """An endpoint that holds what is evaluated."""

    client: PolicyClient
    model: str
    """The model's name in requests: `policy`, `policy@3`, or what a stock server calls its own."""
    backend: str = "service"
    """What stands in a result's key: `service` or `vllm`."""
    context: int | None = None
    """Most tokens of a sequence, where the server says so."""


class ServiceLM(WeightlessLM):
    """The checkpoint's tokenizer, template and context; a service computes."""

    def __init__(self, checkpoint: str, batch_size: int, revision: str | None, service: Service) -> None:
        super().__init__(checkpoint, batch_size, revision)
        if service.context is not None:
            self.max_length = min(self.max_length, service.context)
        self._api = _Completions(service, self.tokenizer, self.max_length, batch_size)

    def _generate(
        self, requests: Sequence[Any], prompts: Sequence[list[int]], limits: Limits, shared: Any
    ) -> list[str]:
        settings = {**limits.settings, "until": list(limits.stops), "max_gen_toks": limits.new_tokens}
        if limits.plain and not limits.temperature:
            choices = self._api.generate(list(prompts), settings)
        else:
            # Alone, a sample depends on its own seed and not on what is asked with it.
            seeds = [self.seed_of(request) for request in requests]
            with ThreadPoolExecutor(len(requests)) as pool:
                told = pool.map(lambda prompt, seed: self._api.generate([prompt], settings, seed), prompts, seeds)
                choices = [choice for (choice,) in told]
        answers = []
        for request, choice in zip(requests, choices, strict=True):
            self._note_reason(request, "length" if choice["finish_reason"] == "length" else "stop")
            answers.append(postprocess_generated_text(choice["text"], limits.stops, None))
        return answers

    @property
    def _longest(self) -> int:
        return int(self.max_length) - 2  # of a whole context, the token that the server adds and the first one

    def _likelihoods(self, requests: list[Any], batch_size: int) -> list[tuple[float, bool]]:
        scored: list[tuple[float, bool]] = self._api._loglikelihood_tokens(requests)
        self._progress.advance(len(requests))
        return scored


class _Completions(LocalCompletionsAPI):
    """lm-eval's payloads and their reading, over our client."""

    def __init__(self, service: Service, tokenizer: Any, max_length: int, batch_size: int) -> None:
        super().__init__(
            model=service.model,
            base_url=service.client.url,
            tokenizer_backend=None,
            max_length=max_length,
            batch_size=batch_size,
            max_retries=1,
        )
        self._service = service
        # lm-eval would load one by AutoTokenizer; ids are all that it is asked for.
        self.tokenizer, self.tokenizer_backend, self.tokenized_requests = tokenizer, "huggingface", True

    def generate(self, prompts: list[list[int]], settings: dict[str, Any], seed: int = 0) -> list[dict[str, Any]]:
        """One choice a prompt."""
        answer = self.model_call(prompts, generate=True, gen_kwargs=settings, seed=seed)
        return sorted(answer["choices"], key=lambda choice: choice["index"])

    def model_call(
        self, messages: Any, *, generate: bool = True, gen_kwargs: dict[str, Any] | None = None, seed: int = 0
    ) -> Any:
        """The body of one answer; errors as of every client of ours."""
        payload = self._create_payload(
            messages, generate=generate, gen_kwargs=dict(gen_kwargs or {}), seed=seed, eos=self.eos_string
        )
        response = self._service.client.request("POST", "/v1/completions", json=payload)
        answer = self._service.client.check(response, "answer" if generate else "score by echo with logprobs")
        given, url = len(answer["choices"]), self._service.client.url
        if given != len(messages):
            raise WorkError(f"{url} gave {given} choices to {len(messages)} prompts; is it an OpenAI-like server?")
        return answer

"""What a policy service holds: one model under a name, its tokenizer, the worker that runs it.

From a client's request it makes the samples to generate; it knows neither HTTP nor how an answer is written.
"""

import re
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from posttrain.core.errors import RequestError
from posttrain.core.hashing import digest_weights
from posttrain.data.chat import end_token_id, load_tokenizer, render_prompt
from posttrain.rollout.adapter import checkpoint_weights
from posttrain.rollout.engine import Engine
from posttrain.rollout.load import load_engine
from posttrain.rollout.requests import DEFAULT_COMPLETION_TOKENS, ChatRequest, CompletionRequest, GenerationRequest
from posttrain.rollout.responses import TokenTexts
from posttrain.rollout.sample import Sample
from posttrain.rollout.scheduler import Scheduler, VersionNotHeld
from posttrain.rollout.settings import PolicyServiceSettings


class Policy:
    """A served model. `instance` differs after every start: a restarted service is back at version 0."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerFast,
        settings: PolicyServiceSettings,
        base: Callable[[], Mapping[str, torch.Tensor]] | None = None,
    ) -> None:
        """`base` gives version 0's weights, which adapters are merged into; without it they are kept in memory."""
        self.engine, self.tokenizer, self.settings = engine, tokenizer, settings
        self.scheduler = Scheduler(engine, settings.max_waiting, restart=settings.in_flight == "restart")
        self.token_texts = TokenTexts(tokenizer)
        self._longest_token = max(map(len, tokenizer.get_vocab()), default=1)
        self.base: Callable[[], Mapping[str, torch.Tensor]] = cache(base or partial(dict, engine.model.state_dict()))
        self.base_digest = self.scheduler.weights.digest
        self.instance = uuid.uuid4().hex
        self.created = int(time.time())

    @classmethod
    def load(cls, settings: PolicyServiceSettings) -> "Policy":
        """The policy of `settings.checkpoint`; RequestError when it is no language model or has no tokenizer."""
        tokenizer = load_tokenizer(settings.checkpoint)
        digest = digest_weights(settings.checkpoint)
        ends = {end_token_id(tokenizer)}
        engine: Engine
        if settings.engine == "vllm":
            from posttrain.rollout.vllm_load import load_vllm_engine

            engine = load_vllm_engine(
                settings.checkpoint, ends, settings.max_batch, digest, settings.vllm, settings.dtype
            )
        else:
            engine = load_engine(
                settings.checkpoint,
                ends,
                settings.max_batch,
                digest=digest,
                kind=settings.engine,
                dtype=settings.dtype,
            )
        # Read again when the first adapter comes: without adapters nothing needs the base beside the current weights.
        return cls(engine, tokenizer, settings, partial(checkpoint_weights, settings.checkpoint, engine.model.dtype))

    def model_id(self, version: int) -> str:
        """`policy@17`."""
        return f"{self.settings.name}@{version}"

    def version(self, model: str) -> int | None:
        """The version that `policy@17` names, None for plain `policy`; VersionNotHeld for another model's name."""
        if model == self.settings.name:
            return None
        found = re.fullmatch(re.escape(self.settings.name) + r"@(0|[1-9][0-9]{0,17})", model)
        if not found:
            raise VersionNotHeld(
                f"this service has no such model; ask for '{self.settings.name}' or '{self.settings.name}@VERSION'"
            )
        return int(found[1])

    def prompt_tokens(self, request: CompletionRequest | ChatRequest) -> int:
        """About how many prompt tokens a request has, all choices counted; never fewer."""
        if isinstance(request, ChatRequest):
            tokens = sum(len(message.plain()["content"]) for message in request.messages)
        else:
            tokens = sum(map(len, request.prompts()))  # a token of a text is a character at least
        return tokens * (request.n or 1)

    def samples(self, request: CompletionRequest | ChatRequest) -> list[Sample]:
        """The samples of a request, prompt by prompt; RequestError when it cannot be answered."""
        return self.chat_samples(request) if isinstance(request, ChatRequest) else self.completion_samples(request)

    def completion_samples(self, request: CompletionRequest) -> list[Sample]:
        """The samples of a completions request."""
        prompts, n = request.prompts(), request.n or 1
        if not prompts:
            raise RequestError("'prompt' is an empty list; give one prompt at least")
        # Before anything costs something.
        self._check_sequences(len(prompts), n)
        if request.echo and request.stream:
            raise RequestError("echo cannot be streamed; leave one of the two out")
        ids = [self.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        max_tokens = DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
        sampling = request.sampling(max_tokens, echo=bool(request.echo), top_logprobs=request.logprobs or 0)
        return self.engine.samples(ids, sampling, n, _seed(request))

    def chat_samples(self, request: ChatRequest) -> list[Sample]:
        """The samples of a chat request: its messages through the model's own template."""
        n = request.n or 1
        self._check_sequences(1, n)
        messages = [message.plain() for message in request.messages]
        self._check_length(sum(len(message["content"]) for message in messages))
        try:
            prompt = render_prompt(self.tokenizer, messages)  # type: ignore[arg-type]
        except TemplateError as error:  # some templates refuse a system message, or two turns of one role
            raise RequestError(f"the model's chat template refuses these messages: {error}") from None
        asked = request.max_completion_tokens or request.max_tokens
        # OpenAI's chat has no limit but the context; the check below then names both numbers if nothing is left.
        max_tokens = max(1, self.engine.context - len(prompt)) if asked is None else asked
        sampling = request.sampling(max_tokens, top_logprobs=request.top_logprobs or 0)
        return self.engine.samples([prompt], sampling, n, _seed(request))

    def encode(self, text: str) -> list[int]:
        """The ids of a text prompt; special tokens written in it are taken as such, as OpenAI's servers do."""
        self._check_length(len(text))
        return list(self.tokenizer(text)["input_ids"])

    def _check_sequences(self, prompts: int, n: int) -> None:
        if prompts * n > self.settings.max_sequences:
            raise RequestError(
                f"{prompts} prompts with n = {n} are more than {self.settings.max_sequences} sequences; split them"
            )

    def _check_length(self, characters: int) -> None:
        # Even if every token were the longest there is; so a text of megabytes is not tokenized first.
        if characters > self.engine.context * self._longest_token:
            raise RequestError(
                f"a prompt of {characters} characters does not fit the context of {self.engine.context} tokens"
            )

    def close(self) -> None:
        """Ends the worker."""
        self.scheduler.close()


def _seed(request: GenerationRequest) -> int:
    return secrets.randbits(62) if request.seed is None else request.seed

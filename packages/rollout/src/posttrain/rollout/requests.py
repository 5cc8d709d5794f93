"""What clients may ask: OpenAI's completions and chat requests with vLLM's additions, as pydantic classes.

A parameter that would change the answer and is not supported is refused by name; one that cannot change it is
ignored. A hostile body costs no more than a good one of its size. Nothing here tokenizes or generates.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from posttrain.core.errors import RequestError
from posttrain.core.wire import TIMEOUT_HEADER
from posttrain.rollout.sampling import Sampling, Temperature

MOST_STOPS = 16
MOST_TOP_LOGPROBS = 20
MOST_BIASES = 1024
"""Token ids that `logit_bias` may name."""
MOST_MESSAGES = 4096
"""Turns of a conversation, and parts of a turn."""
MOST_PARAMETERS = 64
"""Keys of an object in a request. Each unknown one would be an error with a message of its own."""
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for completions; chat has none and takes what the context leaves."""


def _encodable(text: str) -> str:
    # JSON can spell half a surrogate pair, which no tokenizer takes.
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("this text is not valid Unicode: it holds half of a surrogate pair")
    return text


Text = Annotated[str, AfterValidator(_encodable)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Stop = Annotated[Text, StringConstraints(min_length=1, max_length=256)]
ItemT = TypeVar("ItemT")
# Otherwise every wrong item of millions is an error with a message of its own.
Items = Annotated[list[ItemT], Field(fail_fast=True)]

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "min_tokens": (0,),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
}
"""Unsupported parameters and the values under which they change nothing; null is always among them."""

IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
"""Parameters that cannot change an answer of this service."""


class _Part(BaseModel):
    """An object in a request: strict, with no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > MOST_PARAMETERS:
            raise ValueError(f"an object has {len(data)} keys; none may have more than {MOST_PARAMETERS}")
        return data


class StreamOptions(_Part):
    """What a stream carries besides the choices."""

    include_usage: bool = False


class GenerationRequest(_Part):
    """What both endpoints share."""

    model: Annotated[str, StringConstraints(max_length=200)]
    """`policy` for the current weights, `policy@17` for exactly these."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Stop | Annotated[Items[Stop], Field(max_length=MOST_STOPS)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MOST_BIASES)] | None = (
        None
    )
    ignore_eos: bool = False
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_supported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if isinstance(bias := data.get("logit_bias"), dict) and len(bias) > MOST_BIASES:
            raise ValueError(f"logit_bias names {len(bias)} token ids; it may name {MOST_BIASES}")
        for name, values in NEUTRAL.items():
            if data.get(name) is not None and data[name] not in values:
                raise ValueError(f"'{name}' is not supported by this service; leave it out")
        return {key: value for key, value in data.items() if key not in NEUTRAL and key not in IGNORED}

    @field_validator("logit_bias")
    @classmethod
    def _bias_keys_are_ids(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        if bias and not all(key.isascii() and key.isdigit() and len(key) < 10 for key in bias):
            raise ValueError("logit_bias maps token ids to numbers")
        return bias

    def sampling(self, max_tokens: int, *, echo: bool = False, top_logprobs: int = 0) -> Sampling:
        """The engine's settings; `max_tokens` is settled by the caller, who knows the prompt."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            logit_bias={int(key): value for key, value in (self.logit_bias or {}).items()},
            stop=tuple(stop),
            ignore_eos=self.ignore_eos,
            top_logprobs=top_logprobs,
            echo=echo,
        )


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: Text | Items[Text] | Items[TokenId] | Items[Items[TokenId]]
    """Text, texts, token ids, or lists of token ids."""
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    """Report log-probabilities: of the sampled tokens, and of this many most probable ones beside them."""
    return_tokens: bool = True
    """False leaves `tokens` and `text_offset` of the log-probabilities null, for who asks for token ids instead."""
    echo: bool | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities are reported; 0, none of other tokens, is a wish too."""
        return self.logprobs is not None

    def prompts(self) -> list[str] | list[list[int]]:
        """Always a list of prompts, of texts or of token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]


class TextPart(_Part):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Part):
    """One turn. Names are ignored, since no chat template here shows them."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[Items[TextPart], Field(max_length=MOST_MESSAGES)]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Role and text as the chat template takes them."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[Items[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities are reported."""
        return bool(self.logprobs)

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


RequestT = TypeVar("RequestT", bound=GenerationRequest)


def parse(kind: type[RequestT], body: bytes) -> RequestT:
    """The request in a body of JSON; RequestError says the first thing that is wrong and never repeats the input."""
    try:
        return kind.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError:
        raise RequestError("the body is not valid JSON") from None
    except ValidationError as error:
        raise RequestError(_first_problem(error)) from None


def _first_problem(error: ValidationError) -> str:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    first = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    path = ".".join(str(part) for part in first["loc"])[:80]
    if first["type"] == "extra_forbidden":
        return f"unknown parameter '{path}'; leave it out"
    if path.partition(".")[0] == "prompt":
        return "'prompt' must be a text, a list of texts, a list of token ids, or a list of lists of token ids"
    message = first["msg"].removeprefix("Value error, ")
    return f"'{path}': {message[0].lower()}{message[1:]}" if path else message


def timeout_seconds(headers: Mapping[str, str], longest: float) -> float:
    """What a request's `X-Posttrain-Timeout` allows it, at most `longest`; RequestError when it is no such number."""
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return longest
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not (seconds > 0 and isfinite(seconds)):
        raise RequestError(f"the header {TIMEOUT_HEADER} must hold a positive number of seconds")
    return min(seconds, longest)

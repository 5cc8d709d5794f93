"""What clients may ask: OpenAI's completions and chat requests with vLLM's additions, as pydantic classes.

A parameter that would change the answer and is not supported is refused by name; one that cannot change it is
ignored. Nothing here tokenizes or generates.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from posttrain.rollout.sampling import Sampling

MOST_STOPS = 16
MOST_TOP_LOGPROBS = 20
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


class StreamOptions(BaseModel):
    """What a stream carries besides the choices."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """What both endpoints share."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: Annotated[str, StringConstraints(max_length=200)]
    """`policy` for the current weights, `policy@17` for exactly these."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    ignore_eos: bool = False
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_supported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
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

    prompt: Text | list[Text] | list[TokenId] | list[list[TokenId]]
    """Text, texts, token ids, or lists of token ids."""
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    """Report log-probabilities: of the sampled tokens, and of this many most probable ones beside them."""
    echo: bool | None = None

    def prompts(self) -> list[str] | list[list[int]]:
        """Always a list of prompts, of texts or of token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]


class TextPart(BaseModel):
    """A piece of a message; only text is understood."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """One turn. Names are ignored, since no chat template here shows them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Role and text as the chat template takes them."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

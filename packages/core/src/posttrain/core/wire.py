"""What travels between trainers and services, contract 1: the requests and answers as pydantic classes.

The policy's requests are OpenAI's with vLLM's additions; the reward service's `/score` is ours. Clients send and
services parse the same classes. Unknown fields are the service's business: it refuses or ignores them with a reason.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

CONTRACT = 1
"""The number in `X-Posttrain-Contract`; raised together with everything on both sides."""

CONTRACT_HEADER = "X-Posttrain-Contract"
DIGEST_HEADER = "X-Content-SHA256"
TIMEOUT_HEADER = "X-Posttrain-Timeout"
"""Seconds that a request to the policy service may take; then it is ended with 504 and `DEADLINE_EXCEEDED`."""
DEADLINE_EXCEEDED = "deadline_exceeded"
"""The code of an error that comes again when the request is repeated as it is."""

FinishReason = Literal["stop", "length"]


class Message(BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ScoreItem(BaseModel):
    """One completion to score."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | list[Message]
    completion: str
    finish_reason: FinishReason = "stop"
    """`length`: the completion was cut, and gets no end token when a reward model reads it."""
    reference: JsonValue = None
    """What a verifier needs: a gold answer, instruction ids and their arguments."""


class ScoreRequest(BaseModel):
    """`POST /score`."""

    model_config = ConfigDict(extra="forbid")

    sources: list[str] = Field(min_length=1)
    items: list[ScoreItem] = Field(min_length=1)


class ScoreError(BaseModel):
    """An item that a source failed on: its score there is null."""

    index: int
    """Place of the item in the request."""
    source: str
    message: str
    """Why, without a word of the item."""


class ScoreResponse(BaseModel):
    """Scores in the order of the items; the digest or version of each source that gave them.

    A user's own function that fails on an item (it raises, hangs, ends its process) costs that item its score: it is
    null, and `errors`, left out where there are none, says why.
    """

    scores: list[dict[str, float | None]]
    sources: dict[str, str]
    errors: list[ScoreError] = []


def error_body(message: str, type: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    """OpenAI's form of an error, used on every route."""
    return {"error": {"message": message, "type": type, "code": code}}

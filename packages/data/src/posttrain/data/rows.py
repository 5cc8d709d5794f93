"""The rows that every part of posttrain exchanges: what a loader gives and a trainer takes.

Plain dictionaries with typed keys, so that they are JSON, `datasets` rows and TRL rows at once. Nothing is computed
or checked here; posttrain.data.sources makes rows and refuses bad ones.
"""

from typing import Any, Literal, NotRequired, TypedDict

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One turn of a conversation."""

    role: Role
    content: str
    interrupted: NotRequired[bool]
    """True where the speaker was cut short: no end token belongs behind it."""


class Conversation(TypedDict):
    """A demonstration for supervised fine-tuning; the last message is the assistant's."""

    id: str
    messages: list[Message]


class Pair(TypedDict):
    """A preference: two different answers to one prompt, one message each (TRL's explicit-prompt format).

    `kind` says where the pair comes from ("problem", "instruction", "hh-rlhf"); accuracies are reported by it.
    """

    id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    kind: str


class Ranking(TypedDict):
    """K answers to one prompt, best first, no two equal."""

    id: str
    prompt: list[Message]
    completions: list[str]
    finished: NotRequired[list[bool]]
    """Of each completion whether it ended by itself, and so has an end token; left out where all did."""
    kind: str


class Prompt(TypedDict):
    """What reinforcement learning samples from; the last message is the user's.

    `reference` is what the verifier of this kind of prompt needs, any JSON, for example `{"answer": "42"}`.
    """

    id: str
    prompt: list[Message]
    reference: Any
    kind: str

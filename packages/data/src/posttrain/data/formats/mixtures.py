"""Chats as large published mixtures hold them: messages, or texts that take turns.

Nobody can mend one row in a million of somebody else's, so a row without an answer, with an empty message or with a
role beyond system, user and assistant is left out and counted; a user's own data (`generic`) is refused for it.
"""

from typing import Any

from posttrain.data.formats.format import Record, UnusableRow
from posttrain.data.formats.turns import role_of
from posttrain.data.rows import Message


def chat(record: Record) -> list[Message]:
    """The messages, up to the assistant's last one."""
    return _answered([_message(entry) for entry in _list(record)])


def opening(record: Record) -> tuple[list[Message], Any]:
    """The messages before the assistant's first one, as a prompt without reference."""
    return _opening([_message(entry) for entry in _list(record)])


def alternating_chat(record: Record) -> list[Message]:
    """Texts of which the user's is the first, up to the assistant's last one."""
    return _answered(_taking_turns(record))


def alternating_opening(record: Record) -> tuple[list[Message], Any]:
    """The first of such texts, as a prompt without reference."""
    return _opening(_taking_turns(record))


def _list(record: Record) -> list[Any]:
    value = record["messages"]
    if not isinstance(value, list | tuple):
        raise record.error(f"column '{record.columns['messages']}' must be a list, not {type(value).__name__}")
    return list(value)


def _message(entry: Any) -> Message:
    role = role_of(str(entry.get("role"))) if isinstance(entry, dict) else None
    if role is None:
        raise UnusableRow("a role other than system, user and assistant")
    content = entry.get("content")
    if not isinstance(content, str) or not content.strip():
        raise UnusableRow("an empty message")
    return {"role": role, "content": content}


def _taking_turns(record: Record) -> list[Message]:
    texts = _list(record)
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise UnusableRow("an empty message")
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]


def _answered(messages: list[Message]) -> list[Message]:
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise UnusableRow("no answer")
    if answers[0] == 0:
        raise UnusableRow("an answer before any question")
    return messages[: answers[-1] + 1]


def _opening(messages: list[Message]) -> tuple[list[Message], Any]:
    roles = [message["role"] for message in messages]
    first = messages[: roles.index("assistant")] if "assistant" in roles else messages
    if not first or first[-1]["role"] != "user":
        raise UnusableRow("no question before the first answer")
    return first, None

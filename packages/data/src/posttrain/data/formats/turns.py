"""Where two conversations part: the shared prefix is the prompt, what follows is the two answers."""

from collections.abc import Sequence

from posttrain.data.formats.format import UnusableRow
from posttrain.data.rows import Message, Role


def merge_same_speaker(messages: Sequence[Message]) -> list[Message]:
    """Consecutive messages of one role become one, a blank line between them: chat templates take turns."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"]:
            content = f"{merged[-1]['content']}\n\n{message['content']}"
            merged[-1] = {"role": message["role"], "content": content}
        else:
            merged.append({"role": message["role"], "content": message["content"]})
    return merged


def split_shared_prefix(chosen: Sequence[Message], rejected: Sequence[Message]) -> tuple[list[Message], str, str]:
    """Prompt, chosen and rejected answer of two conversations that differ only in their last message.

    UnusableRow when they part earlier or do not end with the assistant: then the two answers are not to one prompt.
    """
    if not chosen or not rejected or chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise UnusableRow("a conversation does not end with an answer")
    if list(chosen[:-1]) != list(rejected[:-1]):
        raise UnusableRow("the two conversations differ before the last answer")
    if len(chosen) < 2 or chosen[-2]["role"] != "user":
        raise UnusableRow("the answers follow no question")
    return list(chosen[:-1]), chosen[-1]["content"], rejected[-1]["content"]


def role_of(name: str) -> Role | None:
    """The chat role for a speaker's name in published datasets, None when it is unknown."""
    names: dict[str, Role] = {
        "system": "system", "user": "user", "human": "user", "prompter": "user",
        "assistant": "assistant", "gpt": "assistant",
    }  # fmt: skip
    return names.get(name.lower())

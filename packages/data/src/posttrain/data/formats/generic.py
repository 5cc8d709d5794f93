"""The shapes that most datasets come in, and that posttrain itself writes.

    conversations   messages: [{"role", "content"}, …]  (or ShareGPT's {"from", "value"}); else prompt, completion;
                    one with a message with interrupted: true, an answer that was cut short, is left out
    pairs           prompt, chosen, rejected; texts or lists of messages; without a prompt, chosen and rejected are
                    whole conversations that share theirs; a row with tie: true is a vote for neither, and left out;
                    an answer whose message has interrupted: true, or whose chosen_finish_reason or
                    rejected_finish_reason is "length", was cut short, and no end is learnt of it
    rankings        prompt, completions (texts, best first)
    prompts         prompt, reference (any JSON; optional)

A prompt that is a text is one user message.
"""

from typing import Any

from posttrain.data.formats.format import Format, Record, UnusableRow
from posttrain.data.formats.turns import role_of, split_shared_prefix
from posttrain.data.rows import Message


def messages(record: Record, role: str) -> list[Message]:
    """The list of messages in a column, in either of its two usual spellings."""
    value = record[role]
    column = record.columns[role]
    if not isinstance(value, list | tuple) or not value:
        raise record.error(f"column '{column}' must be a list of messages, not {type(value).__name__} {value!r:.40}")
    return [_message(record, column, entry) for entry in value]


def conversation(record: Record) -> list[Message]:
    """The messages, of which the last one has to be the assistant's; without them prompt and completion."""
    if not record.has("messages") and record.has("prompt"):
        return [*prompt_messages(record), {"role": "assistant", "content": record.text("completion")}]
    turns = messages(record, "messages")
    if any(entry.get("interrupted") is True for entry in record["messages"]):
        raise UnusableRow("an interrupted answer")  # its end would be learnt as one
    if turns[-1]["role"] != "assistant":
        raise record.error(f"the last message is the {turns[-1]['role']}'s; a demonstration ends with the assistant's")
    return turns


def prompt_messages(record: Record) -> list[Message]:
    """The prompt as messages."""
    if isinstance(record["prompt"], str):
        return [{"role": "user", "content": record.text("prompt")}]
    turns = messages(record, "prompt")
    if turns[-1]["role"] != "user":
        raise record.error(f"the prompt ends with the {turns[-1]['role']}'s message; end it with the user's")
    return turns


def pair(record: Record) -> tuple[list[Message], str, str]:
    """Prompt and two answers, given as texts, as messages, or as two conversations with a shared beginning."""
    if record.values.get("tie") is True:
        raise UnusableRow("a tie")
    if isinstance(record["chosen"], str):
        return prompt_messages(record), record.text("chosen"), record.text("rejected")
    chosen, rejected = messages(record, "chosen"), messages(record, "rejected")
    if len(chosen) > 1 or len(rejected) > 1:
        return split_shared_prefix(chosen, rejected)
    return prompt_messages(record), chosen[0]["content"], rejected[0]["content"]


def interrupted(record: Record) -> tuple[bool, bool]:
    """Whether the chosen and the rejected answer of a pair were cut short."""
    return _cut(record, "chosen"), _cut(record, "rejected")


def _cut(record: Record, side: str) -> bool:
    reason = record.values.get(f"{side}_finish_reason")
    if reason not in (None, "stop", "length"):
        raise record.error(f"{side}_finish_reason is {reason!r}; say stop, or length of an answer that was cut short")
    value = record[side]
    return reason == "length" or (not isinstance(value, str) and value[-1].get("interrupted") is True)


def ranking(record: Record) -> tuple[list[Message], list[str]]:
    """Prompt and completions, best first."""
    completions = record["completions"]
    if not isinstance(completions, list | tuple) or not all(isinstance(c, str) for c in completions):
        raise record.error(f"column '{record.columns['completions']}' must be a list of texts, best first")
    if len(completions) < 2:
        raise UnusableRow("fewer than two completions")
    return prompt_messages(record), list(completions)


def prompt(record: Record) -> tuple[list[Message], Any]:
    """Prompt and reference (None without one)."""
    return prompt_messages(record), record["reference"] if record.has("reference") else None


def _message(record: Record, column: str, entry: Any) -> Message:
    if not isinstance(entry, dict):
        raise record.error(f"column '{column}' holds {type(entry).__name__} where a message belongs")
    speaker, content = entry.get("role", entry.get("from")), entry.get("content", entry.get("value"))
    role = role_of(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise record.error(f"column '{column}' has a message with the role {speaker!r}; use system, user or assistant")
    if not isinstance(content, str):
        raise record.error(f"column '{column}' has a message of the {role} without text")
    return {"role": role, "content": content}


GENERIC = Format(
    name="generic",
    columns={
        "messages": "messages",
        "prompt": "prompt",
        "completion": "completion",
        "chosen": "chosen",
        "rejected": "rejected",
        "completions": "completions",
        "reference": "reference",
    },
    later_roles=frozenset({"completion"}),
    conversation=conversation,
    pair=pair,
    interrupted=interrupted,
    ranking=ranking,
    prompt=prompt,
)

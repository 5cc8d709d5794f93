"""HH-RLHF (Bai et al. 2022): two transcripts of one conversation, of which people preferred one.

A transcript is one text of turns, each opened by a blank line and `Human:` or `Assistant:`. Some transcripts have two
turns of one speaker in a row (an answer that wrote the next question itself): they are one message here. The
configurations are folders of the dataset (harmless-base, helpful-base, …).

The shared turns are the prompt. Where the two part before the last answer, what was preferred is not an answer to one
prompt: such rows are left out and counted, as are those that end with the question. A demonstration is the preferred
transcript, as those who fine-tune on it take it (Rafailov et al. 2023, section 6.3).
"""

import re
from typing import Any

from posttrain.data.formats.format import Format, Record
from posttrain.data.formats.turns import merge_same_speaker, split_shared_prefix
from posttrain.data.rows import Message

_TURN = re.compile(r"\n\n(Human|Assistant):")


def messages_of(transcript: str) -> list[Message]:
    """The messages of a transcript, without the blanks around them; ValueError when it does not start with a turn."""
    opening, *turns = _TURN.split(transcript)
    if opening.strip() or not turns:
        raise ValueError("a transcript must start with a blank line and 'Human:' or 'Assistant:'")
    messages: list[Message] = [
        {"role": "user" if speaker == "Human" else "assistant", "content": text.strip()}
        for speaker, text in zip(turns[::2], turns[1::2], strict=True)
    ]
    return merge_same_speaker(messages)


def pair(record: Record) -> tuple[list[Message], str, str]:
    """The shared turns up to the last question, and the two answers."""
    try:
        chosen, rejected = messages_of(record.text("chosen")), messages_of(record.text("rejected"))
    except ValueError as error:
        raise record.error(str(error)) from None
    return split_shared_prefix(chosen, rejected)


def conversation(record: Record) -> list[Message]:
    """The preferred transcript."""
    turns, chosen, _ = pair(record)
    return [*turns, {"role": "assistant", "content": chosen}]


def prompt(record: Record) -> tuple[list[Message], Any]:
    """The shared turns; there is no reference."""
    return pair(record)[0], None


HH_RLHF = Format(
    name="hh-rlhf",
    hub_ids=("Anthropic/hh-rlhf",),
    columns={"chosen": "chosen", "rejected": "rejected"},
    config_is_folder=True,
    kind="hh-rlhf",
    pair=pair,
    conversation=conversation,
    prompt=prompt,
)

"""GSM8K (Cobbe et al. 2021): grade-school word problems with worked solutions that end in `#### 72`.

Columns `question` and `answer`. A demonstration answers with the whole solution; a prompt's reference is the gold
answer after `####`, as the verifier `gsm8k` takes it.
"""

from typing import Any

from posttrain.data.formats.format import Format, Record
from posttrain.data.rows import Message


def conversation(record: Record) -> list[Message]:
    """Question and worked solution."""
    return [
        {"role": "user", "content": record.text("question")},
        {"role": "assistant", "content": record.text("answer")},
    ]


def prompt(record: Record) -> tuple[list[Message], Any]:
    """Question, and `{"gsm8k": gold}`."""
    _, marker, gold = record.text("answer").rpartition("####")
    if not marker or not gold.strip():
        raise record.error("the answer does not end in '#### <number>'")
    return [{"role": "user", "content": record.text("question")}], {"gsm8k": gold.strip()}


GSM8K = Format(
    name="gsm8k",
    hub_ids=("openai/gsm8k",),
    columns={"question": "question", "answer": "answer"},
    default_config="main",
    kind="gsm8k",
    conversation=conversation,
    prompt=prompt,
)

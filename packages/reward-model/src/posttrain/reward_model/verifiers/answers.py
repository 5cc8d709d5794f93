"""The final answer of a worked solution, and whether the solution states it in the expected form.

Takes the text of a completion, gives the answer as it is written there. It does not judge it: the verifiers do. All
of it is linear in the length of the text, of which only the last MAX_CHARACTERS characters are read (an answer stands
at the end).
"""

import re

from posttrain.reward_model.verifiers.numbers import NUMBER, last_number, number_value

MAX_CHARACTERS = 1 << 20

_OPEN, _CLOSE, _HASHES = "<answer>", "</answer>", "####"
_HASH_ANSWER = re.compile(rf"####[ \t]*({NUMBER})", re.ASCII)


def cut(text: str) -> str:
    """The last MAX_CHARACTERS characters of `text`: what the verifiers read of a completion."""
    return text[-MAX_CHARACTERS:]


def extract_answer(text: str) -> str | None:
    """The answer that `text` gives, as written there: a number wherever there is one, None where there is no answer.

    In this order: what stands in the last `<answer>…</answer>` (its last number, or its text where it holds none; an
    empty one does not count), the number after the last `####` that has one, the last number of the text. Nothing is
    added up when a solution states several answers: the last of the strongest form counts.
    """
    text = cut(text)
    stated = _tagged(text)
    if stated:
        return last_number(stated) or stated
    marked = None
    for match in _HASH_ANSWER.finditer(text):
        marked = match
    return marked.group(1) if marked else last_number(text)


def is_well_formed(text: str) -> bool:
    """Whether `text` ends by stating one number in one of the two forms.

    That is: it ends, but for white space, with `<answer>N</answer>` or with a last line `#### N`, where N is one
    number and nothing else, and the marker (`<answer>`, `####`) occurs nowhere before. Whether N is right plays no
    part. A solution that goes on after its answer, or that states two, is not well formed.
    """
    text = cut(text).rstrip()
    if text.endswith(_CLOSE):
        return text.count(_OPEN) == 1 and number_value(_tagged(text) or "") is not None
    head, marker, answer = text.rpartition(_HASHES)
    starts_line = not head or head.endswith("\n")
    return (
        bool(marker) and starts_line and _HASHES not in head and _OPEN not in text and number_value(answer) is not None
    )


def _tagged(text: str) -> str | None:
    """What stands between the last `</answer>` and the nearest `<answer>` before it, stripped."""
    end = text.rfind(_CLOSE)
    start = text.rfind(_OPEN, 0, end) if end >= 0 else -1
    return text[start + len(_OPEN) : end].strip() if start >= 0 else None

"""GSM8K's answer however it is written: what the task `gsm8k_climb` takes from a text, and when that is right.

In this order: the last `<answer>…</answer>` (its last number), the number after the last `####`, the last number of the
text; compared as numbers (1,000 = 1000.0 = $1000). The same answers as the verifier `gsm8k` of posttrain-reward-model,
which trains on them and which this package does not import; a test of the repository holds the two together.
"""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

INVALID = "[invalid]"
"""As lm-eval's extracting filters say that there is no answer."""

MOST_READ = 1 << 20
"""Characters from the end of a text; an answer stands there."""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
# A minus between two terms ("10-4") is an operator, not the sign of the second one.
_SIGN = r"(?:(?:(?<![\w)\]])[-+\u2212])?[$€£]?|[$€£][-+\u2212])"
_NUMBER = rf"{_SIGN}(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?:/[0-9]+(?:\.[0-9]+)?)?%?"
_ANY, _HASHED = re.compile(_NUMBER, re.ASCII), re.compile(rf"####[ \t]*({_NUMBER})", re.ASCII)
_PLAIN = str.maketrans({"\u2212": "-", "$": None, "€": None, "£": None, ",": None, "%": None})


def answer_of(text: str) -> str | None:
    """The answer as written, or None; in a tag without a number, the tag's text."""
    text = text[-MOST_READ:]
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    if start >= 0 and (stated := text[start + len("<answer>") : end].strip()):
        return _last(stated) or stated
    marked = _HASHED.findall(text)
    return marked[-1] if marked else _last(text)


def value_of(answer: str) -> Fraction | None:
    """The value of a text that is one number; None for others, and for what would be expensive to compute."""
    plain = answer.strip().translate(_PLAIN)
    exponents = re.findall(r"[eE]([-+]?[0-9]+)", plain)
    if len(answer) > 100 or not _ANY.fullmatch(answer.strip()) or any(abs(int(e)) > 100 for e in exponents):
        return None
    numerator, _, denominator = plain.partition("/")
    divisor = Fraction(denominator or 1)
    return Fraction(numerator) / divisor if divisor else None


def extract(responses: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """lm-eval's filter: each response's answer, as a plain number where it is one."""
    return [[_shown(text) for text in texts] for texts in responses]


def grade(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """`exact_match`: whether the extracted answer equals the gold one as a number."""
    given, gold = value_of(results[0]), value_of(answer_of(str(doc["answer"])) or "")
    return {"exact_match": float(given is not None and given == gold)}


def _shown(text: str) -> str:
    answer = answer_of(text)
    value = None if answer is None else value_of(answer)
    # Votes are counted by text: one number, one text.
    return str(value) if value is not None else answer or INVALID


def _last(text: str) -> str | None:
    found = [match.group() for match in _ANY.finditer(text)]
    return found[-1] if found else None

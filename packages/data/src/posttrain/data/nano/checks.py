"""Whether a text obeys a formatting instruction: pure, exact, linear in the text's length.

`check` is the gold reward of instructions and the metric of their task. Strict means the text as it is; loose forgives
what IFEval forgives (Zhou et al. 2023, arXiv:2311.07911, section 2.2): one of eight variants passes, made by leaving
out the first line, the last line, and asterisks.
"""

from collections.abc import Callable, Mapping
from typing import Any

SENTENCE_ENDS = (".", "!", "?")
EDGES = " \t\r\n.,!?\"'"

Check = Callable[[str, Mapping[str, Any]], bool]


def _words(text: str) -> list[str]:
    """Words in lower case, without punctuation at their edges."""
    return [word for word in (piece.strip(EDGES).lower() for piece in text.split()) if word]


def _sentences(text: str) -> int:
    return sum(piece.rstrip("\"'")[-1:] in SENTENCE_ENDS for piece in text.split())


def _first_word(text: str, word: str) -> bool:
    return _words(text)[:1] == [word.lower()]


def _last_word(text: str, word: str) -> bool:
    return _words(text)[-1:] == [word.lower()]


def _bullets(text: str) -> int:
    return sum(line.lstrip().startswith("* ") for line in text.splitlines())


def _quoted(text: str) -> bool:
    stripped = text.strip()
    return len(stripped) > 2 and stripped[0] == stripped[-1] == '"'


def _last_line_is_postscript(text: str) -> bool:
    return text.strip().splitlines()[-1].lstrip().upper().startswith("P.S. ")


CHECKS: dict[str, Check] = {
    "case:lower": lambda text, _: text.islower(),
    "case:upper": lambda text, _: text.isupper(),
    "start:word": lambda text, kwargs: _first_word(text, kwargs["word"]),
    "end:word": lambda text, kwargs: _last_word(text, kwargs["word"]),
    "keyword:include": lambda text, kwargs: kwargs["word"].lower() in _words(text),
    "keyword:repeat": lambda text, kwargs: _words(text).count(kwargs["word"].lower()) == kwargs["n"],
    "punctuation:no_comma": lambda text, _: "," not in text,
    "length:sentences": lambda text, kwargs: _sentences(text) == kwargs["n"],
    "length:at_most_words": lambda text, kwargs: len(text.split()) <= kwargs["n"],
    "format:quotes": lambda text, _: _quoted(text),
    "format:bullets": lambda text, kwargs: _bullets(text) == kwargs["n"],
    "format:title": lambda text, _: text.lstrip().startswith("# "),
    "format:postscript": lambda text, _: _last_line_is_postscript(text),
}
"""One test for each kind of instruction; a text that is blank obeys none of them."""


def check(instruction_id: str, kwargs: Mapping[str, Any], text: str, strict: bool = True) -> bool:
    """Whether `text` obeys the instruction. Raises ValueError for an unknown id, KeyError for a missing argument."""
    if instruction_id not in CHECKS:
        raise ValueError(f"instruction {instruction_id!r} is unknown; choose from: {', '.join(CHECKS)}")
    test = CHECKS[instruction_id]
    return any(bool(variant.strip()) and test(variant, kwargs) for variant in ([text] if strict else _variants(text)))


def _variants(text: str) -> list[str]:
    lines = text.split("\n")
    shortened = ["\n".join(part) for part in (lines, lines[1:], lines[:-1], lines[1:-1])]
    return [variant for text in shortened for variant in (text, text.replace("*", ""))]

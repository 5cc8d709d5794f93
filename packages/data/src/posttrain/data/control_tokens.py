"""Keeps text that people or models wrote from turning into control tokens.

A tokenizer reads `<|im_end|>` anywhere in a text as the token that ends a turn. To let messages hold those characters,
each occurrence gets a seam: one code point that Unicode reserves for internal use, set inside the special string
before the chat template is rendered. The rendered text is then cut at the seams and the pieces encoded one by one, so
that no piece holds the whole string. Text without special strings is left as it is and encodes as everywhere else.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from posttrain.core.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SEAMS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))
"""Unicode's noncharacters for internal use; one that no message holds is taken."""


def neutralise(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> tuple[list[str], str | None]:
    """The texts with a seam inside every special string, and that seam (None when no text needed one)."""
    strings = tuple(sorted(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special and len(str(t)) > 1))
    pattern = _pattern(strings)
    if pattern is None or not any(pattern.search(text) for text in texts):
        return list(texts), None
    seam = next((s for s in _SEAMS if not any(s in text for text in texts)), None)
    if seam is None:
        raise RequestError("a message holds special tokens and all of U+FDD0 to U+FDEF; remove these noncharacters")
    return [_with_seams(text, pattern, seam) for text in texts], seam


def _with_seams(text: str, pattern: re.Pattern[str], seam: str) -> str:
    while pattern.search(text):  # again, for a special string that overlapped the one before it
        text = pattern.sub(lambda found: found[0][0] + seam + found[0][1:], text)
    return text


def encode_with_seams(tokenizer: "PreTrainedTokenizerFast", text: str, seam: str | None) -> list[int]:
    """The ids of a text's pieces between seams; special strings are control tokens where they are whole."""
    pieces = [text] if seam is None else text.split(seam)
    return [token for piece in pieces if piece for token in tokenizer.encode(piece, add_special_tokens=False)]


@lru_cache(maxsize=32)
def _pattern(strings: tuple[str, ...]) -> re.Pattern[str] | None:
    # Longest first, so that of two special strings with a common beginning the whole one is found.
    longest_first = sorted(strings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if strings else None

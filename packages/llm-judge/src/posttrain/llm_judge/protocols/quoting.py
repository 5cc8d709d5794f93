"""Texts of others inside a prompt: between marks that no text can hold, and got back exactly.

The marks carry a nonce, a piece of a digest of the game that occurs in none of its texts: nothing within a text can
end its quotation, begin another or repeat the line that a verdict is given on. Control tokens of chat models, which
many servers obey wherever they stand, are broken up by a space; what looks broken up already gets one space more, so
that different texts stay different.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

import orjson

VERSION = 1
"""Of the form of a quotation; raised when it changes, for every prompt changes with it."""

NONCE_LENGTH = 8

# No body holds an opening of another: a space put after one opening leaves every other where it is.
_ANGLE = (
    r"\|[^\s<>|\[\]]{1,64}\|>"  # <|im_end|>, <|eot_id|>, <|endoftext|>
    r"|\uff5c[^\s<>\uff5c\[\]]{1,64}\uff5c>"  # DeepSeek's, with fullwidth bars
    r"|/?(?:s|bos|eos|pad|unk|think|start_of_turn|end_of_turn)>"
    r"|</?sys>>"
)
_SQUARE = r"/?(?:inst|system_prompt|available_tools|tool_calls|tool_results)\]"
_WHOLE = re.compile(rf"<(?= *(?:{_ANGLE}))|\[(?= *{_SQUARE})", re.IGNORECASE)
_BROKEN = re.compile(rf"(<(?= +(?:{_ANGLE}))|\[(?= +{_SQUARE})) ", re.IGNORECASE)
_BEGIN = re.compile(r"^\[([0-9a-f]+) begin: ([a-z0-9 ()]+)\]$", re.MULTILINE)


def nonce_for(definition: Mapping[str, Any], texts: Iterable[str], length: int = NONCE_LENGTH) -> str:
    """The first `length` hexadecimal digits of a digest of `definition` and the least number with which they occur in
    no text, whatever its case and the form of its characters."""
    plain = [unicodedata.normalize("NFKC", text).casefold() for text in texts]
    # Texts and whole numbers, which orjson writes as canonical JSON has them, at a tenth of the time.
    start = b"[" + orjson.dumps(dict(definition), option=orjson.OPT_SORT_KEYS) + b","
    candidates = (hashlib.sha256(start + b"%d]" % number).hexdigest()[:length] for number in count())
    return next(nonce for nonce in candidates if not any(nonce in text for text in plain))


def quote(name: str, text: str, nonce: str) -> str:
    """`text` between a line that begins it and one that ends it, both with the nonce and the name."""
    return f"[{nonce} begin: {name}]\n{_break(text)}\n[{nonce} end: {name}]"


def quotations(prompt: str) -> tuple[str, dict[str, str]]:
    """The nonce of a prompt and all that it quotes, by name: what `quote` was given.

    The first mark is the prompt's own, for texts come after one, and its nonce is in no text. ValueError where there
    is no mark, one of them has no end, a name comes twice or marks stand elsewhere.
    """
    first = _BEGIN.search(prompt)
    if first is None:
        raise ValueError("nothing is quoted")
    nonce, place = first[1], first.start()
    found: dict[str, str] = {}
    while (begin := prompt.find(f"[{nonce} begin: ", place)) >= 0:
        mark = _BEGIN.match(prompt, begin)
        if mark is None or mark[2] in found:
            raise ValueError(f"the mark at character {begin} is not the beginning of a quotation of its own")
        ending = f"\n[{nonce} end: {mark[2]}]"
        end = prompt.find(f"\n[{nonce} ", mark.end() + 1)
        if not prompt.startswith("\n", mark.end()) or not prompt.startswith(ending, end):
            raise ValueError(f"the quotation of the {mark[2]} has no end")
        found[mark[2]] = _mend(prompt[mark.end() + 1 : end])
        place = end + len(ending)
    return nonce, found


def _break(text: str) -> str:
    return _WHOLE.sub(r"\g<0> ", text)


def _mend(text: str) -> str:
    return _BROKEN.sub(r"\1", text)

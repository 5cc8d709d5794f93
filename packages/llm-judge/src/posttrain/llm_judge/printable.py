"""Texts of models and files for a terminal, which would obey the control characters in them."""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""C0, DEL and C1, without tab and line feed."""


def printable(text: str) -> str:
    """The text with each control character as `\\x1b` shows one, line ends and tabs left as they are."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))

r"""The answer that a solution in LaTeX boxes, as MATH's solutions do: `\boxed{\frac{1}{2}}`.

Linear in the length of the text.
"""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE = re.compile(r"\s+([^\s$]+)")


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}` or `\fbox{…}`, inner braces kept, blanks around it cut; or behind a bare
    `\boxed 3`. None where there is none, it is empty, or its brace is never closed."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    opening = re.compile(r"\s*\{").match(text, start)
    if opening is None:
        bare = _BARE.match(text, start)
        return bare[1].rstrip(".,") or None if bare else None
    depth = 1
    for brace in _BRACES.finditer(text, opening.end()):
        if brace[0] in "{}":  # an escaped \{ opens nothing
            depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[opening.end() : brace.start()].strip() or None
    return None

"""Counts what a backtracking regular-expression engine does on a text: the work of `re`, without a clock.

It matches the parsed pattern as `re` does (in the same order, greedily, trying the next way when one fails) and counts
every look at a character. Tests compare its matches with those of `re` itself, so that what is counted is what runs.
It knows the parts that this package's patterns have, and raises on others.
"""

import re
from collections.abc import Iterator
from re import _constants as op
from re import _parser as parser


class Matcher:
    """Finds all matches of a pattern; `steps` counts the looks at characters since it was made."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._nodes = list(parser.parse(pattern.pattern, pattern.flags))
        self.steps = 0

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Begin and end of each match, as `finditer` gives them."""
        self._text, found, place = text, [], 0
        while place <= len(text):
            end = next(self._ends(self._nodes, 0, place), None)
            if end is not None:
                found.append((place, end))
            place = place + 1 if end is None or end == place else end
        return found

    def _ends(self, nodes: list, first: int, place: int) -> Iterator[int]:
        """Where a match of the nodes from `first` on may end that begins at `place`, in the order of `re`."""
        if first == len(nodes):
            yield place
            return
        for middle in self._node(nodes[first], place):
            yield from self._ends(nodes, first + 1, middle)

    def _node(self, node: tuple, place: int) -> Iterator[int]:
        kind, value = node
        if kind in (op.LITERAL, op.IN):
            if self._takes(node, place):
                yield place + 1
        elif kind is op.SUBPATTERN:
            yield from self._ends(list(value[3]), 0, place)
        elif kind is op.BRANCH:
            for way in value[1]:
                yield from self._ends(list(way), 0, place)
        elif kind in (op.ASSERT, op.ASSERT_NOT):
            direction, inner = value
            begin = place if direction > 0 else place - 1  # what is looked behind for is one character wide
            holds = begin >= 0 and next(self._ends(list(inner), 0, begin), None) is not None
            if holds == (kind is op.ASSERT):
                yield place
        elif kind is op.MAX_REPEAT:
            least, most, inner = value
            if len(inner) == 1 and inner[0][0] in (op.LITERAL, op.IN):
                end = place
                while end - place < most and self._takes(inner[0], end):
                    end += 1
                yield from range(end, place + least - 1, -1)
            else:
                yield from self._repeat(list(inner), least, most, place)
        else:
            raise NotImplementedError(str(kind))

    def _repeat(self, inner: list, least: int, most: int, place: int) -> Iterator[int]:
        if most > 0:
            for end in self._ends(inner, 0, place):
                if end > place:
                    yield from self._repeat(inner, max(0, least - 1), most - 1, end)
        if least == 0:
            yield place

    def _takes(self, node: tuple, place: int) -> bool:
        self.steps += 1
        if place >= len(self._text):
            return False
        character = self._text[place]
        kind, value = node
        if kind is op.LITERAL:
            return ord(character) == value
        negated = value[0][0] is op.NEGATE
        return any(_in_class(character, part) for part in value) != negated


def _in_class(character: str, part: tuple) -> bool:
    kind, value = part
    if kind is op.LITERAL:
        return ord(character) == value
    if kind is op.RANGE:
        return value[0] <= ord(character) <= value[1]
    if kind is op.CATEGORY and value is op.CATEGORY_WORD:
        return character.isascii() and (character.isalnum() or character == "_")
    if kind is op.NEGATE:
        return False
    raise NotImplementedError(str(part))

"""Comparisons in the store: every text once, under its digest, and what belongs together by the texts' ids."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from posttrain.core.hashing import canonical_json
from posttrain.core.wire import Message
from posttrain.llm_judge.comparisons import Comparison, Game
from posttrain.llm_judge.store.rows import ids

PLAIN = ("category", "generator_a", "generator_b", "human", "prompt_id")
"""Fields of a comparison that are kept as they are, short and seldom shared."""
CUT = ("cut_a", "cut_b")
"""Kept where they are true."""
SINGLE = ("reference", "rubric")
SEVERAL = ("questions", "answers_a", "answers_b")
TEXTS_KEPT = 10_000
"""Texts in memory while comparisons are read."""


def comparison_ids(connection: sqlite3.Connection, games: Sequence[Game]) -> list[int]:
    """The id of each game's comparison, cut to the turns that the judge sees; those that are not there are stored."""
    digests = {text: hashlib.sha256(text.encode()).digest() for game in games for text in _texts(game)}
    texts = ids(connection, "texts", ("digest", "text"), {digest: (digest, text) for text, digest in digests.items()})
    contents = [_content(game, lambda text: texts[digests[text]]) for game in games]
    found = ids(connection, "comparisons", ("content",), {content: (content,) for content in contents})
    return [found[content] for content in contents]


class Texts:
    """Reads comparisons back."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._text = lru_cache(TEXTS_KEPT)(self._read)

    def comparison(self, id: int) -> Comparison:
        """The comparison that `comparison_ids` gave this id."""
        stored = self._connection.execute("SELECT content FROM comparisons WHERE id = ?", (id,)).fetchone()[0]
        content = json.loads(stored)
        fields = {name: content[name] for name in PLAIN} | {name: content.get(name, False) for name in CUT}
        fields |= {name: tuple(map(self._text, content[name])) for name in SEVERAL}
        fields |= {name: None if content[name] is None else self._text(content[name]) for name in SINGLE}
        history = tuple(Message(role=role, content=self._text(text)) for role, text in content["history"])
        return Comparison(history=history, **fields)

    def _read(self, id: int) -> str:
        text: str = self._connection.execute("SELECT text FROM texts WHERE id = ?", (id,)).fetchone()[0]
        return text


def _texts(game: Game) -> Iterator[str]:
    asked = game.comparison
    for name in SEVERAL:
        yield from getattr(asked, name)[: game.turns]
    yield from (text for name in SINGLE if (text := getattr(asked, name)) is not None)
    yield from (message.content for message in asked.history)


def _content(game: Game, id_of: Callable[[str], int]) -> str:
    asked = game.comparison
    content: dict[str, Any] = {name: getattr(asked, name) for name in PLAIN}
    content |= {f"cut_{which}": True for which, cut in game.cut.items() if cut}
    for name in SEVERAL:
        content[name] = [id_of(text) for text in getattr(asked, name)[: game.turns]]
    for name in SINGLE:
        text = getattr(asked, name)
        content[name] = None if text is None else id_of(text)
    content["history"] = [[message.role, id_of(message.content)] for message in asked.history]
    return canonical_json(content)

"""Comparisons in the store: every text once, under its digest, and what belongs together by the texts' ids."""

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from posttrain.core.hashing import canonical_json
from posttrain.core.wire import Message
from posttrain.llm_judge.comparisons import Comparison, Game

PLAIN = ("category", "generator_a", "generator_b", "human", "prompt_id")
"""Fields of a comparison that are kept as they are, short and seldom shared."""
CUT = ("cut_a", "cut_b")
"""Kept where they are true."""
SINGLE = ("reference", "rubric")
SEVERAL = ("questions", "answers_a", "answers_b")
TEXTS_KEPT = 10_000
"""Texts in memory while comparisons are read."""


def comparison_id(connection: sqlite3.Connection, game: Game) -> int:
    """The id of a game's comparison, cut to the turns that the judge sees; it is stored if it was not."""
    asked = game.comparison
    content: dict[str, Any] = {name: getattr(asked, name) for name in PLAIN}
    content |= {f"cut_{which}": True for which, cut in game.cut.items() if cut}
    for name in SEVERAL:
        content[name] = [_text_id(connection, text) for text in getattr(asked, name)[: game.turns]]
    for name in SINGLE:
        text = getattr(asked, name)
        content[name] = None if text is None else _text_id(connection, text)
    content["history"] = [[message.role, _text_id(connection, message.content)] for message in asked.history]
    return _id(connection, "comparisons", "content", canonical_json(content), ())


class Texts:
    """Reads comparisons back."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._text = lru_cache(TEXTS_KEPT)(self._read)

    def comparison(self, id: int) -> Comparison:
        """The comparison that `comparison_id` gave this id."""
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


def _text_id(connection: sqlite3.Connection, text: str) -> int:
    return _id(connection, "texts", "digest", hashlib.sha256(text.encode()).digest(), (("text", text),))


def _id(connection: sqlite3.Connection, table: str, column: str, value: Any, others: Sequence[tuple[str, Any]]) -> int:
    """The id of the row that has `value` in its unique column, made if there is none."""
    row = connection.execute(f"SELECT id FROM {table} WHERE {column} = ?", (value,)).fetchone()
    if row is None:
        names = ", ".join((column, *(name for name, _ in others)))
        values = (value, *(content for _, content in others))
        marks = ", ".join("?" * len(values))
        row = connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks}) RETURNING id", values).fetchone()
    id: int = row[0]
    return id

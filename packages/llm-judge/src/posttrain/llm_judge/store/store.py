"""The store of judgements: what a judge said of a game is kept the moment it arrives and never paid for twice.

A judgement is found by its key, a digest of judge and game, from any run. Several processes may use one store, and
each handle serves many threads and an asyncio program: writing goes through one thread of its own, the `a…` methods
wait for it without blocking.
"""

import gc
import json
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from posttrain.llm_judge.comparisons import Game
from posttrain.llm_judge.judgements import Decision, Judgement
from posttrain.llm_judge.store.claims import LEASE, Owner, claim, release, release_all
from posttrain.llm_judge.store.file import connect, create_store, store_errors
from posttrain.llm_judge.store.puts import put_all
from posttrain.llm_judge.store.rows import rows_in
from posttrain.llm_judge.store.texts import Texts
from posttrain.llm_judge.store.writer import Writer

DEFAULT_STORE = Path("runs/judge/store.db")
"""Where commands keep judgements, unless told another place."""
_SAID = "key, judge, shown, created, label, value, raw, prompt_tokens, completion_tokens, cost, seconds"


@dataclass(frozen=True)
class JudgeTotals:
    """What a store holds of one judge."""

    judge: Mapping[str, Any]
    judgements: int
    unparsed: int
    """Those without a verdict."""
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    """In the currency of the judge's prices; None: of some it is not known."""


class Store:
    """A handle of the store at `path`, made there if there is none. Close it, or use it in a `with`.

    RequestError for a file that is no store or one of another version; WorkError, one line, when the disk is full,
    the folder is not writable, or another process has been writing for a minute.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with store_errors(self.path):
            create_store(self.path)
            self._reader = connect(self.path)
            self._writer = Writer(self.path)
        self._reading = threading.Lock()
        self._owner = Owner()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Writes what waits to be written and lets go of this handle's claims. A second call does nothing."""
        if not self._writer.open:
            return
        try:
            self._writer.submit(self._let_go, None).result()
        finally:
            self._writer.close()
            with self._reading:
                self._reader.close()

    def get(self, keys: Iterable[str]) -> dict[str, Judgement]:
        """The stored ones of the judgements with these keys.

        The order in one is that of whoever asked first: `as_asked` gives it with A and B as another game has them.
        """
        wanted, query = set(keys), f"SELECT {_SAID} FROM judgements"
        with self._reading, store_errors(self.path), _uncollected():
            judges = _judges(self._reader)
            (stored,) = self._reader.execute("SELECT COUNT(*) FROM judgements").fetchone()
            # A row that is passed on the way takes a third of the time of one that is looked up.
            if 2 * len(wanted) >= stored:
                rows: Iterable[Sequence[Any]] = self._reader.execute(query)
            else:
                rows = rows_in(self._reader, f"{query} WHERE key", sorted(map(bytes.fromhex, wanted)))
            return {key: _judgement(key, row, judges) for row in rows if (key := row[0].hex()) in wanted}

    def put(self, judgement: Judgement, game: Game) -> bool:
        """Keeps a judgement of `game`, for good when this returns. False: its key was there, and what was is kept."""
        return self.put_many([(judgement, game)]) == 1

    async def aput(self, judgement: Judgement, game: Game) -> bool:
        """As `put`. Done even if the waiting task is cancelled."""
        return await self._writer.asubmit(put_all, [(judgement, game)]) == 1

    def put_many(self, annotations: Sequence[tuple[Judgement, Game]]) -> int:
        """Keeps all of them or, when that fails, none. How many were new."""
        return self._writer.submit(put_all, annotations).result()

    def claim(self, keys: Collection[str], lease: float = LEASE) -> set[str]:
        """Those of the keys that the caller is to ask now: without a judgement, and claimed by nobody.

        A key that is not among them is stored already or under way elsewhere, also through this very handle: ask for
        it again later. `lease`: seconds that the claim holds at most. `put` ends it, and so does the end of this
        process; otherwise release it.
        """
        return self._writer.submit(self._claim, (keys, lease)).result()

    async def aclaim(self, keys: Collection[str], lease: float = LEASE) -> set[str]:
        """As `claim`."""
        return await self._writer.asubmit(self._claim, (keys, lease))

    def release(self, keys: Collection[str]) -> None:
        """Lets go of claims whose games were not answered."""
        self._writer.submit(self._release, keys).result()

    async def arelease(self, keys: Collection[str]) -> None:
        """As `release`. Done even if the waiting task is cancelled."""
        await self._writer.asubmit(self._release, keys)

    def annotations(self) -> Iterator[tuple[Judgement, Game]]:
        """All judgements with their games, oldest first; from a state of the store that later writing does not change.

        A game has the turns that the judge saw, and A and B as whoever asked first.
        """
        with store_errors(self.path), closing(connect(self.path)) as connection:
            connection.execute("BEGIN")
            judges, texts = _judges(connection), Texts(connection)
            query = f"SELECT {_SAID}, comparison, replicate FROM judgements ORDER BY created, key"
            for *said, comparison, replicate in connection.execute(query):
                judgement = _judgement(said[0].hex(), said, judges)
                yield judgement, Game(texts.comparison(comparison), judgement.order, replicate=replicate)

    def totals(self) -> list[JudgeTotals]:
        """What is stored of each judge, the first one used first."""
        query = """SELECT identity, COUNT(*), SUM(label IS NULL), SUM(prompt_tokens), SUM(completion_tokens),
                CASE WHEN COUNT(cost) = COUNT(*) THEN SUM(cost) END
            FROM judgements JOIN judges ON judges.id = judgements.judge GROUP BY judges.id ORDER BY judges.id"""
        with self._reading, store_errors(self.path):
            return [JudgeTotals(json.loads(row[0]), *row[1:]) for row in self._reader.execute(query)]

    def _claim(self, connection: sqlite3.Connection, wishes: Sequence[tuple[Collection[str], float]]) -> list[set[str]]:
        def claimed(keys: Collection[str], lease: float) -> set[str]:
            return {key.hex() for key in claim(connection, [bytes.fromhex(key) for key in keys], self._owner, lease)}

        return [claimed(keys, lease) for keys, lease in wishes]

    def _release(self, connection: sqlite3.Connection, of_each: Sequence[Collection[str]]) -> list[None]:
        for keys in of_each:
            release(connection, [bytes.fromhex(key) for key in keys], self._owner)
        return [None] * len(of_each)

    def _let_go(self, connection: sqlite3.Connection, ends: Sequence[None]) -> list[None]:
        release_all(connection, self._owner)
        return [None] * len(ends)


def _judges(connection: sqlite3.Connection) -> dict[int, dict[str, Any]]:
    return {id: json.loads(identity) for id, identity in connection.execute("SELECT id, identity FROM judges")}


def _judgement(key: str, row: Sequence[Any], judges: dict[int, dict[str, Any]]) -> Judgement:
    _, judge, shown, created, *_ = row
    return Judgement(key, judges[judge], shown, Decision._make(row[4:]), created)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's garbage collector, which looks through all objects again and again while many new ones stay: of
    a hundred thousand judgements it takes a third of the time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

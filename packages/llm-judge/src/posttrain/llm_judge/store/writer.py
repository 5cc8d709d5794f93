"""The one thread that writes to a store: what is waiting is committed together, and answered when it is on the disk.

Waiting for the disk takes milliseconds, and a run has dozens of answers arriving meanwhile: they share the next commit,
its statements, and the message to the event loop that they are kept. So each is safe before it is acknowledged, at a
thousandth of the cost of a commit for itself.
"""

import asyncio
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from posttrain.llm_judge.store.file import connect, store_errors

MOST_AT_ONCE = 16
"""Pieces of work in one commit. What is kept at once goes on at once, and comes back at once: with more a run would go
in waves, and stand still between them."""

T = TypeVar("T")
R = TypeVar("R")
Kind = Callable[[sqlite3.Connection, Sequence[T]], Sequence[R]]
"""What is done with pieces of work that came one after the other, within a transaction that is already open; a result
for each."""


@dataclass(frozen=True)
class Piece:
    """Of one kind of work, and who waits for it."""

    kind: Kind[Any, Any]
    work: Any
    waiting: "Future[Any] | asyncio.Future[Any]"


class Writer:
    """Does pieces of work in the order of their arrival."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = connect(path)
        self._waiting: SimpleQueue[Piece | None] = SimpleQueue()
        self.open = True
        """Until `close`."""
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"writes {path.name}", daemon=True)
        self._thread.start()

    def submit(self, kind: Kind[T, R], work: T) -> "Future[R]":
        """The result of `work` once it is committed."""
        waiting: Future[R] = Future()
        self._put(Piece(kind, work, waiting))
        return waiting

    async def asubmit(self, kind: Kind[T, R], work: T) -> R:
        """As `submit`. A cancelled waiter loses no answer that was paid for: what was submitted is done."""
        waiting: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._put(Piece(kind, work, waiting))
        return await waiting

    def _put(self, piece: Piece) -> None:
        with self._lock:
            if not self.open:
                raise ValueError("the store is closed")
            self._waiting.put(piece)

    def close(self) -> None:
        """Returns when everything submitted is done. A second call does nothing."""
        with self._lock:
            if not self.open:
                return
            self.open = False
            self._waiting.put(None)
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        last = False
        while not last:
            pieces, last = self._next()
            if pieces:
                _tell(pieces, self._outcomes(pieces))

    def _next(self) -> tuple[list[Piece], bool]:
        """All that waits, at least one; whether it is the last."""
        piece, pieces = self._waiting.get(), []
        while piece is not None:
            pieces.append(piece)
            if len(pieces) == MOST_AT_ONCE:
                break
            try:
                piece = self._waiting.get_nowait()
            except Empty:
                break
        return pieces, piece is None

    def _outcomes(self, pieces: Sequence[Piece]) -> list[Any]:
        """The result of each, or its error."""
        try:
            # No piece is to blame for this, and waiting for another process once for each would take long.
            with store_errors(self._path):
                self._connection.execute("BEGIN IMMEDIATE")
        except Exception as error:  # noqa: BLE001 (whoever submitted a piece gets it)
            return [error] * len(pieces)
        try:
            return self._commit(pieces)
        except Exception as error:  # noqa: BLE001
            # What one piece of work did wrong must not take its neighbours' answers.
            return [error] if len(pieces) == 1 else [self._outcomes([piece])[0] for piece in pieces]

    def _commit(self, pieces: Sequence[Piece]) -> list[Any]:
        """Does them, and ends the transaction that is open in every case."""
        with store_errors(self._path):
            try:
                results: list[Any] = []
                for kind, alike in groupby(pieces, key=lambda piece: piece.kind):
                    results += kind(self._connection, [piece.work for piece in alike])
                self._connection.execute("COMMIT")
            except BaseException:
                # Some failures, a full disk among them, have rolled it back already.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            return results


def _tell(pieces: Sequence[Piece], outcomes: Sequence[Any]) -> None:
    """Gives everybody the result or the error; each event loop gets all of its own at once."""
    of_loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = defaultdict(list)
    for piece, outcome in zip(pieces, outcomes, strict=True):
        if isinstance(piece.waiting, asyncio.Future):
            of_loops[piece.waiting.get_loop()].append((piece.waiting, outcome))
        else:
            _settle(piece.waiting, outcome)
    for loop, settled in of_loops.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle_all, settled)


def _settle_all(settled: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for waiting, outcome in settled:
        if not waiting.done():  # else it was cancelled
            _settle(waiting, outcome)


def _settle(waiting: "Future[Any] | asyncio.Future[Any]", outcome: Any) -> None:
    if isinstance(outcome, Exception):
        waiting.set_exception(outcome)
    else:
        waiting.set_result(outcome)

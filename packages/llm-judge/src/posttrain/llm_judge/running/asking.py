"""Asks a judge about many games at once: so many workers over a queue that is filled as it empties.

Each answer goes to the store the moment it arrives, and its worker asks nothing before it is kept: what a kill can lose
is what is in flight, and no more than the limits allow of it. What another run asks at the same time is left to it (the
store's claims) and taken from the store when it is there.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from posttrain.core.clients import ServiceUnavailable
from posttrain.core.errors import PosttrainError
from posttrain.llm_judge.comparisons import Game
from posttrain.llm_judge.judgements import Decision, Judge, Judgement, JudgeRefused
from posttrain.llm_judge.running.limits import BudgetSpent, LimitSettings

GRACE = 10.0
"""Seconds that requests in flight get to end when a run is interrupted."""
GIVE_UP_AFTER = 10
"""Games in a row that the judge's server did not answer, each with all its retries: it is gone."""
LOOK_AGAIN = 1.0
"""Seconds between looks for answers that another run waits for."""
CLAIMED_AT_ONCE = 1000

Entry = tuple[str, Game]
"""A game with its key."""
Ended = Literal["done", "clear", "budget", "interrupted"]
"""Why a run ended: everything was tried, it was clear, the next request might have cost too much, a signal."""


class JudgementStore(Protocol):
    """What a run needs of a store, as `posttrain.llm_judge.store.Store` has it."""

    def get(self, keys: Iterable[str]) -> dict[str, Judgement]: ...

    async def aput(self, judgement: Judgement, game: Game) -> bool: ...

    async def aclaim(self, keys: Collection[str]) -> set[str]: ...

    async def arelease(self, keys: Collection[str]) -> None: ...


class Asking:
    """One run of a judge over different games. Answers, once stored, and failures are told to the two callables."""

    def __init__(
        self,
        judge: Judge,
        store: JudgementStore,
        *,
        limits: LimitSettings,
        answered: Callable[[Entry, Judgement, bool], None],
        failed: Callable[[Entry, PosttrainError], None],
    ) -> None:
        """`answered` gets the judgement and whether it was paid for here."""
        self._judge, self._store = judge, store
        self._workers = limits.concurrency + limits.unkept
        self._in_flight = asyncio.Semaphore(limits.concurrency)
        self._identity: Mapping[str, Any] = dict(judge.identity)
        self._answered, self._failed = answered, failed
        self._ready: asyncio.Queue[Entry | None] = asyncio.Queue(self._workers)
        self._stopped = asyncio.Event()
        self._claimed: set[str] = set()
        self._unanswered = 0
        self._error: Exception | None = None
        self.ended: Ended = "done"

    def stop(self, why: Ended) -> None:
        """No game is begun any more."""
        if not self._stopped.is_set():
            self.ended = why
            self._stopped.set()

    async def run(self, entries: Sequence[Entry], interrupted: asyncio.Event) -> None:
        """Returns when everything was tried, or after `stop` or `interrupted` when the requests in flight have ended.

        WorkError where the judge or the store cannot be had. Whatever was answered is stored in every case.
        """
        feeder = asyncio.create_task(self._guarded(self._feed(entries)))
        workers = [asyncio.create_task(self._guarded(self._work())) for _ in range(self._workers)]
        watcher = asyncio.create_task(self._interrupt(interrupted))
        all_tried = asyncio.create_task(_all_ended(workers))
        try:
            await _first_of(all_tried, self._stopped)
            if not all_tried.done():
                feeder.cancel()
                await asyncio.gather(feeder, return_exceptions=True)
                await self._wind_up(all_tried, interrupted)
        finally:
            tasks = [feeder, watcher, all_tried, *workers]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._store.arelease(self._claimed)
        if self._error is not None:
            raise self._error

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 (`run` raises it, after what is in flight)
            self._give_up(error)

    async def _interrupt(self, interrupted: asyncio.Event) -> None:
        await interrupted.wait()
        self.stop("interrupted")

    async def _wind_up(self, all_tried: "asyncio.Task[None]", interrupted: asyncio.Event) -> None:
        """Waits for what is in flight: it will be paid for. After an interruption for GRACE seconds only."""
        while not self._ready.empty():
            self._ready.get_nowait()
        for _ in range(self._workers):
            self._ready.put_nowait(None)
        await _first_of(all_tried, interrupted)
        await asyncio.wait({all_tried}, timeout=GRACE)

    async def _feed(self, entries: Sequence[Entry]) -> None:
        elsewhere: list[Entry] = []
        chunk = min(2 * self._workers, CLAIMED_AT_ONCE)
        for start in range(0, len(entries), chunk):
            elsewhere += await self._queue(entries[start : start + chunk])
        while elsewhere:
            # Many are read by and by, and the event loop has others to serve.
            found = await asyncio.to_thread(self._store.get, [key for key, _ in elsewhere])
            for entry in elsewhere:
                if entry[0] in found:
                    self._answered(entry, found[entry[0]], False)
            missing = [entry for entry in elsewhere if entry[0] not in found]
            # Whoever asked for it may have failed or ended: then it is ours.
            elsewhere = await self._queue(missing[:CLAIMED_AT_ONCE]) + missing[CLAIMED_AT_ONCE:]
            if elsewhere:
                await asyncio.sleep(LOOK_AGAIN)
        for _ in range(self._workers):
            await self._ready.put(None)

    async def _queue(self, entries: Sequence[Entry]) -> list[Entry]:
        """Hands over those that nobody else asks; the others."""
        if not entries:
            return []
        claiming = asyncio.ensure_future(self._store.aclaim([key for key, _ in entries]))  # noqa: RUF006 (awaited)
        try:
            await asyncio.wait([claiming])
        finally:  # also when this is cancelled: what was claimed has to be let go of
            mine = await claiming
            self._claimed |= mine
        for entry in entries:
            if entry[0] in mine:
                await self._ready.put(entry)
        return [entry for entry in entries if entry[0] not in mine]

    async def _work(self) -> None:
        while (entry := await self._ready.get()) is not None:
            try:
                async with self._in_flight:
                    if self._stopped.is_set():
                        return
                    decision = await self._judge.decide(entry[1])
            except BudgetSpent:
                self.stop("budget")
            except JudgeRefused as error:
                self._give_up(error)
            except PosttrainError as error:
                self._failed(entry, error)
                self._count(error)
                # Another run may wait for it.
                await self._store.arelease([entry[0]])
            else:
                self._unanswered = 0
                await self._keep(entry, decision)

    async def _keep(self, entry: Entry, decision: Decision) -> None:
        key, game = entry
        judgement = Judgement(key, self._identity, game.order, decision, time.time())
        if not await self._store.aput(judgement, game):  # another run's answer came first, and is the one that stays
            judgement = (await asyncio.to_thread(self._store.get, [key]))[key]
        self._claimed.discard(key)
        self._answered(entry, judgement, True)

    def _count(self, error: PosttrainError) -> None:
        if not isinstance(error, ServiceUnavailable):
            return
        self._unanswered += 1
        if self._unanswered >= GIVE_UP_AFTER:
            self._give_up(
                ServiceUnavailable(f"the judge left {self._unanswered} games in a row without an answer: {error}")
            )

    def _give_up(self, error: Exception) -> None:
        self._error = self._error or error
        self.stop("done")


async def _all_ended(tasks: "Collection[asyncio.Task[None]]") -> None:
    await asyncio.wait(tasks)


async def _first_of(task: "asyncio.Task[None]", event: asyncio.Event) -> None:
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()

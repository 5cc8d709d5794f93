"""Background runs: each judge plays one at a time, in the order of asking, and a restart of the service goes on where
the last one was.

What was asked is on the disk before it is acknowledged, what was judged is in the store: an unfinished run is simply
begun again, and pays for nothing twice.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from posttrain.core.errors import PosttrainError, RequestError
from posttrain.llm_judge.records import read_record, record_of, write_record
from posttrain.llm_judge.serving.answers import Progress, RunAnswer, RunRemoved, RunSummary, State
from posttrain.llm_judge.serving.contest import Contest, Overloaded
from posttrain.llm_judge.serving.discreet import log_place
from posttrain.llm_judge.serving.judging import Judging
from posttrain.llm_judge.serving.requests import RunRequest
from posttrain.llm_judge.serving.run_files import RunBeginning, RunFiles, lock_runs
from posttrain.llm_judge.serving.telemetry import telemetry
from posttrain.llm_judge.serving.wanted import Wanted

log = logging.getLogger(__name__)

LOCK_PATIENCE = 30.0
"""Seconds to wait for another service's lock: one that is being ended lets what is in flight arrive."""
RATES_EVERY = 1.0
"""Seconds: rates of thousands of comparisons take tenths of one, and are not made anew for everybody who asks."""
FAILED = "the service failed; its log says where"
BEGUN_AGAIN: tuple[State, ...] = ("failed", "cancelled")
"""States from which the same request begins a run again."""


class UnknownRun(RequestError):
    """There is no run with this id."""


class RunNotEnded(RequestError):
    """What is asked for needs a run that has ended."""


@dataclass(eq=False)
class Run:
    """One that the service knows; while it is played, with its contest."""

    summary: RunSummary
    identity: Mapping[str, Any]
    files: RunFiles
    contest: Contest | None = None
    rates: dict[str, Any] | None = None
    """The last ones that were asked for while it is played, and the monotonic time of that."""
    rated: float = -RATES_EVERY
    cancelled: bool = False
    """Somebody wants it to begin nothing more, even if that is not written down yet."""
    changed: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it ends: nothing may come between its files and its summary."""


class Runs:
    """To be used in one event loop."""

    def __init__(self, judging: Judging) -> None:
        self._judging, self._settings = judging, judging.settings
        self._folder = Path(self._settings.runs)
        self._runs: dict[str, Run] = {}
        self._queues: dict[str, deque[Run]] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._submitting = asyncio.Lock()
        self._stopping = False
        self._lock: FileLock | None = None

    async def open(self) -> None:
        """Knows all runs that there are, and goes on with those that have not ended. RequestError where another service
        has the folder, WorkError where it cannot be written."""
        self._lock = await asyncio.to_thread(lock_runs, self._folder, LOCK_PATIENCE)
        found = await asyncio.to_thread(self._load)
        for run in sorted(found, key=lambda run: run.summary.created):
            self._runs[run.summary.id] = run
            if run.summary.state != "queued":
                continue
            if self._can_be_played(run):
                self._enqueue(run)
            else:
                log.warning("run %s waits for its judge or protocol, which the settings lack", run.summary.id)

    async def aclose(self) -> None:
        """Ends what is played in order; it goes on with the next `open`."""
        self._stopping = True
        for run in self._runs.values():
            if run.contest:
                run.contest.interrupted.set()
        await asyncio.gather(*self._workers.values())
        if self._lock:
            self._lock.release()

    async def submit(self, wanted: Wanted[RunRequest]) -> RunAnswer:
        """The run of this request: the one that there is, begun again where it had failed or was cancelled, or a new
        one. Overloaded when too many wait; WorkError when the judge cannot be had or the disk is full."""
        async with self._judging.judges.open(wanted.judge, wanted.protocol) as judge:
            identity = dict(judge.identity)
        id = wanted.digest(identity)
        async with self._submitting:
            run = self._runs.get(id)
            if run is None or run.summary.state in BEGUN_AGAIN:
                waiting = sum(map(len, self._queues.values()))
                if waiting >= self._settings.max_queued_runs:
                    raise Overloaded(f"{waiting} runs wait already; come again later")
                run = await (self._create(id, wanted, identity) if run is None else self._begin_again(run))
                self._enqueue(run)
        return await self._told(run)

    async def status(self, id: str) -> RunAnswer:
        """How far a run is; UnknownRun where there is none."""
        return await self._told(self._run(id))

    def summaries(self, limit: int) -> list[RunSummary]:
        """The newest runs."""
        newest = sorted(self._runs.values(), key=lambda run: run.summary.created, reverse=True)
        return [run.summary for run in newest[:limit]]

    async def cancel(self, id: str) -> RunAnswer:
        """Begins no game of a run any more; what is in flight still arrives and counts. One that has ended stays as it
        is. UnknownRun where there is none."""
        run = self._run(id)
        # Before anything is waited for: its match may be about to begin.
        run.cancelled = True
        async with run.changed:
            if run.summary.state in ("queued", "running"):
                if run.contest:
                    run.contest.interrupted.set()
                if run in (queue := self._queues.get(run.summary.judge, deque())):
                    queue.remove(run)
                await self._end(run, "cancelled")
                run.rated = -RATES_EVERY
        return await self._told(run)

    async def remove(self, id: str) -> RunRemoved:
        """Removes a run that has ended; what was judged stays in the store, and its record where records are.
        UnknownRun where there is none, RunNotEnded while it waits, is played, or what was in flight arrives."""
        async with self._submitting:  # the same request may begin it again
            run = self._run(id)
            async with run.changed:
                if run.contest or run.summary.state in ("queued", "running"):
                    raise RunNotEnded("the run has not ended; cancel it first, and what is in flight arrives")
                await asyncio.to_thread(run.files.remove)
                del self._runs[id]
        return RunRemoved(id=id)

    def _can_be_played(self, run: Run) -> bool:
        """Whether the settings still have what it was asked of."""
        protocols = self._judging.catalog.protocols
        known = run.summary.protocol is None or run.summary.protocol in protocols
        return known and run.summary.judge in self._settings.judges

    def _run(self, id: str) -> Run:
        try:
            return self._runs[id]
        except KeyError:
            raise UnknownRun("there is no such run; GET /runs lists them") from None

    async def _create(self, id: str, wanted: Wanted[RunRequest], identity: dict[str, Any]) -> Run:
        summary = RunSummary(
            id=id,
            state="queued",
            judge=wanted.judge,
            protocol=wanted.protocol_name,
            comparisons=len(wanted.request.comparisons),
            created=time.time(),
        )
        # With the names that it was resolved to: defaults may be others when it is begun after a restart.
        names = {"judge": wanted.judge, "protocol": wanted.protocol_name}
        files = RunFiles(self._folder / id)
        beginning = RunBeginning(summary=summary, identity=identity)
        await asyncio.to_thread(files.create, beginning, wanted.request.model_copy(update=names))
        run = self._runs[id] = Run(summary, identity, files)
        return run

    async def _begin_again(self, run: Run) -> Run:
        """Another, for what is left of the old one may still be ending: it writes nothing down any more."""
        async with run.changed:
            await asyncio.to_thread(run.files.reopen)
            summary = run.summary.model_copy(update={"state": "queued", "started": None, "ended": None, "error": None})
            again = self._runs[summary.id] = Run(summary, run.identity, run.files)
        return again

    def _load(self) -> list[Run]:
        found = []
        for path in sorted(self._folder.glob("*/run.json")):
            files = RunFiles(path.parent)
            try:
                beginning, outcome = files.beginning(), files.outcome()
            except RequestError as error:
                log.warning("a run is passed over: %s", error)
                continue
            found.append(Run(_summary(outcome) if outcome else beginning.summary, beginning.identity, files))
        return found

    def _enqueue(self, run: Run) -> None:
        judge = run.summary.judge
        self._queues.setdefault(judge, deque()).append(run)
        if judge not in self._workers:
            self._workers[judge] = asyncio.create_task(self._work(judge))

    async def _work(self, judge: str) -> None:
        queue = self._queues[judge]
        while queue and not self._stopping:
            await self._play(queue.popleft())
        del self._workers[judge]

    async def _play(self, run: Run) -> None:
        run.summary = run.summary.model_copy(update={"state": "running", "started": time.time()})
        try:
            wanted = self._judging.catalog.resolve(await asyncio.to_thread(run.files.request))
            drawn_by = run.summary.id if wanted.request.stop_when_clear else None
            contest = self._judging.contest(wanted, expected=run.identity, kept=run.files, drawn_by=drawn_by)
            # Else it was cancelled meanwhile, or the service is being ended.
            if not run.cancelled and not self._stopping:
                run.contest = contest
                await self._judging.begin(contest)
            error = _why_unfinished(contest)
        except PosttrainError as problem:
            error = str(problem)
        except Exception as problem:  # noqa: BLE001 - the judge's other runs have to go on
            log_place(log, "a run", problem)
            error = FAILED
        async with run.changed:
            if run.summary.state == "running" and not self._stopping:
                await self._end(run, "failed" if error else "done", error)
            elif run.summary.state == "cancelled" and self._runs.get(run.summary.id) is run:
                # That was written down at once; with what was in flight then it is complete.
                await self._write_down(run, run.summary)
            run.contest = None

    async def _end(self, run: Run, state: State, error: str | None = None) -> None:
        summary = run.summary.model_copy(update={"state": state, "ended": time.time(), "error": error})
        await self._write_down(run, summary)
        telemetry().runs.labels(run.summary.judge, run.summary.state).inc()

    async def _write_down(self, run: Run, summary: RunSummary) -> None:
        run.summary = _summary(await asyncio.to_thread(self._outcome, run, summary))

    def _outcome(self, run: Run, summary: RunSummary) -> RunAnswer:
        """Writes down how the run ended. Where that cannot be done the run is told as failed, and goes on after the
        next start."""
        try:
            outcome = _answer(summary, run.contest, run.contest.rates() if run.contest else None)
            if summary.state == "done" and run.contest:
                outcome = outcome.model_copy(update={"result": self._record(run.contest)})
            run.files.end(outcome)
            return outcome
        except PosttrainError as problem:
            error = str(problem)
        except Exception as problem:  # noqa: BLE001 - as above
            log_place(log, "a run", problem)
            error = FAILED
        return _answer(summary.model_copy(update={"state": "failed", "error": error}), None)

    def _record(self, contest: Contest) -> dict[str, Any]:
        assert contest.played is not None
        assert contest.judge is not None
        stop = contest.drawn_by is not None
        record = record_of(contest.played, contest.judge, contest.wanted.sides, stop_when_clear=stop)
        # As it lies there: with what earlier runs of the same question took.
        return read_record(write_record(Path(self._settings.records), contest.played, record))

    async def _told(self, run: Run) -> RunAnswer:
        contest, over = run.contest, run.contest is None and run.summary.ended is not None
        if over and (outcome := await asyncio.to_thread(run.files.outcome)):
            return outcome
        if contest and contest.noting.found and time.monotonic() - run.rated >= RATES_EVERY:
            run.rated = time.monotonic()
            run.rates = await asyncio.to_thread(contest.rates)
            if run.contest is None:  # it ended meanwhile
                return await self._told(run)
        return _answer(run.summary, contest, run.rates)


def _summary(outcome: RunAnswer) -> RunSummary:
    return RunSummary(**{name: getattr(outcome, name) for name in RunSummary.model_fields})


def _answer(summary: RunSummary, contest: Contest | None, rates: dict[str, Any] | None = None) -> RunAnswer:
    if contest is None:
        return RunAnswer(**dict(summary), progress=Progress())
    tally = contest.watching.tally
    counts = {name: getattr(tally, name) for name in Progress.model_fields if name != "games"}
    progress = Progress(games=tally.total, **counts)
    return RunAnswer(**dict(summary), progress=progress, cost=contest.cost(), rates=rates)


def _why_unfinished(contest: Contest) -> str | None:
    """What a match that was played lacks; None: nothing."""
    if contest.played is None:
        return "it was cancelled"
    report = contest.played.report
    if contest.missing:
        index, why = next(iter(sorted(contest.missing.items())))
        return f"{len(contest.missing)} comparisons lack an answer, the first being comparisons[{index}]: {why}"
    if report.failures:
        first = report.failures[0]
        of = next(number for number, one in enumerate(contest.played.match.comparisons) if one is first.game.comparison)
        return (
            f"{len(report.failures)} games have no answer, the first, of comparisons[{contest.places[of]}], because "
            f"{first.why}; the rates are those of the other comparisons"
        )
    if report.ended == "budget":
        return f"the money for judge '{contest.wanted.judge}' is spent; what was judged is kept"
    return None

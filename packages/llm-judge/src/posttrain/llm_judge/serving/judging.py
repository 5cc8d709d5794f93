"""One request, from its comparisons to what is said of them: missing answers, then the match, within the limits.

A match that is begun is never simply dropped: whoever waited may go away or run out of time, and what is in flight then
still gets its few seconds to arrive and be kept. So the same request asks only what is missing.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from posttrain.core.clients import ServiceUnavailable
from posttrain.core.errors import PosttrainError
from posttrain.core.hashing import canonical_json
from posttrain.llm_judge.judgements import JudgeRefused, judgement_key
from posttrain.llm_judge.matches import Match, play
from posttrain.llm_judge.running.limits import BudgetSpent
from posttrain.llm_judge.serving.answers import ComparisonAnswer, JudgeAnswer, Usage
from posttrain.llm_judge.serving.contest import Contest, DeadlineExceeded, Overloaded, Stopping
from posttrain.llm_judge.serving.discreet import log_place
from posttrain.llm_judge.serving.filling import fill
from posttrain.llm_judge.serving.judges import Judges
from posttrain.llm_judge.serving.noting import NotingStore
from posttrain.llm_judge.serving.outcomes import comparison_answer, rates_of
from posttrain.llm_judge.serving.policies import Policies
from posttrain.llm_judge.serving.requests import JudgeRequest
from posttrain.llm_judge.serving.settings import JudgeServiceSettings
from posttrain.llm_judge.serving.telemetry import telemetry
from posttrain.llm_judge.serving.wanted import Catalog, Wanted
from posttrain.llm_judge.store import Store

log = logging.getLogger(__name__)


class Judging:
    """What the service judges with; to be used in one event loop. RequestError or WorkError, when it is made, for
    settings that cannot be served: a missing key, a template or a store that cannot be read."""

    def __init__(self, settings: JudgeServiceSettings) -> None:
        self.settings = settings
        self.catalog = Catalog(settings)
        self.judges, self.policies = Judges(settings.judges), Policies(settings.policies)
        self.store = Store(Path(settings.store))
        self.waiting = 0
        """Comparisons that are being judged for requests that wait."""
        self._contests: dict[asyncio.Task[None], Contest] = {}
        self._stopping = False

    async def aclose(self) -> None:
        """Ends every match in order, and what they use."""
        self._stopping = True
        for contest in self._contests.values():
            contest.interrupted.set()
        if self._contests:
            await asyncio.wait(self._contests)
        await self.judges.aclose()
        await self.policies.aclose()
        await asyncio.to_thread(self.store.close)

    def contest(self, wanted: Wanted[Any], **how: Any) -> Contest:
        """A contest that has not begun; `how`: its fields."""
        return Contest(wanted, NotingStore(self.store, wanted.judge), **how)

    def begin(self, contest: Contest) -> "asyncio.Task[None]":
        """Works on a contest in a task that ends in order once `interrupted` is set."""
        if self._stopping:
            raise Stopping("the service is being ended; come again in a while")
        work = asyncio.create_task(self._play(contest))
        self._contests[work] = contest
        work.add_done_callback(self._ended)
        return work

    async def answer(
        self, wanted: Wanted[JudgeRequest], gone: Callable[[], Coroutine[Any, Any, None]], until: float
    ) -> JudgeAnswer | None:
        """The answer on all comparisons; None when `gone` returns before. `until`: the monotonic time of the deadline.

        Overloaded, DeadlineExceeded, BudgetSpent; ServiceUnavailable when the judge answers none of what it is asked;
        WorkError when the judge or the store cannot be had at all. Single games that fail are told in the answer.
        """
        count = len(wanted.request.comparisons)
        # A lone large request is never refused for its own size: that is what `max_comparisons` is for.
        if self.waiting and self.waiting + count > self.settings.max_waiting_comparisons:
            raise Overloaded(f"{self.waiting} comparisons wait already; come again later")
        contest = self.contest(wanted)
        work = self.begin(contest)
        self.waiting += count
        work.add_done_callback(lambda _: self._count_down(count))
        leaving = asyncio.create_task(gone())
        try:
            left = max(until - time.monotonic(), 0)
            await asyncio.wait({work, leaving}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                if leaving.done():
                    return None
                raise DeadlineExceeded(
                    f"not all {count} comparisons were judged within {self.settings.deadline_seconds:g} seconds; "
                    "what was judged is kept: ask again, or use POST /runs"
                )
            work.result()
        finally:
            contest.interrupted.set()
            leaving.cancel()
        return await asyncio.to_thread(_answer, contest)

    async def _play(self, contest: Contest) -> None:
        wanted = contest.wanted
        try:
            async with self.judges.open(wanted.judge, wanted.protocol) as judge:
                if contest.expected is not None and canonical_json(contest.expected) != canonical_json(
                    dict(judge.identity)
                ):
                    raise JudgeRefused(f"judge '{wanted.judge}' has become another; ask for a new run")
                comparisons = await fill(contest, self.policies)
                contest.judge = judge
                contest.match = Match(comparisons, wanted.protocol, wanted.request.replicates)
                contest.played = await play(
                    contest.match,
                    judge,
                    contest.noting,
                    self.judges.limits[wanted.judge],
                    stop_when_clear=contest.drawn_by is not None,
                    watch=contest.watching,
                    interrupted=contest.interrupted,
                )
        finally:
            telemetry().match(wanted.judge, contest.watching.tally)

    def _count_down(self, count: int) -> None:
        self.waiting -= count

    def _ended(self, work: "asyncio.Task[None]") -> None:
        """Whoever waited may have gone: what went wrong is told here."""
        contest = self._contests.pop(work)
        error = None if work.cancelled() else work.exception()
        if isinstance(error, PosttrainError):
            log.warning("judge '%s': a match ended early: %s", contest.wanted.judge, error)
        elif error is not None:
            log_place(log, "a match", error)


def _answer(contest: Contest) -> JudgeAnswer:
    assert contest.played is not None
    assert contest.judge is not None
    wanted, report, noting = contest.wanted, contest.played.report, contest.noting
    if report.ended == "budget":
        raise BudgetSpent(
            f"the money for judge '{wanted.judge}' is spent: {report.tally.done} of {report.tally.total} games are "
            "judged and kept"
        )
    if report.ended == "interrupted":
        raise Stopping("the service is being ended; what was judged is kept, ask again in a while")
    if report.failures and report.tally.asked == 0 and all(failure.unavailable for failure in report.failures):
        raise ServiceUnavailable(f"{report.failures[0].why} to any of {report.tally.failed} games; come again later")
    identity = contest.judge.identity
    failed = {judgement_key(identity, failure.game): failure.why for failure in report.failures}
    games = contest.keyed.comparisons()
    answers = []
    for index in range(len(wanted.request.comparisons)):
        if index in contest.missing:
            why = contest.missing[index]
            answers.append(ComparisonAnswer(prompt_id=None, preference=None, games=[], error=why))
        else:
            generated = contest.generated_for(index)
            answers.append(comparison_answer(next(games), noting.found, noting.asked, failed, generated))
    return JudgeAnswer(
        judge=wanted.judge,
        protocol=wanted.protocol_name,
        identity=dict(identity),
        comparisons=answers,
        rates=rates_of(contest.played.judged) if len(answers) > 1 else None,
        usage=Usage.of(report.tally),
    )

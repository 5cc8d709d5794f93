"""Judges a list of games: what the store has is taken from there, the rest is asked, and what could not be answered is
named, to be asked by the same call another time.

Games are begun in the order of their prompts' first appearance, those of one comparison together, so that both orders
meet the same judge. A rule that may end the run early (`clear`) sees answers in that order only, never in the order of
their arrival, in which slow, long answers come last.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from posttrain.core.clients import ServiceUnavailable
from posttrain.core.errors import PosttrainError
from posttrain.llm_judge.comparisons import Game
from posttrain.llm_judge.judgements import Judge, Judgement, judgement_keys
from posttrain.llm_judge.running.asking import Asking, Ended, Entry, JudgementStore
from posttrain.llm_judge.running.limits import Limits
from posttrain.llm_judge.running.progress import Estimate, Silent, Tally, Watch

SHOWN_EVERY = 0.5
"""Seconds."""
LOOKS = 50
"""`clear` is asked again when there is a 50th more to see: a hundred thousand games are not looked at as often."""

Answered = Sequence[tuple[Game, Judgement | None]]
"""Games of whole prompts in the fixed order, with what was judged; None: it failed."""
Clear = Callable[[Answered], bool]


@dataclass(frozen=True)
class Failure:
    """A game that has no answer."""

    game: Game
    why: str
    unavailable: bool = False
    """The judge's server gave no answer, which says nothing about this game."""


@dataclass(frozen=True)
class Report:
    """What became of a run."""

    # asyncio.run writes down what its task returned when it takes its signal handler away: it should be short.
    judgements: list[Judgement | None] = field(repr=False)
    """Of each game in the order given, with its own A and B; None: not asked, or failed."""
    failures: list[Failure] = field(repr=False)
    ended: Ended
    estimate: Estimate
    tally: Tally
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether each game has an answer, even if it is one without a verdict."""
        return all(judgement is not None for judgement in self.judgements)

    def failure_line(self, names: int = 3) -> str | None:
        """The failed games in a line for people; None without any."""
        if not self.failures:
            return None
        first = "; ".join(
            f"{one.game.comparison.prompt_id} ({one.game.order}): {one.why}" for one in self.failures[:names]
        )
        more = f"; and {len(self.failures) - names} more" if len(self.failures) > names else ""
        return f"{len(self.failures)} games have no answer: {first}{more}. The same command asks only these again"


async def judge_games(
    games: Sequence[Game],
    judge: Judge,
    store: JudgementStore,
    limits: Limits,
    *,
    watch: Watch | None = None,
    clear: Clear | None = None,
    interrupted: asyncio.Event | None = None,
) -> Report:
    """Judges all games; equal ones are asked once. `limits` says how many at a time: the judge itself keeps the rest
    of them.

    A game that fails is named in the report, and the run goes on. WorkError where the judge or the store cannot be had
    at all; what was answered is stored then, too. `interrupted`: once set, requests in flight are given a few seconds,
    and the report holds what there is.
    """
    started = time.monotonic()
    # Of a hundred thousand games it takes seconds, in which a service has others to answer.
    run = await asyncio.to_thread(_Run, games, judge, store, clear)
    watch = watch or Silent()
    watch.planned(run.estimate)
    asking = Asking(judge, store, limits=limits.settings, answered=run.answered, failed=run.failed)
    run.stop = lambda: asking.stop("clear")
    if run.is_clear():
        asking.stop("clear")
    elif run.to_ask:
        showing = asyncio.create_task(_show(watch, run.tally))
        try:
            await asking.run(run.to_ask, interrupted or asyncio.Event())
        finally:
            showing.cancel()
            with suppress(asyncio.CancelledError):
                await showing
    watch.progressed(run.tally)
    return Report(run.judgements, run.failures, asking.ended, run.estimate, run.tally, time.monotonic() - started)


def estimate_games(games: Sequence[Game], judge: Judge, store: JudgementStore) -> Estimate:
    """What judging these games is expected to take, with what `store` has of them."""
    return _Run(games, judge, store, None).estimate


async def _show(watch: Watch, tally: Tally) -> None:
    while True:
        watch.progressed(tally)
        await asyncio.sleep(SHOWN_EVERY)


def begin_order(games: Sequence[Game]) -> list[int]:
    """Places of the games in the order in which they are begun: prompts, and within each its comparisons, by first
    appearance."""
    prompts: dict[str, int] = {}
    comparisons: dict[int, int] = {}
    ranks = [
        len(games) * prompts.setdefault(game.comparison.prompt_id, place)
        + comparisons.setdefault(id(game.comparison), place)
        for place, game in enumerate(games)
    ]
    return sorted(range(len(games)), key=ranks.__getitem__)


class _Run:
    """The games of one run and what became of each."""

    def __init__(self, games: Sequence[Game], judge: Judge, store: JudgementStore, clear: Clear | None) -> None:
        self.games, self._clear = games, clear
        self.stop: Callable[[], None] = lambda: None
        keys = judgement_keys(judge.identity, games)
        self._order = begin_order(games)
        found = store.get(keys)
        self.judgements = [
            said and _as_asked(said, game) for said, game in zip(map(found.get, keys), games, strict=True)
        ]
        self._settled = [said is not None for said in self.judgements]
        self._places: dict[str, list[int]] = {}
        for place in self._order:
            if not self._settled[place]:
                self._places.setdefault(keys[place], []).append(place)
        self.failures: list[Failure] = []
        self._seen, self._next_look = 0, 1
        self.to_ask: list[Entry] = [(key, games[places[0]]) for key, places in self._places.items()]
        self.tally = Tally(total=len(found) + len(self.to_ask), stored=len(found))
        self.estimate = _estimate(len(games), sum(self._settled), [game for _, game in self.to_ask], judge)

    def answered(self, entry: Entry, judgement: Judgement, paid: bool) -> None:
        """A game has its judgement. `paid`: by this run."""
        tally, decision = self.tally, judgement.decision
        if paid:
            tally.asked += 1
            tally.unparsed += decision.label is None
            tally.prompt_tokens += decision.prompt_tokens
            tally.completion_tokens += decision.completion_tokens
            tally.cost = None if tally.cost is None or decision.cost is None else tally.cost + decision.cost
        else:
            tally.stored += 1
        self._settle(entry[0], judgement)
        self._look()

    def failed(self, entry: Entry, error: PosttrainError) -> None:
        """A game has no answer."""
        self.tally.failed += 1
        self.failures.append(Failure(entry[1], str(error), isinstance(error, ServiceUnavailable)))
        self._settle(entry[0], None)
        self._look()

    def is_clear(self) -> bool:
        """Whether the prompts that are settled from the first one on without a gap satisfy `clear`."""
        if self._clear is None:
            return False
        while self._seen < len(self._order) and self._settled[self._order[self._seen]]:
            self._seen += 1
        whole = self._whole_prompts()
        # The last look is always taken: else a run by and by could miss what the store shows at once.
        if whole < self._next_look and self._seen < len(self._order):
            return False
        self._next_look = whole + max(1, whole // LOOKS)
        return self._clear([(self.games[place], self.judgements[place]) for place in self._order[:whole]])

    def _look(self) -> None:
        if self.is_clear():
            self.stop()

    def _settle(self, key: str, judgement: Judgement | None) -> None:
        for place in self._places[key]:
            self._settled[place] = True
            self.judgements[place] = judgement and _as_asked(judgement, self.games[place])

    def _whole_prompts(self) -> int:
        """How many of the games seen belong to prompts of which all games are seen."""
        if self._seen == len(self._order):
            return self._seen
        open_prompt = self.games[self._order[self._seen]].comparison.prompt_id
        whole = self._seen
        while whole and self.games[self._order[whole - 1]].comparison.prompt_id == open_prompt:
            whole -= 1
        return whole


def _as_asked(judgement: Judgement, game: Game) -> Judgement:
    return judgement if judgement.order == game.order else judgement.as_asked(game)


def _estimate(games: int, stored: int, to_ask: Sequence[Game], judge: Judge) -> Estimate:
    expected = [judge.expected(game) for game in to_ask]
    costs = [cost for _, _, cost in expected]
    return Estimate(
        games,
        stored,
        len(to_ask),
        sum(prompt for prompt, _, _ in expected),
        sum(completion for _, completion, _ in expected),
        None if None in costs else sum(cost for cost in costs if cost is not None),
    )

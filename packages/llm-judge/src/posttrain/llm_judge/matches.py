"""A match: one judge on the answers of one A and one B, from the comparisons to what is said of them.

`judge run`, the service and the lab all judge by it. It knows nothing of files of answers, of records or of HTTP.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.llm_judge.annotations import tabulate
from posttrain.llm_judge.comparisons import Comparison, Game
from posttrain.llm_judge.exchange import Judged
from posttrain.llm_judge.judgements import Judge
from posttrain.llm_judge.protocols import Protocol
from posttrain.llm_judge.running.asking import JudgementStore
from posttrain.llm_judge.running.limits import Limits
from posttrain.llm_judge.running.progress import Watch
from posttrain.llm_judge.running.runner import Answered, Report, judge_games
from posttrain.llm_judge.statistics.pairs import Pairs
from posttrain.llm_judge.statistics.sequential import Clear, clear_after, prompt_means


@dataclass(frozen=True)
class Match:
    """What is to be judged. All comparisons have the same A and B."""

    comparisons: Sequence[Comparison]
    """In the order in which they are asked. For stopping early it has to be drawn before the judging."""
    protocol: Protocol | None = None
    """None: the judge needs no prompt, and is asked in both orders about all turns."""
    replicates: int = 1
    """How many opinions the judge gives on each comparison."""

    def games(self) -> list[Game]:
        """Every game of the match, those of a comparison together."""
        return [
            game
            for comparison in self.comparisons
            for replicate in range(self.replicates)
            for game in self._games(comparison, replicate)
        ]

    def _games(self, comparison: Comparison, replicate: int) -> Sequence[Game]:
        if self.protocol:
            return self.protocol.games(comparison, replicate)
        return [Game(comparison, "ab", replicate=replicate), Game(comparison, "ba", replicate=replicate)]


@dataclass(frozen=True)
class Played:
    """A match and what became of it."""

    match: Match
    judged: Sequence[Judged]
    """The games that count, with their answers: all that have one or, where the match was stopped as clear, those of
    the prompts that it took. What was asked beyond them is kept in the store, and enters no rate."""
    report: Report
    clear: Clear | None = None
    """When it was clear; None: it was not, or nobody asked."""


async def play(
    match: Match,
    judge: Judge,
    store: JudgementStore,
    limits: Limits,
    *,
    stop_when_clear: bool = False,
    watch: Watch | None = None,
    interrupted: asyncio.Event | None = None,
) -> Played:
    """Judges a match, as `judge_games` does. `stop_when_clear`: no further than it takes to tell A from B, which is the
    same prompts whatever the order of the answers, and whatever the store had.

    WorkError where the judge or the store cannot be had.
    """
    settled: tuple[Clear, Sequence[Judged]] | None = None

    def is_clear(answered: Answered) -> bool:
        nonlocal settled
        judged = [(said, game) for game, said in answered if said is not None]
        if (found := clear_after(prompt_means(pairs_of(judged)))) is not None:
            settled = found, _of_prompts(judged, found.prompts)
        return settled is not None

    games = match.games()
    report = await judge_games(
        games,
        judge,
        store,
        limits,
        watch=watch,
        clear=is_clear if stop_when_clear else None,
        interrupted=interrupted,
    )
    if settled:
        return Played(match, settled[1], report, settled[0])
    answers = zip(report.judgements, games, strict=True)
    return Played(match, [(said, game) for said, game in answers if said is not None], report)


def pairs_of(judged: Sequence[Judged]) -> Pairs:
    """The table of the comparisons among `judged`, all of one judge, A and B; an empty one where there are none.
    ValueError where there is more than one."""
    tables = tabulate(judged)
    if len(tables) > 1:
        raise ValueError(f"{len(tables)} judges or pairs of A and B in what is to be one table")
    if not tables:
        nothing = np.array([])
        return Pairs(nothing, None, [], nothing, nothing, nothing)
    return tables[0].pairs


def _of_prompts(judged: Sequence[Judged], count: int) -> Sequence[Judged]:
    """The first of them, up to the end of the `count`th prompt that has a preference."""
    pairs = pairs_of(judged)
    known = ~np.isnan(pairs.preference)
    kept = list(dict.fromkeys(prompt for prompt, has in zip(pairs.prompts, known, strict=True) if has))[:count]
    last = max(place for place, (_, game) in enumerate(judged) if game.comparison.prompt_id == kept[-1])
    return judged[: last + 1]

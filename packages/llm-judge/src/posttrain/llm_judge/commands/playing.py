"""Opens the judge and the store of a command line, and plays its match or says what that is expected to take."""

import asyncio
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from posttrain.core.errors import PosttrainError, WorkError
from posttrain.llm_judge.commands.judge_choice import Judges, Opener
from posttrain.llm_judge.matches import Match, Played, play
from posttrain.llm_judge.running.interruption import run_until_interrupted
from posttrain.llm_judge.running.limits import Limits, LimitSettings
from posttrain.llm_judge.running.progress import Bar, Estimate
from posttrain.llm_judge.running.runner import Report, estimate_games
from posttrain.llm_judge.store import Store


def play_match(
    match: Match, opener: Opener, limits: LimitSettings, store: Path, *, stop_when_clear: bool
) -> tuple[Played, Judges]:
    """Plays a match with a progress bar, and ends it in order on a signal. The second is the judge, done with."""
    with ExitStack() as stack:
        shared = Limits(limits)
        judge = opener(stack, shared)
        opened = stack.enter_context(Store(store))
        bar = stack.enter_context(Bar(Console(stderr=True)))

        async def work(interrupted: asyncio.Event) -> Played:
            async with judge:
                return await play(
                    match, judge, opened, shared, stop_when_clear=stop_when_clear, watch=bar, interrupted=interrupted
                )

        return run_until_interrupted(work), judge


def expect(match: Match, opener: Opener, store: Path) -> Estimate:
    """What a match is expected to take. Asks nothing of the judge, and makes no store where there is none."""
    with ExitStack() as stack:
        judge = opener(stack, Limits())
        path = store if store.exists() else Path(stack.enter_context(TemporaryDirectory())) / "store.db"
        return estimate_games(match.games(), judge, stack.enter_context(Store(path)))


def unfinished(report: Report, max_cost: float | None) -> PosttrainError | None:
    """Why a match has no record, and what to do; None for one that is finished or was interrupted."""
    if line := report.failure_line():
        return WorkError(line)
    if report.ended == "budget":
        left = report.tally.total - report.tally.done
        return WorkError(
            f"the next game may cost more than is left of {max_cost}: {left} of {report.tally.total} games are not "
            "judged; the same command with a larger --max-cost goes on"
        )
    return None

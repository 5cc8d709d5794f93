"""What a run of a judge is expected to take, how far it is, and how a terminal shows it."""

from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@dataclass(frozen=True)
class Estimate:
    """Before the first request. Of tokens and cost it says what is asked for at most, without repeated requests."""

    games: int
    stored: int
    """Of the games, those that are in the store already."""
    to_ask: int
    """The different ones among the others."""
    prompt_tokens: int
    completion_tokens: int
    cost: float | None

    def line(self) -> str:
        """For people."""
        start = f"{self.games} games: {self.stored} stored, {self.to_ask} to ask"
        if not self.to_ask:
            return start
        tokens = f"about {self.prompt_tokens} tokens of prompts, at most {self.completion_tokens} of answers"
        return f"{start}, {tokens}, {spent(self.cost, 'at most')}"


@dataclass
class Tally:
    """How far a run is; it changes while the run goes on."""

    total: int = 0
    """Different games."""
    stored: int = 0
    """Taken from the store: there before, or asked meanwhile by another run."""
    asked: int = 0
    """Answered now, those without a verdict included."""
    failed: int = 0
    unparsed: int = 0
    """Of those asked now, the ones without a verdict."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0
    """Of what was answered now; None: prices are not known."""

    @property
    def done(self) -> int:
        """Games that need no asking any more in this run."""
        return self.stored + self.asked + self.failed

    def line(self) -> str:
        """For people, at the end."""
        parts = [f"{self.stored} stored", f"{self.asked} asked"]
        parts += [f"{count} {name}" for name, count in (("unparsed", self.unparsed), ("failed", self.failed)) if count]
        tokens = f"{self.prompt_tokens} tokens of prompts, {self.completion_tokens} of answers"
        return f"{self.done} of {self.total} games: {', '.join(parts)}; {tokens}, {spent(self.cost)}"


class Watch(Protocol):
    """Is told of a run while it goes on."""

    def planned(self, estimate: Estimate) -> None:
        """Once, before the first request."""

    def progressed(self, tally: Tally) -> None:
        """Twice a second, and at the end."""


class Silent:
    """Shows nothing."""

    def planned(self, estimate: Estimate) -> None:
        pass

    def progressed(self, tally: Tally) -> None:
        pass


class Bar:
    """A progress bar with the time that is left and the money that is spent, in a `with`; the estimate above it."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        columns = (
            TextColumn("judging"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        # The run itself says when there is something new: no thread has to look.
        self._progress = Progress(*columns, console=self.console, auto_refresh=False, transient=True)
        self._task: TaskID | None = None

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def planned(self, estimate: Estimate) -> None:
        self.console.print(estimate.line(), highlight=False, soft_wrap=True)
        self._task = self._progress.add_task("", total=None, note="")

    def progressed(self, tally: Tally) -> None:
        if self._task is None:
            return
        notes = [spent(tally.cost)] + ([f"{tally.failed} failed"] if tally.failed else [])
        self._progress.update(self._task, total=tally.total, completed=tally.done, note=", ".join(notes), refresh=True)


def spent(cost: float | None, how: str = "") -> str:
    """A cost in words."""
    return "cost unknown" if cost is None else f"cost {how} {cost:.4f}".replace("  ", " ")

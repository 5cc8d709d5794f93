"""What a person sees of a chat: answers as they come, plainly on a pipe, two of them side by side on a terminal.

Texts of models go to a terminal with their control characters shown, for it would obey them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from posttrain.llm_judge.printable import printable

if TYPE_CHECKING:
    from rich.table import Table

Show = Callable[[list[str]], None]
"""Called with the whole text of each answer whenever one has grown."""


class Screen:
    """Writes answers to `out`, everything else to `aside`."""

    def __init__(self, out: TextIO, aside: TextIO) -> None:
        from rich.console import Console

        self._out, self._aside = out, aside
        self._console = Console(file=out, highlight=False)
        self._aside_console = Console(file=aside, highlight=False)

    def note(self, text: str) -> None:
        """A line or more about the chat."""
        self._aside_console.print(printable(text), style="dim", markup=False, soft_wrap=True)

    def error(self, text: str) -> None:
        """What went wrong, in the form of all commands."""
        self._aside_console.print("[bold red]error[/]: ", end="")
        self._aside_console.print(printable(text), markup=False, soft_wrap=True)

    @contextmanager
    def answering(self, labels: list[str]) -> Iterator[Show]:
        """Shows the answers of the models called `labels` while the block runs; they stand complete when it ends."""
        if len(labels) == 1:
            with self._one(labels[0]) as show:
                yield show
        elif self._out.isatty():
            with self._side_by_side(labels) as show:
                yield show
        else:
            last: list[str] = [""] * len(labels)
            try:
                yield lambda texts: last.__setitem__(slice(None), texts)
            finally:
                for label, text in zip(labels, last, strict=True):
                    self._out.write(f"{label} › {text}\n")
                self._out.flush()

    @contextmanager
    def _one(self, label: str) -> Iterator[Show]:
        """Piece by piece, as it comes."""
        terminal = self._out.isatty()
        shown = 0
        self._console.print(f"{label} › ", style="bold cyan", markup=False, end="")

        def show(texts: list[str]) -> None:
            nonlocal shown
            # A carriage return may be the first half of a line end.
            whole = texts[0].removesuffix("\r")
            piece, shown = whole[shown:], len(whole)
            self._out.write(printable(piece) if terminal else piece)
            self._out.flush()

        try:
            yield show
        finally:
            self._out.write("\n")
            self._out.flush()

    @contextmanager
    def _side_by_side(self, labels: list[str]) -> Iterator[Show]:
        from rich.live import Live

        last: list[str] = [""] * len(labels)
        # What does not fit is cut while it comes, and printed whole in the end.
        with Live(console=self._console, transient=True, refresh_per_second=12, vertical_overflow="ellipsis") as live:

            def show(texts: list[str]) -> None:
                last[:] = texts
                live.update(_columns(labels, last))

            try:
                yield show
            finally:
                live.update("")
        self._console.print(_columns(labels, last))


def _columns(labels: list[str], texts: list[str]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, expand=True, padding=(0, 2, 0, 0), show_edge=False)
    for label in labels:
        table.add_column(Text(printable(label)), header_style="bold cyan", ratio=1, overflow="fold")
    table.add_row(*(Text(printable(text), overflow="fold") for text in texts))
    return table

"""metrics.jsonl and the live progress line: what a stage tells while it runs.

The file is always written; W&B, TensorBoard and Trackio get the same numbers only when asked for.
"""

import importlib
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from posttrain.core.errors import RequestError, suggest
from posttrain.core.files import append_jsonl, read_jsonl, write_jsonl

TRACKERS = ("wandb", "tensorboard", "trackio")


class Tracker(Protocol):
    """Somewhere else that the numbers go."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes one step's numbers."""


def check_trackers(names: Iterable[str]) -> None:
    """RequestError for a tracker that there is not, before any work is done."""
    for name in names:
        if name not in TRACKERS:
            raise RequestError(f"unknown tracker '{name}' {suggest(name, TRACKERS)}")


class MetricsLog:
    """A stage's `metrics.jsonl`: one object a step, `{"step": …, name: number, …}`."""

    def __init__(self, path: Path, trackers: Iterable[str] = (), name: str = "posttrain") -> None:
        self.path = Path(path)
        self._trackers = [_tracker(tracker, self.path.parent, name) for tracker in trackers]

    def log(self, step: int, **values: Any) -> None:
        """Appends one step. Numbers that are not finite become null, so that the file stays JSON."""
        append_jsonl(self.path, {"step": step, **{key: _finite(value) for key, value in values.items()}})
        numbers = {key: float(value) for key, value in values.items() if isinstance(value, (int, float))}
        for tracker in self._trackers:
            tracker.log(step, numbers)

    def rows(self) -> list[dict[str, Any]]:
        """All that was logged; none if the file is not there."""
        return read_jsonl(self.path, allow_empty=True) if self.path.exists() else []

    def truncate(self, after_step: int) -> None:
        """Drops what was logged after a step, and a half-written last line: a resumed run says each step once."""
        if not self.path.exists():
            return
        rows = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:  # kill -9 in the middle of a write leaves such a last line
                break
        write_jsonl(self.path, [row for row in rows if row["step"] <= after_step])


class Progress:
    """A live line with an ETA on standard error; plain lines, seldom, where that is no terminal."""

    PLAIN_EVERY_SECONDS = 15.0

    def __init__(self, total: int, label: str) -> None:
        self.total, self.label = total, label
        self._console = Console(stderr=True)
        self._bar: RichProgress | None = None
        self._started = self._said = time.monotonic()
        self._first_step: int | None = None

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[shown]}"),
            )
            self._bar = RichProgress(*columns, console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, shown="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if kind is None:
            elapsed = time.monotonic() - self._started
            print(f"{self.label}: {self.total}/{self.total} in {_duration(elapsed)}", file=sys.stderr, flush=True)

    def advance(self, step: int, **shown: float) -> None:
        """Sets how many of `total` are done and which numbers stand beside the bar."""
        text = "  ".join(f"{key} {value:.3g}" for key, value in shown.items())
        if self._bar:
            self._bar.update(self._task, completed=step, shown=text)
            return
        now = time.monotonic()
        if self._first_step is None:
            self._first_step = step - 1
        if now - self._said >= self.PLAIN_EVERY_SECONDS:
            self._said = now
            done = max(step - self._first_step, 1)
            eta = _duration((now - self._started) / done * (self.total - step))
            print(f"{self.label}: {step}/{self.total}, {eta} left  {text}", file=sys.stderr, flush=True)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    return f"{minutes}:{rest:02d}"


def _tracker(name: str, folder: Path, run_name: str) -> Tracker:
    check_trackers([name])
    try:
        return _WandbLike(name, folder, run_name) if name in ("wandb", "trackio") else _TensorBoard(folder)
    except ImportError as error:
        raise RequestError(f"tracker '{name}' needs the package '{error.name}'; pip install it") from None


class _WandbLike:
    """W&B, and Trackio, which has the same interface."""

    def __init__(self, module: str, folder: Path, name: str) -> None:
        self._module = importlib.import_module(module)
        where = {"dir": str(folder)} if module == "wandb" else {}
        self._module.init(project="posttrain", name=name, **where)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._module.log(dict(values), step=step)


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        # Torch comes with whoever trains, and its writer with it; core itself declares neither.
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

"""A progress line for work that is usually done before anybody waits."""

import time
from typing import Any

from posttrain.core.metrics import Progress

SILENT_SECONDS = 2.0
"""Work that is done within this time shows no progress."""


class LateProgress:
    """A progress line that comes only when the work takes longer than SILENT_SECONDS."""

    def over(self, total: int, label: str) -> "LateProgress":
        """Begins to count to `total`; used as a context manager."""
        self._total, self._label, self._done = total, label, 0
        self._line: Progress | None = None
        return self

    def __enter__(self) -> "LateProgress":
        self._started = time.monotonic()
        return self

    def advance(self, count: int) -> None:
        """Counts so many as done."""
        self._done = min(self._done + count, self._total)
        if self._line is None and time.monotonic() - self._started > SILENT_SECONDS:
            self._line = Progress(self._total, self._label)
            self._line.__enter__()
        if self._line:
            self._line.advance(self._done)

    def __exit__(self, *error: Any) -> None:
        if self._line:
            self._line.__exit__(*error)

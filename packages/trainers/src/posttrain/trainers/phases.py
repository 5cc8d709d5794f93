"""A stopwatch for the phases of one step of training."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """Wall seconds by phase: `with phases("generation"): …`; a phase entered twice adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started)

    def add(self, name: str, seconds: float) -> None:
        """Counts seconds that somebody else has measured."""
        self.seconds[name] += seconds

    @property
    def logged(self) -> dict[str, float]:
        """As a row of metrics names them: `seconds/<phase>`, and all of them as `seconds`."""
        return {**{f"seconds/{name}": value for name, value in self.seconds.items()}, "seconds": self.total}

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())

"""A fixed piece of work, a matrix product and a copy in memory, that says how fast this machine is at this moment.

A benchmark's time in units of it (`relative`) is what is stored and compared: another load on the machine slows both.
It runs right before and right after each round of a benchmark, on as many threads, for about a tenth of its time.
It does not make two kinds of machine equal: those have baselines of their own.
"""

import time
from collections.abc import Callable
from statistics import mean, median

import torch

SIDE = 512
"""Of the matrices: 0.27 GFLOP, some milliseconds on a core."""
COPIED = 1 << 22
"""Floats copied: 16 MiB, read and written, beyond the caches of one core."""
SHARE = 0.05
"""Calibration before, and after, each round, as a share of the round before it."""


class Calibration:
    """The kernel on `threads` threads. Call it for its mean time in seconds over at least `seconds`."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        generator = torch.Generator().manual_seed(0)
        self._left, self._right = torch.randn(2, SIDE, SIDE, generator=generator)
        self._product = torch.empty(SIDE, SIDE)
        self._source, self._target = torch.randn(2, COPIED, generator=generator)

    def __call__(self, seconds: float = 0.0) -> float:
        torch.set_num_threads(self.threads)
        calls, start = 0, time.perf_counter()
        while True:
            torch.mm(self._left, self._right, out=self._product)
            self._target.copy_(self._source)
            calls += 1
            spent = time.perf_counter() - start
            if spent >= seconds:
                return spent / calls


class Paired:
    """Times rounds of work between two calibrations each; `relative` is their ratio, round by round.

    `before` and `after` are what pytest-benchmark calls around each round, warm-up included; `seconds` are its times
    of the rounds that count.
    """

    def __init__(self, threads: int, kernel: Callable[[float], float] | None = None) -> None:
        self._kernel = kernel or Calibration(threads)
        self._kernel(0.0)  # the first product of a process also makes its threads
        self._pairs: list[list[float]] = []
        self._started = self._last = 0.0

    def before(self) -> None:
        """Calibrates, then starts a round."""
        self._pairs.append([self._kernel(SHARE * self._last)])
        self._started = time.perf_counter()

    def after(self) -> None:
        """Ends a round, then calibrates."""
        self._last = time.perf_counter() - self._started
        self._pairs[-1].append(self._kernel(SHARE * self._last))

    def relative(self, seconds: list[float]) -> list[float]:
        """Each round's time over the mean of the kernel's around it."""
        kernel = [mean(pair) for pair in self._pairs[-len(seconds) :]]
        return [spent / unit for spent, unit in zip(seconds, kernel, strict=True)]

    @property
    def kernel_seconds(self) -> float:
        """The kernel's median time."""
        return median(time for pair in self._pairs for time in pair)

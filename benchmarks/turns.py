"""Makes one step of a loop that somebody else wrote a function to call.

A trainer runs its whole loop when it is told to train. Here it does so in a thread of its own, and waits wherever its
hook calls `wait()`: each call of the object lets it run to the next such place. So two trainers can take turns in one
process, and what is timed is what lies between two waits. Knows no trainer.
"""

import threading
from collections.abc import Callable
from types import TracebackType

import torch


class _Over(BaseException):
    """Ends the loop from inside a `wait()`; no trainer catches it."""


class Turns:
    """`with Turns(threads) as turns: turns.start(train); turns(); turns()`; `train` must call `turns.wait()`."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._go, self._there = threading.Semaphore(0), threading.Semaphore(0)
        self._over = False
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Turns":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._go.release()
        if self._thread:
            self._thread.join()

    def start(self, train: Callable[[], object]) -> None:
        """Runs `train` to its first wait, with so many torch threads."""
        self._thread = threading.Thread(target=self._run, args=(train,), daemon=True)
        self._thread.start()
        self._arrived()

    def __call__(self) -> None:
        """Lets it run to its next wait; raises what it raised."""
        self._go.release()
        self._arrived()

    def wait(self) -> None:
        """For the loop's hook: this is where a step begins."""
        self._there.release()
        self._go.acquire()
        if self._over:
            raise _Over

    def _arrived(self) -> None:
        self._there.acquire()
        if self._failure is not None:
            raise self._failure

    def _run(self, train: Callable[[], object]) -> None:
        torch.set_num_threads(self._threads)  # OpenMP counts them by the thread that asks
        try:
            train()
            self._failure = RuntimeError("the loop ended before it was told to")
        except _Over:
            return
        except BaseException as error:  # noqa: BLE001  whatever ended it is raised where it is called
            self._failure = error
        self._there.release()

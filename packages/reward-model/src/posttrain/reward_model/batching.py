"""Batches a model's work across requests: sequences of like length from all callers share a forward pass.

Takes lists of encoded items from any thread and gives a future of their scores, which may be cancelled at any time:
what has not run then never will. One or more threads take batch after batch, so a large job holds up a small one for
a batch, not for its whole length: the jobs take turns in leading a batch, and what room is left goes to the others.
Nothing waits for more to come. The batches of a job that is alone depend on the job only, in number and in content.

It knows nothing of models, texts or HTTP, and does not bound what waits: whoever submits does.
"""

import logging
import math
import threading
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

log = logging.getLogger(__name__)

Sequences = Sequence[Sequence[int]]

LIKE = 0.75
"""The shortest sequence of a batch, as a share of the longest: what is padded costs less than one more pass."""
FEWEST_TOKENS = 512
"""A small job is split over idle threads, but not into passes of fewer tokens than this."""


@dataclass(frozen=True)
class BatchRecord:
    """What one forward pass was: for metrics."""

    rows: int
    tokens: int
    """Without padding."""
    padded_tokens: int
    waits: tuple[float, ...]
    """Seconds in the queue of each job that this batch was the first of."""


class _Job:
    """One caller's sequences. `lengths` (ascending) and `waiting` (their places) are what has not been taken yet."""

    def __init__(self, sequences: Sequences) -> None:
        self.sequences = sequences
        self.waiting = sorted(range(len(sequences)), key=lambda place: len(sequences[place]))
        self.lengths = [len(sequences[place]) for place in self.waiting]
        self.scores = [math.nan] * len(sequences)
        self.left = len(sequences)
        self.future: Future[list[float]] = Future()
        self.submitted = time.monotonic()
        self.begun = False

    def take(self, longest: int, most: int) -> list[int]:
        """Places of up to `most` sequences of at most `longest` tokens and like length, the longest first."""
        high = bisect_right(self.lengths, longest)
        low = max(bisect_left(self.lengths, LIKE * longest), high - most)
        taken = self.waiting[low:high]
        del self.waiting[low:high], self.lengths[low:high]
        return taken[::-1]


class BatchingQueue:
    """Runs `forward` (sequences of ids to scores, in order) in `threads` threads over the jobs of all callers.

    A batch has at most `batch_tokens` tokens with its padding, or one sequence. `on_start` runs first in each thread,
    `on_batch` after each batch, once its scores are delivered; what these two raise is logged and costs no caller.
    """

    def __init__(
        self,
        forward: Callable[[Sequences], list[float]],
        *,
        name: str = "rewards",
        batch_tokens: int = 2048,
        threads: int = 1,
        on_start: Callable[[], None] = lambda: None,
        on_batch: Callable[[BatchRecord], None] = lambda record: None,
    ) -> None:
        self.batch_tokens = batch_tokens
        self.on_batch = on_batch
        self._forward, self._on_start = forward, on_start
        self._jobs: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"score {name} {number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, sequences: Sequences) -> "Future[list[float]]":
        """The scores to come, in the order of `sequences`; what `forward` raises goes to every caller of that batch."""
        job = _Job(sequences)
        with self._wake:
            if not job.left:
                job.future.set_result([])
            else:
                self._jobs.append(job)
                self._wake.notify_all()
        return job.future

    def close(self) -> None:
        """Scores what waits, then ends the threads."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        _harmless(self._on_start)
        while True:
            with self._wake:
                while not (batch := self._next_batch()):
                    if self._closing:
                        return
                    self._wake.wait()
                waits = tuple(time.monotonic() - job.submitted for job, _ in batch if not job.begun)
                for job, _ in batch:
                    job.begun = True
            self._run(batch, waits)

    def _next_batch(self) -> list[tuple[_Job, list[int]]]:
        """The jobs and the places in them that run next; empty when nothing waits."""
        # A caller that has gone away has cancelled its future, and costs nothing more.
        self._jobs = deque(job for job in self._jobs if job.lengths and not job.future.done())
        if not self._jobs:
            return []
        longest = self._jobs[0].lengths[-1]
        waiting = sum(sum(job.lengths) for job in self._jobs) if len(self._threads) > 1 else math.inf
        share = max(FEWEST_TOKENS, waiting / len(self._threads))
        room = max(1, int(min(self.batch_tokens, share)) // max(1, longest))
        batch = []
        for job in self._jobs:
            if not room:
                break
            if taken := job.take(longest, room):
                batch.append((job, taken))
                room -= len(taken)
        self._jobs.rotate(-1)
        return batch

    def _run(self, batch: list[tuple[_Job, list[int]]], waits: tuple[float, ...]) -> None:
        sequences = [job.sequences[place] for job, places in batch for place in places]
        try:
            scores = iter(self._forward(sequences))
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the callers, and the thread must go on
            for job, _ in batch:
                self._end(job, error)
            return
        for job, places in batch:
            for place in places:
                job.scores[place] = next(scores)
            with self._wake:
                job.left -= len(places)
                done = not job.left
            if done:
                self._end(job)
        lengths = [len(sequence) for sequence in sequences]
        record = BatchRecord(len(lengths), sum(lengths), len(lengths) * max(lengths), waits)
        _harmless(lambda: self.on_batch(record))

    def _end(self, job: _Job, error: Exception | None = None) -> None:
        with self._wake:
            # A future that is running cannot be cancelled any more, and whoever made it so answers it: another thread
            # may have failed on a batch of the same job and not have told the caller yet.
            if job.future.running() or job.future.done() or not job.future.set_running_or_notify_cancel():
                return
        if error is None:
            job.future.set_result(job.scores)
        else:
            job.future.set_exception(error)


def _harmless(call: Callable[[], None]) -> None:
    """Calls it; an error is a line in the log, since a thread that ends leaves its callers without an answer."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - such as a metric's file on a full disk
        log.warning("scoring goes on after %s: %s", type(error).__name__, error)

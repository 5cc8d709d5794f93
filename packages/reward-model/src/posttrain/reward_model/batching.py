"""Batches a model's work across requests: one thread scores whatever all callers have waiting, sorted by length.

Takes lists of encoded items from any thread and gives a future of their scores. Items that arrive while a batch runs
wait for the next one, so that many small requests cost about as much as one large one. It collects without waiting
for more: a request that is alone is scored at once and as one, which keeps the batches of a run that has the service
to itself the same every time.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

Sequences = Sequence[Sequence[int]]


@dataclass
class _Job:
    sequences: Sequences
    scores: Future[list[float]] = field(default_factory=Future)


class BatchingQueue:
    """Runs `score` (sequences of ids to scores, in order) in a thread of its own over the jobs of all callers."""

    def __init__(self, score: Callable[[Sequences], list[float]], name: str) -> None:
        self._score = score
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"score {name}", daemon=True)
        self._thread.start()

    def submit(self, sequences: Sequences) -> Future[list[float]]:
        """The scores to come, in the order of `sequences`; what `score` raises goes to every caller of that batch."""
        job = _Job(sequences)
        self._jobs.put(job)
        return job.scores

    def close(self) -> None:
        """Scores what waits, then ends the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        open_ = True
        while open_:
            waiting = [self._jobs.get()]
            while not self._jobs.empty():
                waiting.append(self._jobs.get())
            open_ = None not in waiting
            # A caller that has gone away has cancelled its future, and costs nothing.
            jobs = [job for job in waiting if job is not None and job.scores.set_running_or_notify_cancel()]
            if jobs:
                self._run(jobs)

    def _run(self, jobs: list[_Job]) -> None:
        try:
            scores = self._score([sequence for job in jobs for sequence in job.sequences])
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the callers, and the thread must go on
            for job in jobs:
                job.scores.set_exception(error)
            return
        start = 0
        for job in jobs:
            job.scores.set_result(scores[start : start + len(job.sequences)])
            start += len(job.sequences)

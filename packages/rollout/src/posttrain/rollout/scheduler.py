"""One worker thread that owns the model: jobs in the order of arrival, and new weights between batches.

Samples of waiting jobs share a batch, each with its own settings and random numbers. New weights take their place in
the same queue, so a job runs wholly on the version that was current when it was accepted. It knows nothing of HTTP.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from posttrain.rollout.decode import Batch, Sample
from posttrain.rollout.engine import Engine
from posttrain.rollout.weights import load_weights

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """The samples of one request. `finished` resolves to the version that produced them all."""

    samples: Sequence[Sample]
    finished: "Future[int]" = field(default_factory=Future)
    on_sample: Callable[[Sample], None] | None = None
    """Called in the worker thread as each sample ends."""
    pending: int = 0

    def __post_init__(self) -> None:
        self.pending = len(self.samples)

    def cancel(self) -> None:
        """Ends the job at the next step; may be called from any thread, at any time."""
        for sample in self.samples:
            sample.cancelled = True


@dataclass(eq=False)
class _Swap:
    version: int
    digest: str
    tensors: Mapping[str, torch.Tensor]
    finished: "Future[None]" = field(default_factory=Future)


@dataclass
class Counts:
    """What the worker has done since it started; read by `/metrics`."""

    generated_tokens: int = 0
    prompt_tokens: int = 0
    generation_seconds: float = 0.0
    running: int = 0
    waiting: int = 0
    jobs: int = 0
    cancelled: int = 0


class Scheduler:
    """Runs jobs on `engine` in a thread of its own. `version` and `digest` name the weights that serve now."""

    def __init__(self, engine: Engine, digest: str = "") -> None:
        self.engine = engine
        self.version, self.digest = 0, digest
        self.counts = Counts()
        self._newest = (0, digest)
        self._queue: deque[tuple[Job, Sample] | _Swap] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> "Future[int]":
        """Queues a job behind everything that waits."""
        with self._wake:
            if self._closing:
                raise RuntimeError("the service is shutting down")
            self._queue.extend((job, sample) for sample in job.samples)
            self.counts.waiting += len(job.samples)
            self._wake.notify()
        return job.finished

    @property
    def newest(self) -> tuple[int, str]:
        """Version and digest of the weights accepted last; a job submitted now will run on them."""
        return self._newest

    def swap(self, version: int, digest: str, tensors: Mapping[str, torch.Tensor]) -> "Future[None]":
        """Queues checked weights: jobs that wait already run before them, jobs submitted later on them."""
        swap = _Swap(version, digest, tensors)
        with self._wake:
            self._queue.append(swap)
            self._newest = (version, digest)
            self._wake.notify()
        return swap.finished

    def close(self) -> None:
        """Ends the thread after the step in hand; unfinished jobs fail."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closing)
                if self._closing:
                    break
                swap = self._queue.popleft() if isinstance(self._queue[0], _Swap) else None
                taken = [] if swap else self._take()
            if swap is not None:
                self._load(swap)
            elif taken:
                self._run(taken)
        for entry in self._queue:
            future = entry.finished if isinstance(entry, _Swap) else entry[0].finished
            if not future.done():
                future.set_exception(RuntimeError("the service is shutting down"))

    def _take(self) -> list[tuple[Job, Sample]]:
        """The next batch: samples in order, up to `max_batch`, none from behind new weights."""
        taken = []
        while self._queue and len(taken) < self.engine.max_batch and not isinstance(self._queue[0], _Swap):
            entry = self._queue.popleft()
            assert not isinstance(entry, _Swap)
            taken.append(entry)
        self.counts.waiting -= len(taken)
        return taken

    def _load(self, swap: _Swap) -> None:
        load_weights(self.engine.model, swap.tensors)
        self.version, self.digest = swap.version, swap.digest
        swap.finished.set_result(None)

    def _run(self, taken: list[tuple[Job, Sample]]) -> None:
        for job, sample in taken:
            if sample.cancelled:
                sample.finish_reason = "cancelled"
                self._ended(job, sample)
        unfinished = [(job, sample) for job, sample in taken if not sample.finish_reason]
        started = time.perf_counter()
        try:
            self._generate(unfinished)
        except Exception as error:  # one request's failure is reported to it and must not end the worker
            log.exception("generation failed")
            for job, _ in unfinished:
                job.cancel()
                if not job.finished.done():
                    job.finished.set_exception(error)
        finally:
            self.counts.running = 0
            self.counts.generation_seconds += time.perf_counter() - started

    def _generate(self, unfinished: list[tuple[Job, Sample]]) -> None:
        if not unfinished:
            return
        batch = Batch(self.engine.model, [sample for _, sample in unfinished], self.engine.eos_ids)
        self.counts.prompt_tokens += sum(len(sample.prompt) for _, sample in unfinished)
        while unfinished and not self._closing:
            self.counts.running = len(unfinished)
            self.counts.generated_tokens += batch.step()
            for job, sample in unfinished:
                if sample.finish_reason:
                    self._ended(job, sample)
            unfinished = [(job, sample) for job, sample in unfinished if not sample.finish_reason]
        for job, _ in unfinished:
            if not job.finished.done():
                job.finished.set_exception(RuntimeError("the service is shutting down"))

    def _ended(self, job: Job, sample: Sample) -> None:
        if job.on_sample is not None:
            job.on_sample(sample)
        job.pending -= 1
        if job.pending == 0 and not job.finished.done():
            self.counts.jobs += 1
            self.counts.cancelled += sample.finish_reason == "cancelled"
            job.finished.set_result(self.version)

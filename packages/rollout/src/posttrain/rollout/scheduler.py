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

from posttrain.core.errors import RequestError, WorkError
from posttrain.rollout import telemetry
from posttrain.rollout.decode import Batch, Sample
from posttrain.rollout.engine import Engine
from posttrain.rollout.weights import load_weights

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """The samples of one request. `finished` resolves when all of them have ended."""

    samples: Sequence[Sample]
    finished: "Future[None]" = field(default_factory=Future)
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


class Overloaded(WorkError):
    """Too many sequences wait already; come again."""


class VersionNotHeld(RequestError):
    """The request names weights that do not serve."""


class Scheduler:
    """Runs jobs on `engine` in a thread of its own. `version` and `digest` name the weights that serve now."""

    def __init__(self, engine: Engine, digest: str = "", max_waiting: int = 65536) -> None:
        self.engine, self.max_waiting = engine, max_waiting
        self.version, self.digest = 0, digest
        self._newest = (0, digest)
        telemetry.WEIGHTS_VERSION.set(0)
        self._queue: deque[tuple[Job, Sample] | _Swap] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    def submit(self, job: Job, version: int | None = None) -> int:
        """Queues a job behind everything that waits and returns the version of the weights that it will run on.

        VersionNotHeld when that is not the `version` asked for, Overloaded when too much waits.
        """
        with self._wake:
            if self._closing:
                raise Overloaded("the service is shutting down")
            if version is not None and version != self._newest[0]:
                raise VersionNotHeld(f"version {version} is not here, the current one is {self._newest[0]}")
            waiting = len(self._queue)
            # A lone large request is never refused for its own size.
            if waiting and waiting + len(job.samples) > self.max_waiting:
                raise Overloaded(f"{waiting} sequences wait already; come again in a while")
            self._queue.extend((job, sample) for sample in job.samples)
            telemetry.WAITING.set(len(self._queue))
            self._wake.notify()
            return self._newest[0]

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
                first = self._queue[0]
                if isinstance(first, _Swap):
                    self._queue.popleft()
                taken = self._take()
            if isinstance(first, _Swap):
                self._load(first)
            if taken:
                self._run(taken)
        for entry in self._queue:
            future = entry.finished if isinstance(entry, _Swap) else entry[0].finished
            if not future.done():
                future.set_exception(Overloaded("the service is shutting down"))

    def _take(self) -> list[tuple[Job, Sample]]:
        """The next batch: samples in order, up to `max_batch`, none from behind new weights."""
        taken: list[tuple[Job, Sample]] = []
        while self._queue and len(taken) < self.engine.max_batch:
            entry = self._queue[0]
            if isinstance(entry, _Swap):
                break
            self._queue.popleft()
            taken.append(entry)
        telemetry.WAITING.set(len(self._queue))
        return taken

    def _load(self, swap: _Swap) -> None:
        try:
            load_weights(self.engine.model, swap.tensors)
        except Exception as error:  # noqa: BLE001 (whoever pushed gets it; this thread must serve on)
            self._give_up(swap, error)
            return
        self.version, self.digest = swap.version, swap.digest
        telemetry.WEIGHTS_VERSION.set(swap.version)
        if not swap.finished.done():  # whoever pushed may have gone away; the weights are here all the same
            swap.finished.set_result(None)

    def _give_up(self, swap: _Swap, error: Exception) -> None:
        """Weights that could not be loaded never were: jobs that counted on them fail, and they may be pushed again."""
        with self._wake:
            later = next((i for i, entry in enumerate(self._queue) if isinstance(entry, _Swap)), len(self._queue))
            for _ in range(later):
                entry = self._queue.popleft()
                assert not isinstance(entry, _Swap)
                if not entry[0].finished.done():
                    entry[0].finished.set_exception(VersionNotHeld(f"version {swap.version} could not be loaded"))
            if self._newest == (swap.version, swap.digest):
                self._newest = (self.version, self.digest)
        if not swap.finished.done():
            swap.finished.set_exception(error)

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
            telemetry.GENERATION_SECONDS.inc(time.perf_counter() - started)

    def _generate(self, unfinished: list[tuple[Job, Sample]]) -> None:
        if not unfinished:
            return
        batch = Batch(self.engine.model, [sample for _, sample in unfinished], self.engine.eos_ids)
        telemetry.BATCH_SIZE.observe(len(unfinished))
        telemetry.PROMPT_TOKENS.inc(sum(len(sample.prompt) for _, sample in unfinished))
        while unfinished and not self._closing:
            telemetry.GENERATED_TOKENS.inc(batch.step())
            for job, sample in unfinished:
                if sample.finish_reason:
                    self._ended(job, sample)
            unfinished = [(job, sample) for job, sample in unfinished if not sample.finish_reason]
        for job, _ in unfinished:
            if not job.finished.done():
                job.finished.set_exception(Overloaded("the service is shutting down"))

    def _ended(self, job: Job, sample: Sample) -> None:
        if job.on_sample is not None:
            job.on_sample(sample)
        job.pending -= 1
        if job.pending == 0 and not job.finished.done():
            job.finished.set_result(None)

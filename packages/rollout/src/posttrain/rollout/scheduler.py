"""One worker thread that owns the engine: samples enter as others end, in the order of arrival.

A job runs wholly on the weights that were current when it was accepted; new weights are taken at once and stop
nothing, since the engine holds every version that a sample still needs. It knows nothing of HTTP.
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
from posttrain.rollout.engine import Engine
from posttrain.rollout.sample import Sample, Weights

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


class Overloaded(WorkError):
    """Too many sequences wait already; come again."""


class VersionNotHeld(RequestError):
    """The request names weights that do not serve."""


class Scheduler:
    """Runs jobs on `engine` in a thread of its own."""

    def __init__(self, engine: Engine, max_waiting: int = 65536) -> None:
        self.engine, self.max_waiting = engine, max_waiting
        telemetry.WEIGHTS_VERSION.set(engine.weights.version)
        self._queue: deque[tuple[Job, Sample]] = deque()
        self._jobs: dict[int, Job] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    @property
    def weights(self) -> Weights:
        """The version that a job submitted now will run on."""
        return self.engine.weights

    def submit(self, job: Job, version: int | None = None) -> int:
        """Queues a job behind everything that waits and returns the version of the weights that it will run on.

        VersionNotHeld when that is not the `version` asked for, Overloaded when too much waits.
        """
        with self._wake:
            if self._closing:
                raise Overloaded("the service is shutting down")
            weights = self.engine.weights
            if version is not None and version != weights.version:
                raise VersionNotHeld(f"version {version} is not here, the current one is {weights.version}")
            waiting = len(self._queue)
            # A lone large request is never refused for its own size.
            if waiting and waiting + len(job.samples) > self.max_waiting:
                raise Overloaded(f"{waiting} sequences wait already; come again in a while")
            for sample in job.samples:
                sample.weights = weights
            self._queue.extend((job, sample) for sample in job.samples)
            telemetry.WAITING.set(len(self._queue))
            self._wake.notify()
            return weights.version

    def swap(self, version: int, digest: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Makes checked weights those of jobs submitted later; jobs that wait or run go on with theirs."""
        self.engine.load(tensors, version, digest)
        telemetry.WEIGHTS_VERSION.set(version)

    def close(self) -> None:
        """Ends the thread after the step in hand; unfinished jobs fail."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self.engine.running or self._closing)
                if self._closing:
                    break
                entering = [self._queue.popleft() for _ in range(min(self.engine.free, len(self._queue)))]
                telemetry.WAITING.set(len(self._queue))
            started = time.perf_counter()
            try:
                self._step(entering)
            except Exception as error:  # the failure is told to whom it concerns and must not end the worker
                log.exception("generation failed")
                self._fail(error)
            telemetry.GENERATION_SECONDS.inc(time.perf_counter() - started)
        self._fail(Overloaded("the service is shutting down"))
        for job, _ in self._queue:
            if not job.finished.done():
                job.finished.set_exception(Overloaded("the service is shutting down"))

    def _step(self, entering: Sequence[tuple[Job, Sample]]) -> None:
        starting = []
        for job, sample in entering:
            self._jobs[id(sample)] = job
            if sample.cancelled:
                sample.finish_reason = "cancelled"
                self._ended(sample)
            else:
                starting.append(sample)
        if starting:
            telemetry.PROMPT_TOKENS.inc(sum(len(sample.prompt) for sample in starting))
            self.engine.add(starting)
        telemetry.BATCH_SIZE.observe(self.engine.running)
        step = self.engine.step()
        telemetry.GENERATED_TOKENS.inc(step.tokens)
        for sample in step.ended:
            self._ended(sample)

    def _ended(self, sample: Sample) -> None:
        job = self._jobs.pop(id(sample))
        if job.on_sample is not None:
            job.on_sample(sample)
        job.pending -= 1
        if job.pending == 0 and not job.finished.done():
            job.finished.set_result(None)

    def _fail(self, error: Exception) -> None:
        """Everything in flight failed with `error`; what waits goes on."""
        self.engine.drop()
        for job in self._jobs.values():
            job.cancel()
            if not job.finished.done():
                job.finished.set_exception(error)
        self._jobs.clear()

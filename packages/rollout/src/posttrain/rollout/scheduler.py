"""One worker thread that owns the engine: who enters when, on which weights, and what ends early.

Slots that free are given out in turns, a sample a job, so a small request behind a large one starts soon; one job
alone fills them in its own order. New weights are taken at once and stop nothing, since the engine holds every version
that a sample still needs. It knows nothing of HTTP.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from posttrain.core.errors import RequestError, WorkError
from posttrain.rollout import telemetry
from posttrain.rollout.engine import Engine
from posttrain.rollout.sample import Sample, Weights

log = logging.getLogger(__name__)

RATE_SECONDS = 10.0
"""Over about so much time of work the rate of ended sequences is measured."""
LONGEST_RETRY_SECONDS = 60


@dataclass(eq=False)
class Job:
    """The samples of one request. `finished` resolves when all of them have ended."""

    samples: Sequence[Sample]
    on_sample: Callable[[Sample], None] | None = None
    """Called in the worker thread as each sample ends."""
    after_step: Callable[[], None] | None = None
    """Called in the worker thread after each step that the job was in."""
    again: Callable[[], Sequence[Sample]] | None = None
    """Makes the samples anew, where newer weights may take the place of those that the job has begun on."""
    finished: "Future[None]" = field(default_factory=Future)
    version: int = -1
    """Of the weights that it runs on; it can change until `finished` where `again` is given."""

    waiting: deque[Sample] = field(default_factory=deque)
    pending: int = 0
    """Samples that have not ended."""
    accepted: float = 0.0
    first_token: float | None = None


class Overloaded(WorkError):
    """Too much waits already; come again in `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class VersionNotHeld(RequestError):
    """The request names weights that do not serve."""


class Scheduler:
    """Runs jobs on `engine` in a thread of its own.

    At most `max_waiting` sequences wait. `restart`: a job that may begin anew does so on the weights of each swap.
    """

    def __init__(self, engine: Engine, max_waiting: int = 65536, *, restart: bool = False) -> None:
        self.engine, self.max_waiting, self.restart = engine, max_waiting, restart
        telemetry.WEIGHTS_VERSION.set(engine.weights.version)
        telemetry.SLOTS.set(engine.max_batch)
        self._turns: deque[Job] = deque()
        self._waiting = 0
        self._jobs: dict[Sample, Job] = {}
        self._rate = _Rate()
        # Guards the four above and what a job's samples are; never held while the engine works.
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    @property
    def weights(self) -> Weights:
        """The version that a job submitted now will run on."""
        return self.engine.weights

    @property
    def waiting(self) -> int:
        """Sequences that have not started."""
        return self._waiting

    def submit(self, job: Job, version: int | None = None) -> int:
        """Queues a job and returns the version of the weights that it will run on.

        VersionNotHeld when that is not the `version` asked for, Overloaded when too much waits.
        """
        with self._wake:
            if self._closing:
                raise Overloaded("the service is shutting down")
            weights = self.engine.weights  # asked once: a push may come in between
            if version is not None and version != weights.version:
                raise VersionNotHeld(f"version {version} is not here, the current one is {weights.version}")
            excess = self._waiting + len(job.samples) - self.max_waiting
            # A lone large request is never refused for its own size.
            if self._waiting and excess > 0:
                raise Overloaded(f"{self._waiting} sequences wait already; come again", self._rate.seconds(excess))
            job.accepted = time.monotonic()
            self._queue(job, weights)
            self._turns.append(job)
            self._wake.notify()
            return job.version

    def cancel(self, job: Job) -> None:
        """Ends a job from any thread, at any time: what waits leaves the queue now, what runs ends at the next step."""
        with self._wake:
            job.on_sample = job.after_step = job.again = None  # nobody listens any more
            self._withdraw(job)
            for sample in job.samples:
                sample.cancelled = True
        self._resolve([job])

    def swap(self, version: int, digest: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Makes checked weights those of jobs submitted later; the others go on with theirs unless they restart."""
        self.engine.load(tensors, version, digest)
        telemetry.WEIGHTS_VERSION.set(version)
        if self.restart:
            with self._wake:
                unfinished = dict.fromkeys([*self._jobs.values(), *self._turns])
                stale = [job for job in unfinished if job.again and job.version != version]
                for job in stale:
                    self._begin_anew(job)
                self._turns.extendleft(reversed(stale))
                self._wake.notify()

    def close(self) -> None:
        """Ends the thread after the step in hand; unfinished jobs fail."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _queue(self, job: Job, weights: Weights) -> None:
        for sample in job.samples:
            sample.weights = weights
        job.version, job.pending, job.waiting = weights.version, len(job.samples), deque(job.samples)
        self._waiting += job.pending

    def _withdraw(self, job: Job) -> None:
        if job.waiting:
            self._turns.remove(job)
            self._waiting -= len(job.waiting)
            job.pending -= len(job.waiting)
        for sample in job.waiting:
            sample.finish_reason, sample.weights = "cancelled", None
        job.waiting.clear()

    def _begin_anew(self, job: Job) -> None:
        assert job.again is not None
        self._withdraw(job)
        for sample in job.samples:
            # The engine ends it at its next step, and nobody asks what has become of it.
            sample.cancelled = True
            self._jobs.pop(sample, None)
        job.samples = job.again()
        self._queue(job, self.engine.weights)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self.engine.running or self._closing)
                if self._closing:
                    break
                entering = self._take(self.engine.free)
            started = time.monotonic()
            ended = 0
            try:
                ended = self._step(entering)
            except Exception as error:  # the failure is told to whom it concerns and must not end the worker
                log.exception("generation failed")
                self._fail(error)
            seconds = time.monotonic() - started
            self._rate.add(ended, seconds)
            telemetry.GENERATION_SECONDS.inc(seconds)
            telemetry.WAITING.set(self._waiting)
            telemetry.RUNNING.set(self.engine.running)
        self._fail(Overloaded("the service is shutting down"), everything=True)

    def _take(self, free: int) -> list[Sample]:
        """Up to `free` samples that enter now, a job after the other in turns."""
        entering: list[Sample] = []
        while self._turns and len(entering) < free:
            job = self._turns.popleft()
            sample = job.waiting.popleft()
            self._jobs[sample] = job
            entering.append(sample)
            if job.waiting:
                self._turns.append(job)
        self._waiting -= len(entering)
        return entering

    def _step(self, entering: Sequence[Sample]) -> int:
        """One step of the engine, after `entering` joined it; how many samples ended."""
        # Asked once: a sample that is cancelled from now on is the engine's to end.
        left = {sample for sample in entering if sample.cancelled}
        starting = [sample for sample in entering if sample not in left]
        if starting:
            telemetry.PROMPT_TOKENS.inc(sum(len(sample.prompt) for sample in starting))
            self.engine.add(starting)
        telemetry.BATCH_SIZE.observe(self.engine.running)
        begun = time.monotonic()
        step = self.engine.step()
        telemetry.GENERATED_TOKENS.inc(step.tokens)
        done = time.monotonic()
        with self._wake:
            stepped = dict.fromkeys(self._jobs.values())
        for job in stepped:
            if job.first_token is None:
                job.first_token = done
                telemetry.QUEUE_SECONDS.observe(begun - job.accepted)
                telemetry.FIRST_TOKEN_SECONDS.observe(done - job.accepted)
        self._ended([*left, *step.ended])
        for job in stepped:
            if (told := job.after_step) is not None:
                told()
        return len(step.ended)

    def _ended(self, samples: Iterable[Sample]) -> None:
        jobs: list[Job] = []
        for sample in samples:
            with self._wake:
                job = self._jobs.pop(sample, None)
                # An ended sample holds its version in memory no longer.
                sample.weights = None
                sample.finish_reason = sample.finish_reason or "cancelled"
                if job is None:  # it began anew
                    continue
                job.pending -= 1
            jobs.append(job)
            try:
                if (told := job.on_sample) is not None:
                    told(sample)
            except Exception as error:  # it is this job's alone
                log.exception("an ended sample could not be told of")
                with self._wake:
                    if not job.finished.done():
                        job.finished.set_exception(error)
        self._resolve(dict.fromkeys(jobs))

    def _resolve(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            with self._wake:
                done = job.pending == 0 and not job.finished.done()
                if done:
                    job.finished.set_result(None)
            longest = max(len(sample.token_ids) for sample in job.samples)
            if done and job.first_token is not None and longest > 1:
                telemetry.OUTPUT_TOKEN_SECONDS.observe((time.monotonic() - job.first_token) / (longest - 1))

    def _fail(self, error: Exception, everything: bool = False) -> None:
        """Everything in flight failed with `error`; what else waits goes on, unless it is to fail too."""
        with self._wake:
            failed = dict.fromkeys([*self._jobs.values(), *(self._turns if everything else ())])
            self._jobs.clear()
            for job in failed:
                self._withdraw(job)
                if not job.finished.done():
                    job.finished.set_exception(error)
        try:
            self.engine.drop()
        except Exception:  # the next step will say so again; the thread that says it must not end
            log.exception("the engine could not forget what failed")


class _Rate:
    """Sequences that end in a second of work, of late."""

    def __init__(self) -> None:
        self._value = self._weight = 0.0

    def add(self, ended: int, seconds: float) -> None:
        """Counts `ended` sequences of the last `seconds`."""
        keep = math.exp(-seconds / RATE_SECONDS)
        self._value = keep * self._value + ended
        self._weight = keep * self._weight + seconds

    def seconds(self, sequences: int) -> int:
        """Whole seconds in which so many will have ended, between 1 and a minute."""
        expected = sequences * self._weight / self._value if self._value else 1.0
        return math.ceil(min(max(expected, 1.0), LONGEST_RETRY_SECONDS))

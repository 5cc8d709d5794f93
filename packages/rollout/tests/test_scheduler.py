"""Who gets a slot when, what ends early, which weights answer: on a toy engine whose steps the test lets happen."""

import gc
import threading
import time
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2ForCausalLM

from posttrain.rollout import torch_engine
from posttrain.rollout.engine import Step
from posttrain.rollout.sample import Sample, Weights
from posttrain.rollout.sampling import Sampling
from posttrain.rollout.scheduler import Job, Overloaded, Scheduler, VersionNotHeld, _Rate
from posttrain.rollout.torch_engine import TorchEngine


class Held:
    """What an engine holds of a version; a class, so that its end can be watched."""


class Toy:
    """Gives every sample its version as a token a step, in `max_batch` slots; a step happens when `steps` allows it."""

    def __init__(self, max_batch=2):
        self.max_batch = max_batch
        self.weights = Weights(0, "zero", Held())
        self.flights = []
        self.entered = []
        self.steps = threading.Semaphore(0)
        self.fails = False

    @property
    def free(self):
        return self.max_batch - len(self.flights)

    @property
    def running(self):
        return len(self.flights)

    def add(self, samples):
        self.entered += samples
        self.flights += samples

    def step(self):
        self.steps.acquire()
        if self.fails:
            raise RuntimeError("out of memory")
        ended = []
        for sample in self.flights:
            if sample.cancelled:
                sample.finish_reason = "cancelled"
            else:
                sample.take(sample.weights.version, 0.0, [], False)
            if sample.finish_reason:
                ended.append(sample)
        self.flights = [sample for sample in self.flights if sample not in ended]
        return Step(1, ended)

    def drop(self):
        self.flights = []

    def load(self, tensors, version, digest):
        self.weights = Weights(version, digest, Held())
        return self.weights


class Bench:
    """A scheduler on a toy engine."""

    def __init__(self, **options):
        self.engine = Toy(options.pop("max_batch", 2))
        self.scheduler = Scheduler(self.engine, **options)

    def job(self, count, tokens=1, again=False, version=None):
        def make():
            return [Sample((1,), Sampling(max_tokens=tokens), seed) for seed in range(count)]

        job = Job(make(), again=make if again else None)
        self.scheduler.submit(job, version)
        return job

    def step(self, count=1):
        """Lets steps happen, at most as many as there is work for."""
        engine = self.engine
        engine.steps.release(count)
        self.settle(lambda: not engine.steps._value or not (engine.running or self.scheduler.waiting))
        while engine.steps.acquire(blocking=False):
            pass

    def settle(self, condition):
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(0.01)

    def order(self, **jobs):
        """The names of the jobs in the order in which their samples entered."""
        return "".join(next(n for n, job in jobs.items() if s in job.samples) for s in self.engine.entered)


@pytest.fixture
def bench():
    made = []

    def make(**options):
        made.append(Bench(**options))
        return made[-1]

    yield make
    for each in made:
        each.engine.steps.release(1000)
        each.scheduler.close()


def test_one_job_fills_slots_in_its_own_order(bench):
    b = bench(max_batch=3)
    job = b.job(10)
    b.step(4)
    job.finished.result(timeout=5)
    assert b.engine.entered == list(job.samples)


def test_small_request_behind_a_large_one_starts_with_the_next_free_slot(bench):
    b = bench(max_batch=2)
    large = b.job(1000)
    b.settle(lambda: b.engine.running == 2)
    small = b.job(1)
    b.step(1)
    b.step(1)
    small.finished.result(timeout=5)
    assert b.order(l=large, s=small).index("s") <= 3


def test_jobs_take_turns(bench):
    b = bench(max_batch=1)
    first = b.job(1)
    b.settle(lambda: b.engine.running == 1)
    jobs = {"a": b.job(4), "b": b.job(2), "c": b.job(3)}
    b.step(10)
    assert b.order(f=first, **jobs) == "fabcabcaca"


def test_waiting_samples_of_a_cancelled_job_leave_the_queue_at_once(bench):
    b = bench(max_batch=2, max_waiting=10)
    job = b.job(12)
    b.settle(lambda: b.scheduler.waiting == 10)
    with pytest.raises(Overloaded):
        b.job(1)
    b.scheduler.cancel(job)
    assert b.scheduler.waiting == 0
    other = b.job(1)
    b.step(3)
    job.finished.result(timeout=5)
    other.finished.result(timeout=5)
    assert {sample.finish_reason for sample in job.samples} == {"cancelled"}
    assert len(b.engine.entered) == 3


def test_cancelled_job_that_never_ran_ends_without_a_step(bench):
    b = bench(max_batch=1)
    b.job(1)
    b.settle(lambda: b.engine.running == 1)
    waiting = b.job(5)
    b.scheduler.cancel(waiting)
    waiting.finished.result(timeout=5)


def test_a_lone_large_job_is_taken_and_the_next_is_told_when_to_come_again(bench):
    b = bench(max_batch=1, max_waiting=4)
    b.job(20)
    b.settle(lambda: b.engine.running == 1)
    with pytest.raises(Overloaded, match="19 sequences wait") as error:
        b.job(1)
    assert 1 <= error.value.retry_after <= 60


def test_retry_after_is_what_the_measured_rate_says():
    rate = _Rate()
    assert rate.seconds(100) == 1  # nothing is known
    for _ in range(100):
        rate.add(5, 0.5)
    assert rate.seconds(100) == 10
    assert rate.seconds(3) == 1
    assert rate.seconds(10**6) == 60
    for _ in range(100):
        rate.add(1, 0.5)  # it became five times slower
    assert 45 <= rate.seconds(100) <= 50


def test_what_runs_or_waits_ends_on_the_version_it_was_accepted_on(bench):
    b = bench(max_batch=2)
    job = b.job(4, tokens=2)
    b.step(1)
    b.scheduler.swap(1, "one", {})
    later = b.job(1)
    b.step(9)
    job.finished.result(timeout=5)
    later.finished.result(timeout=5)
    assert [sample.token_ids for sample in job.samples] == [[0, 0]] * 4
    assert (job.version, later.version) == (0, 1)
    assert later.samples[0].token_ids == [1]


def test_restart_begins_a_job_anew_on_the_new_weights_and_never_mixes(bench):
    b = bench(max_batch=2, restart=True)
    job, pinned = b.job(3, tokens=2, again=True), b.job(2, tokens=2, version=0)
    b.step(2)
    ended_on_old = sum(sample.finish_reason is not None for sample in job.samples)
    assert ended_on_old
    b.scheduler.swap(1, "one", {})
    b.step(20)
    job.finished.result(timeout=5)
    pinned.finished.result(timeout=5)
    assert job.version == 1
    assert [sample.token_ids for sample in job.samples] == [[1, 1]] * 3
    assert [sample.token_ids for sample in pinned.samples] == [[0, 0]] * 2


def test_old_weights_are_freed_when_their_last_sample_ends(bench):
    b = bench(max_batch=2)
    old = weakref.ref(b.engine.weights.held)
    job = b.job(3, tokens=2)
    b.step(1)
    b.scheduler.swap(1, "one", {})
    gc.collect()
    assert old() is not None
    b.step(4)
    job.finished.result(timeout=5)
    gc.collect()
    assert old() is None  # although the job itself still lives


def test_failed_step_is_told_to_those_in_flight_and_the_rest_goes_on(bench):
    b = bench(max_batch=1)
    doomed = b.job(1)
    b.settle(lambda: b.engine.running == 1)
    waiting = b.job(1)
    b.engine.fails = True
    b.step(1)
    b.engine.fails = False
    with pytest.raises(RuntimeError, match="out of memory"):
        doomed.finished.result(timeout=5)
    b.step(1)
    waiting.finished.result(timeout=5)


def test_closing_fails_what_waits():
    b = Bench(max_batch=1)
    running, waiting = b.job(1), b.job(3)
    b.engine.steps.release(1)
    threading.Timer(0.05, lambda: b.engine.steps.release(100)).start()
    b.scheduler.close()
    with pytest.raises(Overloaded, match="shutting down"):
        waiting.finished.result(timeout=5)
    assert running.finished.done()
    with pytest.raises(Overloaded):
        b.job(1)


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4), st.booleans()), min_size=1, max_size=6),
    slots=st.integers(1, 5),
    restart=st.booleans(),
)
def test_every_job_ends_once_with_all_of_its_samples(sizes, slots, restart):
    """Jobs come and go while weights are pushed; nothing is lost, and no slot and no place in the queue stays taken."""
    b = Bench(max_batch=slots, restart=restart)
    b.engine.steps.release(10_000)
    jobs = []
    for number, (count, tokens, cancel) in enumerate(sizes):
        jobs.append((b.job(count, tokens, again=True), tokens, cancel))
        if cancel:
            b.scheduler.cancel(jobs[-1][0])
        b.scheduler.swap(number + 1, str(number), {})
    for job, tokens, cancel in jobs:
        job.finished.result(timeout=10)
        if not cancel:
            assert all(sample.token_ids == [job.version] * tokens for sample in job.samples)
    b.settle(lambda: b.engine.running == 0)
    assert (b.scheduler.waiting, b.scheduler._jobs, len(b.scheduler._turns)) == (0, {}, 0)
    b.scheduler.close()


def test_weights_that_cannot_be_loaded_never_were(make_model, monkeypatch):
    scheduler = Scheduler(TorchEngine(make_model(Qwen2ForCausalLM), eos_ids=[2]))
    tensors = {name: parameter.detach().clone() for name, parameter in scheduler.engine.model.named_parameters()}

    def broken(model, given):
        raise MemoryError("no memory left on the device")

    with monkeypatch.context() as patch:
        patch.setattr(torch_engine, "load_weights", broken)
        with pytest.raises(MemoryError):
            scheduler.swap(1, "one", tensors)
    assert scheduler.weights.version == 0
    with pytest.raises(VersionNotHeld):
        scheduler.submit(Job(scheduler.engine.samples([[5, 6]], Sampling(max_tokens=2))), version=1)
    scheduler.swap(1, "one", tensors)
    assert (scheduler.weights.version, scheduler.weights.digest) == (1, "one")
    scheduler.close()


def test_failure_to_tell_of_a_sample_is_its_jobs_alone(bench):
    b = bench(max_batch=2)
    first, second = b.job(1), b.job(1)

    def fail(_):
        raise ValueError("cannot be told")

    first.on_sample = fail
    b.step(1)
    with pytest.raises(ValueError, match="cannot be told"):
        first.finished.result(timeout=5)
    second.finished.result(timeout=5)
    third = b.job(1)
    b.step(1)
    third.finished.result(timeout=5)


def test_engine_that_cannot_forget_what_failed_does_not_end_the_worker(bench, monkeypatch):
    b = bench(max_batch=1)
    doomed = b.job(1)
    b.settle(lambda: b.engine.running == 1)
    drop = b.engine.drop

    def fail():
        drop()
        raise RuntimeError("nor can it be aborted")

    monkeypatch.setattr(b.engine, "drop", fail)
    b.engine.fails = True
    b.step(1)
    b.engine.fails = False
    with pytest.raises(RuntimeError, match="out of memory"):
        doomed.finished.result(timeout=5)
    later = b.job(1)
    b.step(1)
    later.finished.result(timeout=5)

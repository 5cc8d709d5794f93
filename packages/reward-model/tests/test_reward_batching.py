"""The queue in front of a model: work of many callers shares batches of like length, and each gets its own scores."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.reward_model.batching import FEWEST_TOKENS, LIKE, BatchingQueue


class Model:
    """Scores a sequence with its sum; waits for `go`, and remembers its batches."""

    def __init__(self, go: bool = True) -> None:
        self.batches: list[list[list[int]]] = []
        self.running, self.go = threading.Event(), threading.Event()
        if go:
            self.go.set()

    def __call__(self, sequences):
        self.batches.append([list(sequence) for sequence in sequences])
        self.running.set()
        assert self.go.wait(10)
        if any(-1 in sequence for sequence in sequences):
            raise ValueError("bad weights")
        return [float(sum(sequence)) for sequence in sequences]


def held(model: Model, queue: BatchingQueue):
    """The future of a job that keeps the queue's only thread until `model.go`."""
    future = queue.submit([[1000]])
    assert model.running.wait(10)
    return future


def test_requests_that_wait_share_a_batch_each_with_its_own_scores():
    model = Model(go=False)
    queue = BatchingQueue(model)
    first = held(model, queue)
    later = [queue.submit([[n], [n, n], [n, n]]) for n in range(10)]
    model.go.set()
    assert first.result(10) == [1000.0]
    assert [future.result(10) for future in later] == [[n, 2.0 * n, 2.0 * n] for n in range(10)]
    assert [len(batch) for batch in model.batches] == [1, 20, 10]
    queue.close()


@given(
    jobs=st.lists(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=40), max_size=30), max_size=8),
    batch_tokens=st.integers(1, 200),
    threads=st.integers(1, 3),
)
@settings(deadline=None, max_examples=60)
def test_every_sequence_is_scored_once_within_the_budget_and_among_its_like(jobs, batch_tokens, threads):
    model = Model(go=False)
    queue = BatchingQueue(model, batch_tokens=batch_tokens, threads=threads)
    futures = [queue.submit(job) for job in jobs]
    model.go.set()
    for job, future in zip(jobs, futures, strict=True):
        assert future.result(10) == [float(sum(sequence)) for sequence in job]
    queue.close()
    for batch in model.batches:
        longest = max(map(len, batch))
        assert len(batch) == 1 or len(batch) * longest <= batch_tokens
        assert min(map(len, batch)) >= LIKE * longest
    assert sorted(s for batch in model.batches for s in batch) == sorted(s for job in jobs for s in job)


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_of_a_lone_job_are_the_same_every_time(threads: int):
    job = [[7] * (1 + n * n % 97) for n in range(200)]

    def batches() -> list[list[int]]:
        model = Model()
        queue = BatchingQueue(model, batch_tokens=1000, threads=threads)
        queue.submit(job).result(10)
        queue.close()
        return sorted(sorted(map(len, batch)) for batch in model.batches)

    assert batches() == batches()


def test_a_small_job_is_split_over_idle_threads_but_not_into_crumbs():
    model = Model()
    queue = BatchingQueue(model, batch_tokens=100_000, threads=2)
    queue.submit([[1] * 100] * 40).result(10)
    queue.close()
    # 4,000 tokens over two threads: half to the first that comes, then half of the rest, and no less than the least.
    assert [len(batch) for batch in model.batches][:2] == [20, 10]
    assert min(sum(map(len, batch)) for batch in model.batches[:-1]) >= FEWEST_TOKENS - 100


def test_a_small_request_waits_for_a_batch_of_a_large_one_not_for_its_end():
    model = Model(go=False)
    queue = BatchingQueue(model, batch_tokens=10)
    large = queue.submit([[1] * 10] * 100)
    assert model.running.wait(10)
    small = queue.submit([[2]])
    model.go.set()
    assert small.result(10) == [2.0]
    large.result(10)
    queue.close()
    assert model.batches.index([[2]]) <= 2


def test_an_error_reaches_its_callers_and_the_queue_goes_on():
    queue = BatchingQueue(Model())
    with pytest.raises(ValueError, match="bad weights"):
        queue.submit([[-1]]).result(10)
    assert queue.submit([[3]]).result(10) == [3.0]
    queue.close()


def test_a_job_that_fails_in_two_threads_at_once_is_answered_once_and_both_go_on():
    go, one_left, both = threading.Event(), threading.Event(), threading.Barrier(2)

    def forward(sequences):
        assert go.wait(10)
        both.wait(10)
        if [-1] in sequences:
            raise ValueError("bad weights")
        return [float(sum(sequence)) for sequence in sequences]

    queue = BatchingQueue(forward, batch_tokens=1, threads=2)
    future = queue.submit([[-1], [-1]])
    answer, end = future.set_exception, queue._end

    def answer_late(error):
        # Whichever thread answers, the other one comes by in the meantime.
        assert one_left.wait(10)
        answer(error)

    def end_and_tell(*args):
        try:
            end(*args)
        finally:
            one_left.set()

    future.set_exception, queue._end = answer_late, end_and_tell
    go.set()
    with pytest.raises(ValueError, match="bad weights"):
        future.result(10)
    # The barrier lets these pass only if both threads live.
    assert queue.submit([[3], [4]]).result(10) == [3.0, 4.0]
    queue.close()


def test_a_caller_that_went_away_costs_nothing_more_even_in_the_middle():
    model = Model(go=False)
    queue = BatchingQueue(model, batch_tokens=1)
    gone = queue.submit([[1]] * 50)
    assert model.running.wait(10)
    assert gone.cancel()
    model.go.set()
    assert queue.submit([[3]]).result(10) == [3.0]
    queue.close()
    assert len(model.batches) == 2


def test_metrics_that_cannot_be_written_are_logged_and_cost_no_caller(caplog: pytest.LogCaptureFixture):
    def full(*args):
        raise OSError(28, "No space left on device")

    queue = BatchingQueue(Model(), on_start=full, on_batch=full)
    assert [queue.submit([[n]]).result(10) for n in (3, 4)] == [[3.0], [4.0]]
    queue.close()
    assert [record.getMessage() for record in caplog.records] == [
        "scoring goes on after OSError: [Errno 28] No space left on device"
    ] * 3


def test_scores_are_delivered_before_their_batch_is_told():
    told = threading.Event()
    queue = BatchingQueue(Model(), on_batch=lambda record: told.wait(10))
    assert queue.submit([[3]]).result(5) == [3.0]
    told.set()
    queue.close()


def test_what_a_batch_was_is_told_once_with_the_wait_of_each_job():
    records = []
    queue = BatchingQueue(Model(), batch_tokens=8, on_batch=records.append)
    queue.submit([[1] * 4, [1] * 3, [1]]).result(10)
    queue.close()
    assert [(r.rows, r.tokens, r.padded_tokens, len(r.waits)) for r in records] == [(2, 7, 8, 1), (1, 1, 1, 0)]

"""The queue in front of a model: work of many callers becomes one batch, and each gets its own scores or error."""

import threading

import pytest

from posttrain.reward_model.batching import BatchingQueue


class Model:
    """Scores a sequence with its sum; waits for `go`, and remembers the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.running, self.go = threading.Event(), threading.Event()

    def score(self, sequences):
        self.sizes.append(len(sequences))
        self.running.set()
        assert self.go.wait(10)
        if any(-1 in sequence for sequence in sequences):
            raise ValueError("bad weights")
        return [float(sum(sequence)) for sequence in sequences]


def test_requests_that_wait_are_scored_as_one_batch_each_with_its_own_scores():
    model = Model()
    queue = BatchingQueue(model.score, "rm")
    first = queue.submit([[1], [2]])
    assert model.running.wait(10)
    later = [queue.submit([[n], [n, n]]) for n in range(10)]
    model.go.set()
    assert first.result(10) == [1.0, 2.0]
    assert [future.result(10) for future in later] == [[n, 2.0 * n] for n in range(10)]
    assert model.sizes == [2, 20]
    queue.close()


def test_an_error_reaches_its_callers_and_the_queue_goes_on():
    model = Model()
    model.go.set()
    queue = BatchingQueue(model.score, "rm")
    with pytest.raises(ValueError, match="bad weights"):
        queue.submit([[-1]]).result(10)
    assert queue.submit([[3]]).result(10) == [3.0]
    queue.close()


def test_a_caller_that_went_away_is_not_scored():
    model = Model()
    queue = BatchingQueue(model.score, "rm")
    first = queue.submit([[1]])
    assert model.running.wait(10)
    gone, stays = queue.submit([[2]]), queue.submit([[3]])
    assert gone.cancel()
    model.go.set()
    assert first.result(10) == [1.0]
    assert stays.result(10) == [3.0]
    queue.close()
    assert model.sizes == [1, 1]

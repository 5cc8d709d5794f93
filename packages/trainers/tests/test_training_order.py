"""The order of examples, and what is held out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import RequestError
from posttrain.trainers.held_out import split_held_out
from posttrain.trainers.order import training_order

SIZES = {
    "lengths": st.lists(st.integers(1, 90), min_size=1, max_size=60),
    "batch_size": st.integers(1, 9),
    "epochs": st.integers(1, 3),
    "seed": st.integers(0, 5),
    "bucket": st.integers(1, 5),
}


@given(**SIZES)
@settings(deadline=None, max_examples=60)
def test_every_example_comes_once_an_epoch(lengths, batch_size, epochs, seed, bucket):
    order = training_order(lengths, batch_size, epochs, seed, bucket)
    assert sorted(order) == sorted(list(range(len(lengths))) * epochs)


@given(**SIZES)
@settings(deadline=None, max_examples=30)
def test_the_order_is_a_function_of_its_arguments(lengths, batch_size, epochs, seed, bucket):
    assert training_order(lengths, batch_size, epochs, seed, bucket) == training_order(
        lengths, batch_size, epochs, seed, bucket
    )


def test_buckets_pad_less_than_a_shuffle():
    lengths = [length for length in range(1, 101) for _ in range(8)]

    def padding(order):
        batches = [[lengths[i] for i in order[n : n + 16]] for n in range(0, len(order), 16)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    plain, bucketed = training_order(lengths, 16, 1, 0, 1), training_order(lengths, 16, 1, 0, 8)
    assert padding(bucketed) < 0.4 * padding(plain)
    assert plain != training_order(lengths, 16, 1, 1, 1)


def test_batches_do_not_come_sorted_by_length():
    lengths = list(range(160))
    order = training_order(lengths, 16, 1, 0, 10)
    means = [sum(order[n : n + 16]) / 16 for n in range(0, 160, 16)]
    assert means != sorted(means)


def test_no_examples_have_no_order():
    with pytest.raises(ValueError, match="0 examples"):
        training_order([], 4, 1, 0)


def test_held_out_rows_share_no_key_with_training_rows():
    rows = [{"prompt": str(number // 3)} for number in range(60)]
    kept, held = split_held_out(rows, 0.2, 0, key=lambda row: row["prompt"])
    assert len(kept) + len(held) == 60
    assert not {row["prompt"] for row in kept} & {row["prompt"] for row in held}
    assert len({row["prompt"] for row in held}) == 4
    assert split_held_out(rows, 0.2, 0, key=lambda row: row["prompt"]) == (kept, held)


def test_too_little_data_to_hold_some_out_is_refused():
    with pytest.raises(RequestError, match="give validation data"):
        split_held_out(["a", "b", "b"], 0.5, 0, key=str)

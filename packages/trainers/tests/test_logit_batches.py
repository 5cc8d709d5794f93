"""Batches of passes without gradients: by number where the vocabulary is small, by logits where it is large."""

from hypothesis import given
from hypothesis import strategies as st

from posttrain.trainers.logit_batches import MOST_LOGITS, logit_batches


def test_small_vocabulary_leaves_batches_of_the_number_asked_for():
    assert logit_batches([60] * 10, 1024, most=4) == [range(4), range(4, 8), range(8, 10)]


def test_large_vocabulary_makes_smaller_ones_and_an_example_too_large_is_alone():
    """Ten logits a position, at most 100: 5 + 5 positions, then 6 beside the padding to it, then 20."""
    assert logit_batches([5, 5, 6, 20], 10, most=4, limit=100) == [range(2), range(2, 3), range(3, 4)]
    assert logit_batches([1000] * 64, 151_936, most=64) == [range(i, i + 1) for i in range(64)]
    assert logit_batches([], 10, most=4) == []


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 100), st.integers(1, 9), st.integers(1, 2000))
def test_every_example_is_in_one_batch_and_no_batch_of_several_is_too_large(positions, vocabulary, most, limit):
    batches = logit_batches(positions, vocabulary, most, limit)
    assert [number for batch in batches for number in batch] == list(range(len(positions)))
    for batch in batches:
        longest = max(positions[number] for number in batch)
        assert len(batch) == 1 or (len(batch) <= most and len(batch) * longest * vocabulary <= limit)


def test_limit_is_a_gibibyte_of_fp32():
    assert MOST_LOGITS * 4 == 2**30

"""MT-Bench's grades and pairs, by hand."""

import math

import numpy as np
import pytest

from posttrain.llm_judge.statistics.mt_bench import grades, pairwise
from posttrain.llm_judge.statistics.pairs import Pairs


def pairs(first, second, categories=()) -> Pairs:
    n = len(first)
    unknown = np.full(n, np.nan)
    prompts = [f"p{number}" for number in range(n)]
    of_second = None if second is None else np.array(second, float)
    return Pairs(np.array(first, float), of_second, prompts, unknown, unknown, unknown, categories)


def test_grades_by_category_and_turn():
    found = grades(
        [8, 6, 10, 4, np.nan, 2],
        turns=[1, 2, 1, 2, 1, 2],
        prompts=["p", "p", "q", "q", "r", "r"],
        categories=["math", "math", "writing", "writing", "math", "math"],
    )
    assert found.overall.value == pytest.approx(30 / 5)
    assert {turn: score.value for turn, score in found.by_turn.items()} == {1: 9, 2: 4}
    assert {name: score.value for name, score in found.by_category.items()} == {"math": 16 / 3, "writing": 7}
    assert found.by_category_and_turn["math", 2].value == 4
    assert found.by_category_and_turn["math", 1].n == 1
    assert found.unparsed == 1


def test_both_turns_of_a_question_are_one_piece_of_evidence():
    found = grades([8, 8, 4, 4, 6, 6], [1, 2] * 3, ["p", "p", "q", "q", "r", "r"])
    # Three questions of 8, 4 and 6: s / √3 with s = 2.
    assert found.overall.standard_error == pytest.approx(2 / math.sqrt(3))
    assert found.by_category == {}


def test_a_category_of_one_question_has_no_error():
    found = grades([8, 4], [1, 1], ["p", "q"], ["math", "writing"])
    assert found.by_category["math"].value == 8
    assert math.isnan(found.by_category["math"].standard_error)


def test_grades_off_the_scale_are_refused():
    with pytest.raises(ValueError, match="between 1 and 10, not 11"):
        grades([5, 11], [1, 1], ["p", "q"])
    with pytest.raises(ValueError, match="2 values have 1 turns"):
        grades([5, 10], [1], ["p", "q"])


def test_a_scale_of_ones_own_has_its_own_ends():
    assert grades([0, 100], [1, 1], ["p", "q"], scale=(0, 100)).overall.value == 50
    with pytest.raises(ValueError, match="grades lie between 0 and 5, not 7"):
        grades([3, 7], [1, 1], ["p", "q"], scale=(0, 5))


def test_orders_that_disagree_are_a_tie():
    #                       B, A, swapped, both tie, one tie, unread
    found = pairwise(pairs([1, 0, 1, 0.5, 0.5, 1], [1, 0, 0, 0.5, 1, np.nan]))
    assert (found.wins, found.losses, found.ties, found.disagreements) == (1, 1, 3, 2)
    assert found.win_rate.overall.value == 0.5
    assert found.win_rate.overall.n == 5
    assert found.win_rate.unparsed == 1


def test_probabilities_are_read_as_verdicts():
    found = pairwise(pairs([0.9, 0.8], [0.6, 0.1], ["math", "writing"]), turns=[1, 2])
    assert (found.wins, found.ties) == (1, 1)
    assert found.win_rate.by_category["math"].value == 1
    assert found.win_rate.by_turn[2].value == 0.5


def test_one_order_is_refused():
    with pytest.raises(ValueError, match="one order only"):
        pairwise(pairs([1, 0], None))

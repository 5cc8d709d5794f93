"""The win rate: numbers derived by hand, a plain loop, and what a pair of two orders says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.llm_judge.statistics.pairs import Pairs
from posttrain.llm_judge.statistics.win_rate import outcomes, win_rate

NAN = math.nan


def table(first, second=None, prompts=None) -> Pairs:
    unknown = np.full(len(first), NAN)
    return Pairs(
        np.array(first, dtype=float),
        None if second is None else np.array(second, dtype=float),
        prompts or [f"p{number}" for number in range(len(first))],
        unknown,
        unknown,
        unknown,
    )


def test_rate_and_errors_by_hand():
    # 1, ½, 0, 0.9: mean 0.6; squares of the deviations 0.16 + 0.01 + 0.36 + 0.09 = 0.62; s² = 0.62 / 3.
    found = win_rate(table([1, 0.5, 0, 0.9]))
    assert found.rate.value == pytest.approx(0.6)
    assert found.independent_error == pytest.approx(math.sqrt(0.62 / 3 / 4))
    assert found.rate.standard_error == pytest.approx(found.independent_error)
    assert (found.wins, found.losses, found.draws, found.rate.n) == (2, 1, 1, 4)
    assert found.discrete == (2 + 0.5) / 4


def test_error_is_of_prompts_and_not_of_comparisons():
    # Two prompts, each asked twice with one outcome: sums of deviations ±1, so √(2/1 · (1 + 1)) / 4 = ½, where four
    # independent comparisons would give √(1/3) / 2.
    found = win_rate(table([1, 1, 0, 0], prompts=["x", "x", "y", "y"]))
    assert found.rate.standard_error == pytest.approx(0.5)
    assert found.independent_error == pytest.approx(math.sqrt(1 / 3) / 2)


def test_two_orders_that_disagree_are_a_draw_whatever_their_mean():
    first, second = [1, 0.9, 0.4, 0.5, 0.5, 0.2], [1, 0.2, 0.1, 0.5, 0.9, 0.9]
    assert outcomes(table(first, second)).tolist() == [1, 0.5, 0, 0.5, 0.5, 0.5]
    found = win_rate(table(first, second))
    assert (found.wins, found.losses, found.draws) == (1, 1, 4)
    assert found.rate.value == pytest.approx((1 + 0.55 + 0.25 + 0.5 + 0.7 + 0.55) / 6)


def test_a_comparison_with_a_verdict_in_one_order_only_is_left_out():
    found = win_rate(table([1, 1, NAN, 0], [1, NAN, 1, 0]))
    assert (found.rate.value, found.rate.n, found.wins, found.losses, found.draws) == (0.5, 2, 1, 1, 0)


def test_one_prompt_has_a_rate_without_an_error():
    found = win_rate(table([0.75]))
    assert found.rate.value == 0.75
    assert math.isnan(found.rate.standard_error)
    assert math.isnan(found.independent_error)


def test_no_verdict_is_no_rate():
    with pytest.raises(ValueError, match="no comparison has a verdict"):
        win_rate(table([NAN, NAN]))


verdicts = st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0, NAN])


@given(st.lists(st.tuples(st.integers(0, 3), verdicts, verdicts), min_size=1, max_size=30))
@settings(deadline=None, max_examples=100)
def test_win_rate_is_the_plain_loop_and_swapping_the_sides_mirrors_it(rows):
    judged = [row for row in rows if not math.isnan(row[1] + row[2])]
    second = [row[2] for row in rows]
    if not judged or all(map(math.isnan, second)):
        return
    prompts = [str(row[0]) for row in rows]
    found = win_rate(table([row[1] for row in rows], second, prompts))
    wins = sum(x > 0.5 and y > 0.5 for _, x, y in judged)
    losses = sum(x < 0.5 and y < 0.5 for _, x, y in judged)
    assert (found.wins, found.losses, found.draws) == (wins, losses, len(judged) - wins - losses)
    assert found.rate.value == pytest.approx(sum(x + y for _, x, y in judged) / 2 / len(judged))

    mirrored = win_rate(table([1 - row[2] for row in rows], [1 - row[1] for row in rows], prompts))
    assert mirrored.rate.value == pytest.approx(1 - found.rate.value)
    assert mirrored.discrete == pytest.approx(1 - found.discrete)

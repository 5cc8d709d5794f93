"""What n prompts can show, by hand and by simulation."""

import numpy as np
import pytest

from posttrain.core.statistics import paired_difference
from posttrain.llm_judge.statistics.power import detectable_difference, prompts_needed, sensitivity


def test_805_verdicts_show_five_points():
    # 2.8016 · 0.5 / √805 = 0.04937.
    assert detectable_difference(805) == pytest.approx(0.04937, abs=1e-5)


def test_five_points_take_785_prompts():
    # (2.8016 · 0.5 / 0.05)² = 784.9; either sign.
    assert prompts_needed(0.05) == prompts_needed(-0.05) == 785
    assert detectable_difference(785) < 0.05 < detectable_difference(784)


def test_sensitivity_is_from_the_observed_spread():
    # Prompts of 1 and ½ alternately: standard deviation ¼ · √(100/99), mean ¾.
    found = sensitivity([1, 0.5] * 50 + [np.nan], list(range(101)))
    assert found.prompts == 100
    assert found.standard_deviation == pytest.approx(0.25 * np.sqrt(100 / 99))
    assert found.difference == pytest.approx(2.8016 * 0.25126 / 10, abs=1e-4)
    assert found.prompts_needed == prompts_needed(0.25, found.standard_deviation) == 8
    assert "With 100 prompts a true win rate 7.0 points from 50 %" in found.sentence
    assert found.sentence.endswith("To find the one observed takes 8.")


def test_copies_of_a_prompt_show_no_more():
    values = np.random.default_rng(0).choice([0, 0.5, 1], 90)
    once, twice = sensitivity(values, list(range(90))), sensitivity(np.tile(values, 2), list(range(90)) * 2)
    assert twice.difference == pytest.approx(once.difference)


def test_a_rate_of_one_half_asks_for_no_number_of_prompts():
    assert sensitivity([1, 0, 1, 0], list("pqrs")).prompts_needed is None


def test_too_few_prompts_show_no_rate_beyond_all_and_nothing():
    # Means 1 and ½: a standard deviation of √2/4, so 2.8016 / 4 = 0.70 beyond ½.
    found = sensitivity([1, 0.5], ["p", "q"])
    assert found.difference == pytest.approx(2.8016 / 4, abs=1e-4)
    assert found.sentence.startswith("With 2 prompts no true win rate, not even 100 %, would be found in four of five")
    # (2.8016 · 0.35355 / 0.5)² = 3.92.
    assert found.sentence.endswith("It takes 4 at least.")


def test_prompts_that_prefer_alike_have_no_spread_to_say_anything_from():
    found = sensitivity([0.5] * 24, list(range(24)))
    assert found.difference == 0
    assert found.sentence.startswith("All of these 24 prompts have the same preference")
    assert "points" not in found.sentence


def test_prompts_that_are_needed_find_the_difference_in_four_of_five():
    rng, n = np.random.default_rng(1), prompts_needed(0.08)
    half = np.full(n, 0.5)
    found = [
        paired_difference((rng.random(n) < 0.58).astype(float), half, range(n)).p_value < 0.05 for _ in range(1000)
    ]
    assert 0.76 <= np.mean(found) <= 0.84


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="0 prompts show nothing"):
        detectable_difference(0)

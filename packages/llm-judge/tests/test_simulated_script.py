"""The scripted judge over a thousand matches, as arrays: equal models are told apart in 5 % of them, its position bias
is found, and the length-controlled rate is what it would have said without its taste for length."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from posttrain.llm_judge.comparisons import Comparison, Game
from posttrain.llm_judge.judges.qualities import hashed
from posttrain.llm_judge.judges.script import Script
from posttrain.llm_judge.statistics.bias import bias_report
from posttrain.llm_judge.statistics.length_controlled import length_controlled
from posttrain.llm_judge.statistics.win_rate import win_rate

sys.path.insert(0, str(Path(__file__).parent))
from scripted_pairs import log_odds, scripted_pairs

MATCHES = 1000
PROMPTS = 150
BIASED = Script(position_bias=0.8, length_bias=1.5, length_scale=120, noise=0.7, garbage_rate=0.04, stubborn=0.5)


@pytest.mark.parametrize("form", ["tanh", "linear"])
def test_the_arrays_are_what_the_script_says_of_texts(form):
    script = Script(position_bias=0.8, length_bias=1.5, length_scale=7, length_form=form)
    quality, rng = hashed(), np.random.default_rng(30)
    for number in range(20):
        a, b = (letter * int(rng.integers(1, 40)) for letter in "ab")
        comparison = Comparison(questions=(f"{number}?",), answers_a=(a,), answers_b=(b,))
        better = quality.of(f"{number}?", b) - quality.of(f"{number}?", a)
        said = log_odds(script, np.array([better]), np.array([len(b) - len(a)]))[:, 0]
        # What the script says is that the second is better, which is A in the order ba.
        assert said[0] == pytest.approx(script.log_odds(Game(comparison, "ab"), "00", quality))
        assert said[1] == pytest.approx(-script.log_odds(Game(comparison, "ba"), "00", quality))


@pytest.mark.parametrize(
    "kind",
    [{}, {"comparisons": 4, "of_prompt": 1.0}, {"drawn": True}],
    ids=["one comparison a prompt", "four", "by verdicts"],
)
def test_equal_models_are_told_apart_in_5_percent_of_the_matches(kind):
    """By the win rate, by the length-controlled one, and by the latter with the difficulty of each prompt."""
    rng = np.random.default_rng(31)
    told_apart: dict[str, list[bool]] = {"win rate": [], "length-controlled": [], "with difficulty": []}
    for _ in range(MATCHES):
        pairs, difficulty = scripted_pairs(rng, BIASED, PROMPTS, **kind)
        rates = {"win rate": win_rate(pairs).rate, "length-controlled": length_controlled(pairs).rate}
        if difficulty.any():
            rates["with difficulty"] = length_controlled(pairs, difficulty).rate
        for name, rate in rates.items():
            low, high = rate.interval
            told_apart[name].append(not low <= 0.5 <= high)
    shares = {name: np.mean(apart) for name, apart in told_apart.items() if apart}
    assert all(0.035 <= share <= 0.065 for share in shares.values()), shares


@pytest.mark.parametrize(("noise", "unlisted"), [(0.3, 0.0), (1.5, 0.0), (1.5, 0.001), (1.5, 0.02)])
def test_the_position_bias_lies_in_its_interval_whatever_the_noise_of_the_games(noise, unlisted):
    """Also where the probability of a label is so small that the server does not list it, which makes it 0."""
    script, rng = BIASED.model_copy(update={"noise": noise}), np.random.default_rng(33)
    inside = []
    for _ in range(MATCHES):
        pairs, _ = scripted_pairs(rng, script, PROMPTS, comparisons=2, of_prompt=1.0)
        first, second = (
            np.where(games < unlisted, 0.0, np.where(games > 1 - unlisted, 1.0, games))
            for games in (pairs.first, pairs.second)
        )
        low, high = bias_report(replace(pairs, first=first, second=second)).position_log_odds.interval
        # The script's is towards the second, the report's towards the first.
        inside.append(low <= -script.position_bias <= high)
    assert 0.93 <= np.mean(inside) <= 0.97


@pytest.mark.parametrize("better", [0.0, 0.7])
@pytest.mark.parametrize("form", ["tanh", "linear"])
def test_length_control_gives_the_rate_of_the_judge_without_its_length_bias(better, form):
    biased = Script(position_bias=0.5, length_bias=1.5, length_scale=120, length_form=form)
    kind = {"better": better, "longer": 0.5}
    without = biased.model_copy(update={"length_bias": 0.0})
    rng = np.random.default_rng(32)
    true = float(np.mean(scripted_pairs(rng, without, 400_000, **kind)[0].preference))
    with_bias = float(np.mean(scripted_pairs(rng, biased, 400_000, **kind)[0].preference))
    assert with_bias - true > 0.05
    found = [length_controlled(scripted_pairs(rng, biased, PROMPTS, **kind)[0]).rate for _ in range(MATCHES)]
    covered = np.mean([rate.interval[0] <= true <= rate.interval[1] for rate in found])
    assert 0.93 <= covered <= 0.97
    assert np.mean([rate.value for rate in found]) == pytest.approx(true, abs=0.01)

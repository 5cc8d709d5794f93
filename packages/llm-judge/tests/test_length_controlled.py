"""The length-controlled win rate: derived by hand, of judges whose rate is known, and where there is none."""

import math

import numpy as np
import pytest
from scipy.special import expit

from posttrain.llm_judge.statistics.difficulty import fit_difficulty
from posttrain.llm_judge.statistics.length_controlled import equal_length_rate, length_controlled
from posttrain.llm_judge.statistics.pairs import Pairs


def table(preference, longer, prompts=None) -> Pairs:
    n = len(preference)
    unknown = np.full(n, math.nan)
    return Pairs(
        np.array(preference, dtype=float),
        None,
        prompts or [f"p{number}" for number in range(n)],
        np.full(n, 1000.0),
        1000.0 + np.array(longer, dtype=float),
        unknown,
    )


def test_rate_weights_and_error_by_hand():
    # Δ = ±100 twice: s = 100 · √(4/3), tanh(Δ/s) = ±tanh(√3/2). Longer answers win with mean 0.9 (odds 9), shorter
    # ones with 0.2 (odds ¼): σ(θ ± φ·t) meets both, so θ = ln √(9/4), the rate is 1.5 / 2.5, and φ·t = ln √(9·4).
    found = length_controlled(table([1, 0.8, 0.4, 0], [100, 100, -100, -100]))
    assert found.length_spread == pytest.approx(100 * math.sqrt(4 / 3))
    assert found.theta == pytest.approx(math.log(1.5))
    assert found.phi == pytest.approx(math.log(6) / math.tanh(math.sqrt(3) / 2))
    assert found.psi is None
    assert found.rate.value == pytest.approx(0.6)
    # θ is the mean of the two groups' log-odds, whose derivatives are 1/0.09 and 1/0.16; the rate's is 0.24. So the
    # values are 0.6 ± 0.24/0.09 · 0.1 and 0.6 ± 0.24/0.16 · 0.2, and the error is s / √4.
    squares = 2 * (0.8 / 3) ** 2 + 2 * 0.3**2
    assert found.rate.standard_error == pytest.approx(math.sqrt(squares / 3 / 4))


# Preferences that are met to the last digit look separated to statsmodels.
@pytest.mark.filterwarnings("ignore:Perfect separation")
def test_preferences_that_follow_the_model_give_its_weights_and_the_error_of_the_instructions():
    difficulty = np.array([-1.5, -0.4, 0.0, 0.6, 1.1, 2.0])
    longer = np.array([50, -300, 120, 400, -20, 10])
    spread = longer.std(ddof=1)
    preference = expit(-0.7 + 1.3 * difficulty + 0.5 * np.tanh(longer / spread))
    found = length_controlled(table(preference, longer), difficulty)
    assert (found.theta, found.psi, found.phi) == pytest.approx((-0.7, 1.3, 0.5), abs=1e-6)
    expected = expit(-0.7 + 1.3 * difficulty)
    assert found.rate.value == pytest.approx(expected.mean())
    assert found.rate.standard_error == pytest.approx(expected.std(ddof=1) / math.sqrt(6), abs=1e-6)
    from_weights = equal_length_rate(-0.7, 1.3, difficulty, "abcdef")
    assert from_weights.value == pytest.approx(found.rate.value)
    assert from_weights.standard_error == pytest.approx(found.rate.standard_error, abs=1e-6)


def test_a_comparison_without_verdict_is_predicted_and_not_fitted():
    preference = [0.9, 0.4, 0.7, 0.2, 0.6, 0.5]
    longer, difficulty = [100, -50, 30, -80, 10, 60], np.array([1.0, -1.0, 0.5, 0.0, 0.2, -0.3])
    whole = length_controlled(table(preference, longer), difficulty)
    # Nor is its length known, so that the standard deviation of the others stays.
    more = table([*preference, math.nan], [*longer, math.nan])
    found = length_controlled(more, np.append(difficulty, 3.0))
    assert (found.theta, found.psi, found.phi) == pytest.approx((whole.theta, whole.psi, whole.phi))
    assert found.rate.value == pytest.approx((6 * whole.rate.value + expit(whole.theta + 3 * whole.psi)) / 7)


def test_simulated_judge_with_a_taste_for_length_has_the_rate_of_one_without():
    """B wins less than it seems: the interval holds the true rate, over which the plain win rate lies far."""
    population = np.random.default_rng(0).normal(size=400_000)
    true = expit(-1 + 1.2 * population).mean()
    covered, values = 0, []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        difficulty, longer = rng.normal(size=250), rng.normal(150, 200, size=250)
        likes = expit(-1 + 1.2 * difficulty + 0.9 * np.tanh(longer / 200))
        found = length_controlled(table(rng.random(250) < likes, longer), difficulty).rate
        covered += abs(found.value - true) < 1.96 * found.standard_error
        values.append(found.value)
    assert np.mean(values) == pytest.approx(true, abs=0.005)
    # 95 % within three standard errors of 400 runs.
    assert 0.917 <= covered / 400 <= 0.983


@pytest.mark.parametrize(
    ("preference", "longer", "difficulty", "message"),
    [
        ([1, 0, 1], [9, 5, 1], None, None),
        ([1, 0], [9, 5], None, "2 comparisons with a verdict are too few for 2 weights"),
        ([1, 0, 1, 0], [7, 7, 7, 7], None, "differences in length are all alike"),
        ([1, 0, 1, 0], [1, 2, 3, 4], [2, 2, 2, 2], "difficulty is alike for all instructions"),
        ([1, 0, 1, 0], [1, 2, 3, 4], [2, math.nan, 2, 2], "1 of 4 difficulties are not known"),
        ([1, 1, 1, 1], [1, 2, 3, 4], None, "separate the wins from the losses"),
        ([0, 0, 1, 1], [1, 2, 3, 4], None, "separate the wins from the losses"),
        ([0, 0.5, 1, 1], [1, 2, 3, 4], None, "separate the wins from the losses"),
        # One preference between them on the wrong side of the border, and there is an answer.
        ([0, 0.5, 0.3, 1], [1, 2, 3, 4], None, None),
    ],
)
def test_what_has_no_answer_is_refused(preference, longer, difficulty, message):
    if message is None:
        assert 0 < length_controlled(table(preference, longer), difficulty).rate.value < 1
        return
    with pytest.raises(ValueError, match=message):
        length_controlled(table(preference, longer), difficulty)


def test_difficulties_that_all_models_share_are_found_again():
    gamma = np.array([-1.2, -0.3, 0.1, 0.4, 1.0])
    models = []
    for theta, phi, longer in [(-1, 0.8, [3, -2, 8, 1, 5]), (0.5, 0.2, [-4, 4, 9, 2, -7]), (0, 0, [1, 6, -5, 3, 2])]:
        preference = expit(theta + gamma + phi * np.tanh(np.array(longer) / np.std(longer, ddof=1)))
        models.append(table(preference, longer))
    found = fit_difficulty(models, prior=math.inf)
    assert list(found) == ["p0", "p1", "p2", "p3", "p4"]
    assert np.array(list(found.values())) == pytest.approx(gamma, abs=1e-4)


def test_an_instruction_that_every_model_loses_has_a_difficulty_by_its_prior_only():
    longer = [1, 3, -2, 5]
    models = [table([0, 1, 0.5, 0.2], longer), table([0, 0, 0.6, 0.1], longer)]
    with pytest.raises(ValueError, match="1 of 4 instructions are lost or won by every model.*'p0'"):
        fit_difficulty(models, prior=math.inf)
    found = fit_difficulty(models)
    assert min(found, key=found.__getitem__) == "p0"
    assert sum(found.values()) == pytest.approx(0)
    with pytest.raises(ValueError, match="at least two"):
        fit_difficulty(models[:1])


def test_rates_with_fitted_difficulties_are_those_of_the_models():
    population = np.random.default_rng(1).normal(size=100_000)
    covered, simulations = 0, range(12)
    for seed in simulations:
        rng = np.random.default_rng(seed)
        gamma = 1.5 * rng.normal(size=200)
        models, true = [], []
        for _ in range(8):
            theta, psi, phi = rng.normal(-0.5, 0.7), rng.uniform(0.6, 1.4), rng.uniform(0, 1.5)
            longer = rng.normal(100 * rng.normal(), 200, size=200)
            likes = expit(theta + psi * gamma + phi * np.tanh(longer / 200))
            models.append(table(rng.random(200) < likes, longer))
            true.append(expit(theta + 1.5 * psi * population).mean())
        fitted = np.array(list(fit_difficulty(models).values()))
        assert np.corrcoef(fitted, gamma)[0, 1] > 0.75
        found = [length_controlled(model, fitted).rate for model in models]
        covered += sum(
            abs(rate.value - value) < 1.96 * rate.standard_error for rate, value in zip(found, true, strict=True)
        )
    # The models of one simulation share their instructions, so that 96 rates are fewer independent ones.
    assert covered / (8 * len(simulations)) >= 0.87

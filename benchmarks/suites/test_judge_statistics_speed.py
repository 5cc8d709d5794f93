"""Micro: what is computed from judgements: a match's table and all that is said of it, ratings, stopping early."""

import os
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from posttrain.llm_judge.annotations import tabulate
from posttrain.llm_judge.comparisons import Comparison, Game
from posttrain.llm_judge.judgements import Decision, Judgement
from posttrain.llm_judge.scores import scores
from posttrain.llm_judge.statistics.bradley_terry import Tournament, ratings
from posttrain.llm_judge.statistics.pairs import Pairs
from posttrain.llm_judge.statistics.sequential import confidence_sequence

PAIRS = 200 if os.environ.get("BENCHMARK_QUICK") == "1" else 5_000
MODELS, PROMPTS, DRAWS = 20, 200, 200
JUDGE = {"judge": "chat", "request": {"model": "judge"}}


@pytest.fixture(scope="module")
def judged() -> list[tuple[Judgement, Game]]:
    """Both games of each comparison, with probabilities."""
    rng, games = np.random.default_rng(0), []
    for number in range(PAIRS):
        answers = {"answers_a": ("a" * int(rng.integers(9, 999)),), "answers_b": ("b" * int(rng.integers(9, 999)),)}
        comparison = Comparison(questions=(f"{number}?",), **answers)
        for order in ("ab", "ba"):
            said = Decision("M", float(rng.random()), "M")
            games.append((Judgement("", JUDGE, order, said, 0.0), Game(comparison, order)))
    return games


@pytest.fixture(scope="module")
def pairs(judged: list[tuple[Judgement, Game]]) -> Pairs:
    (table,) = tabulate(judged)
    return table.pairs


@pytest.mark.benchmark(group="judge")
def test_a_match_to_its_table(measure: Any, judged: list[tuple[Judgement, Game]]) -> None:
    """Two games to a row: done once at the end, and at each look where a match may stop early."""
    (table,) = measure(lambda: tabulate(judged), work=PAIRS, unit="pairs")
    assert len(table.pairs.prompts) == PAIRS


@pytest.mark.benchmark(group="judge")
def test_all_that_is_said_of_a_match(measure: Any, pairs: Pairs) -> None:
    """Rates, length control with difficulties, bias report."""
    difficulty = np.random.default_rng(1).normal(size=PAIRS)
    said = measure(lambda: scores(pairs, difficulty), work=PAIRS, unit="pairs")
    assert said["n_total"] == PAIRS
    assert said["length_controlled_win_rate"] is not None


@pytest.mark.benchmark(group="judge")
def test_ratings_of_many_models(measure: Any) -> None:
    """20 models, each against each on 200 prompts, with intervals from 200 resamples of the prompts."""
    rng, strength = np.random.default_rng(2), np.linspace(-1, 1, MODELS)
    a, b = (side.repeat(PROMPTS) for side in np.triu_indices(MODELS, 1))
    prompts = [f"p{number % PROMPTS}" for number in range(len(a))]
    preference = expit(strength[b] - strength[a] + rng.normal(size=len(a)))
    tournament = Tournament([f"m{i:02}" for i in a], [f"m{i:02}" for i in b], preference, prompts)
    found = measure(lambda: ratings(tournament, draws=DRAWS), work=len(a), unit="pairs", rounds=5)
    assert found[0].model == f"m{MODELS - 1:02}"


@pytest.mark.benchmark(group="judge")
def test_confidence_sequence(measure: Any) -> None:
    """Bounds after each of 5,000 prompts."""
    values = np.random.default_rng(3).random(PAIRS)
    lower, upper = measure(lambda: confidence_sequence(values), work=PAIRS, unit="prompts")
    assert lower[-1] < 0.5 < upper[-1]

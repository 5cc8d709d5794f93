"""Matches by the scripted judge, whose inclinations are known: equal models get 50 % whatever its position bias, its
biases are found, length control takes its taste for length away, and a server says what the object says.

The script draws from the texts, so that each match here always ends the same way; how often intervals hold over a
thousand matches is in test_simulated_script.py and test_statistics_simulated_judge.py.
"""

import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest

from posttrain.llm_judge.comparisons import Comparison
from posttrain.llm_judge.judges.chat import ChatJudge, ChatSettings
from posttrain.llm_judge.judges.completions import ChatServer
from posttrain.llm_judge.judges.qualities import Quality, hashed
from posttrain.llm_judge.judges.script import Script
from posttrain.llm_judge.judges.scripted import ScriptedJudge
from posttrain.llm_judge.matches import Match, Played, pairs_of, play
from posttrain.llm_judge.protocols import load_protocol
from posttrain.llm_judge.running.limits import Limits, LimitSettings
from posttrain.llm_judge.scores import scores
from posttrain.llm_judge.statistics.bias import BiasReport, bias_report
from posttrain.llm_judge.statistics.estimates import IntervalEstimate
from posttrain.llm_judge.statistics.length_controlled import length_controlled
from posttrain.llm_judge.statistics.sequential import clear_after, prompt_means
from posttrain.llm_judge.statistics.win_rate import win_rate
from posttrain.llm_judge.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from scripted_pairs import lengths, scripted_pairs
from scripted_service import scripted_service

ALPACA = load_protocol("alpaca")
BIASED = Script(position_bias=0.8, length_bias=1.5, length_scale=120, garbage_rate=0.1, stubborn=0.5)


def comparisons(n: int, *, longer: float = 0.0, seed: int = 0) -> list[Comparison]:
    """`n` of them, each of a prompt of its own, with answers as long as `lengths` draws them."""
    drawn = lengths(np.random.default_rng(seed), n, longer).astype(int).T
    texts = [
        [f"{who}{number} ".ljust(size, "x") for who, size in zip("ab", row, strict=True)]
        for number, row in enumerate(drawn)
    ]
    return [
        Comparison(questions=(f"{seed}, {number}?",), answers_a=(a,), answers_b=(b,))
        for number, (a, b) in enumerate(texts)
    ]


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store.db") as opened:
        yield opened


def match(some: list[Comparison], script: Script, store: Store, quality: Quality | None = None, **how: bool) -> Played:
    judge = ScriptedJudge(ALPACA, script, quality or hashed())
    return asyncio.run(play(Match(some, ALPACA), judge, store, Limits(), **how))


def holds(estimate: IntervalEstimate, value: float) -> bool:
    return estimate.interval[0] <= value <= estimate.interval[1]


@pytest.mark.parametrize("position_bias", [0.0, 0.8, -3.0])
def test_equal_models_win_half_whatever_the_position_bias(position_bias, store):
    played = match(comparisons(300), Script(position_bias=position_bias, noise=0.5), store)
    pairs = pairs_of(played.judged)
    assert holds(win_rate(pairs).rate, 0.5)
    # One order alone would have it wrong.
    assert position_bias == 0 or abs(np.mean(pairs.first) - 0.5) > 0.1


def figures(report: BiasReport) -> dict[str, IntervalEstimate | None]:
    names = ("unparsed", "consistency", "first_position", "position_log_odds", "length_correlation")
    return {name: getattr(report, name) for name in names}


def test_the_bias_report_finds_what_the_script_has(store):
    """The truth of each figure is that of a match of 400,000 prompts."""
    script = BIASED.model_copy(update={"noise": 1.0})
    report = bias_report(pairs_of(match(comparisons(400), script, store).judged))
    true = figures(bias_report(scripted_pairs(np.random.default_rng(40), script, 400_000)[0]))
    missed = [name for name, figure in figures(report).items() if not holds(figure, true[name].value)]
    assert not missed, (missed, report)
    assert holds(report.position_log_odds, -script.position_bias)
    assert true["unparsed"].value == pytest.approx(0.1 * 0.5, abs=0.001)
    assert report.length_correlation.interval[0] > 0


def test_without_noise_the_position_bias_is_found_to_the_last_digit(store):
    """Whatever the qualities and lengths. The script's is towards the second, the report's towards the first."""
    report = bias_report(pairs_of(match(comparisons(50), BIASED, store).judged))
    assert report.position_log_odds.value == pytest.approx(-0.8, abs=1e-9)


def test_length_control_takes_a_taste_for_length_away(store):
    some = comparisons(400, longer=0.5)
    biased, fair = (
        match(some, Script(position_bias=0.5, length_bias=bias, length_scale=120, noise=0.5), store)
        for bias in (1.5, 0.0)
    )
    true = win_rate(pairs_of(fair.judged)).rate.value
    pairs = pairs_of(biased.judged)
    assert not holds(win_rate(pairs).rate, true)
    assert holds(length_controlled(pairs).rate, true)
    assert holds(length_controlled(pairs_of(fair.judged)).rate, true)


BETTER = Quality("B by 1.5", lambda _, answer: 1.5 * answer.startswith("b"))


@pytest.mark.parametrize(("quality", "seed"), [(BETTER, 1), *((hashed(), seed) for seed in range(2, 6))])
def test_a_match_stops_where_the_whole_of_it_was_clear_first(quality, seed, store):
    """So that it errs as often as `clear_after` over all prompts does, looked at after every one of them."""
    script, some = Script(position_bias=0.5, noise=1.0), comparisons(60, seed=seed)
    stopped = match(some, script, store, quality, stop_when_clear=True)
    asked = stopped.report.tally.asked
    whole = pairs_of(match(some, script, store, quality).judged)
    assert stopped.clear == clear_after(prompt_means(whole))
    assert (stopped.clear is None) == (asked == 120)
    assert (stopped.clear is not None) == (quality is BETTER)
    taken = stopped.clear.prompts if stopped.clear else 60
    assert len({game.comparison.prompt_id for _, game in stopped.judged}) == taken


@pytest.mark.service
@pytest.mark.long
def test_a_server_says_what_the_object_says(store, tmp_path):
    """So that all that simulations show holds over HTTP: the same verdicts, and so the same rates and biases."""
    some, script = comparisons(150, longer=0.3), BIASED.model_copy(update={"noise": 0.7})
    options = {name: getattr(script, name) for name in ("position_bias", "length_bias", "length_scale", "noise")}
    options |= {"garbage": script.garbage_rate, "stubborn": script.stubborn}
    arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]

    async def over_http(url: str) -> Played:
        limits = Limits(LimitSettings(concurrency=16))
        async with ChatJudge(ChatSettings(model="scripted"), ALPACA, ChatServer(limits, base_url=f"{url}/v1")) as judge:
            return await play(Match(some, ALPACA), judge, store, limits)

    with scripted_service(tmp_path / "log.jsonl", *arguments) as url:
        served = asyncio.run(over_http(url))
    made = match(some, script, store)
    assert [said.decision.value for said, _ in served.judged] == [said.decision.value for said, _ in made.judged]
    assert scores(pairs_of(served.judged)) == scores(pairs_of(made.judged))
    assert served.report.tally.unparsed == made.report.tally.unparsed > 0

"""A run of a judge: nothing is asked twice, nothing that was answered is lost, whatever ends it."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from posttrain.core.clients import ServiceUnavailable
from posttrain.core.errors import RequestError, WorkError
from posttrain.llm_judge.comparisons import Comparison, Game
from posttrain.llm_judge.judgements import Decision, Judgement, JudgeRefused, judgement_key, judgement_keys
from posttrain.llm_judge.running import asking
from posttrain.llm_judge.running.interruption import run_until_interrupted
from posttrain.llm_judge.running.limits import BudgetSpent, Limits, LimitSettings
from posttrain.llm_judge.running.progress import Bar, Estimate, Tally
from posttrain.llm_judge.running.runner import begin_order, judge_games
from posttrain.llm_judge.store import Store


class FakeJudge:
    """Prefers the longer answer, after `seconds`; `trouble(game)` may raise first."""

    identity = {"judge": "fake"}

    def __init__(self, seconds=0.0, trouble=lambda game: None, cost=0.01):
        self.seconds, self.trouble, self.cost = seconds, trouble, cost
        self.asked, self.ended, self.at_once, self.most_at_once = [], 0, 0, 0

    async def decide(self, game):
        self.asked.append(game)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.seconds(game) if callable(self.seconds) else self.seconds)
            self.trouble(game)
        finally:
            self.at_once -= 1
        self.ended += 1
        (first,), (second,) = game.shown
        value = 0.5 if len(first) == len(second) else float(len(second) > len(first))
        return Decision("x", value, "said x", 10, 1, self.cost)

    def expected(self, game):
        return 12, 3, self.cost


def fails_after(games, error):
    judge = FakeJudge(seconds=0.001)

    def trouble(game):
        if len(judge.asked) > games:
            raise error

    judge.trouble = trouble
    return judge


def comparison(number, a="short", b="longer answer"):
    return Comparison(questions=(f"question {number}",), answers_a=(a,), answers_b=(b,))


def both(*comparisons):
    return [Game(one, order) for one in comparisons for order in ("ab", "ba")]


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store.db") as opened:
        yield opened


def run(games, judge, store, *, concurrency=4, **options):
    limits = Limits(LimitSettings(concurrency=concurrency))
    return asyncio.run(asyncio.wait_for(judge_games(games, judge, store, limits, **options), 120))


def test_everything_is_judged_stored_and_told(store):
    games, judge = both(*map(comparison, range(10))), FakeJudge()
    report = run(games, judge, store)
    assert report.ended == "done"
    assert report.complete
    assert [judgement.preference for judgement in report.judgements] == [1.0] * 20
    assert store.get(judgement_keys(judge.identity, games)).keys() == {judgement.key for judgement in report.judgements}
    assert report.estimate == Estimate(20, 0, 20, 240, 60, pytest.approx(0.2))
    tally = report.tally
    assert (tally.total, tally.asked, tally.stored, tally.failed, tally.unparsed) == (20, 20, 0, 0, 0)
    assert (tally.prompt_tokens, tally.completion_tokens, tally.cost) == (200, 20, pytest.approx(0.2))
    assert report.failure_line() is None


def test_what_is_stored_is_not_asked_in_any_later_run_and_order(store):
    games = both(*map(comparison, range(10)))
    run(games[:12], FakeJudge(), store)
    judge = FakeJudge()
    report = run(games[::-1], judge, store)
    assert {judgement_key(judge.identity, game) for game in judge.asked} == set(
        judgement_keys(judge.identity, games[12:])
    )
    assert (report.tally.stored, report.tally.asked, report.estimate.stored) == (12, 8, 12)
    assert report.complete
    again = FakeJudge()
    run(games, again, store)
    assert again.asked == []


def test_equal_games_are_asked_once_and_read_by_each_in_its_own_order(store):
    one, swapped = comparison(1), comparison(1, a="longer answer", b="short")
    judge = FakeJudge()
    games = [Game(one, "ab"), Game(one, "ab"), Game(swapped, "ba"), Game(swapped, "ab")]
    report = run(games, judge, store)
    assert len(judge.asked) == 2
    # In the third, A is what B is in the first: the same words are preferred, so now it is A that wins.
    assert [judgement.preference for judgement in report.judgements] == [1.0, 1.0, 0.0, 0.0]
    assert report.tally.total == 2


def test_replicates_are_asked_each(store):
    judge = FakeJudge()
    run([Game(comparison(1), "ab", replicate=replicate) for replicate in range(3)], judge, store)
    assert len(judge.asked) == 3


def test_as_many_at_once_as_the_limit_says_and_both_orders_near_each_other(store):
    comparisons = list(map(comparison, range(30)))
    games = [Game(one, "ab") for one in comparisons] + [Game(one, "ba") for one in comparisons]
    judge = FakeJudge(seconds=0.002)
    run(games, judge, store, concurrency=6)
    assert judge.most_at_once == 6
    places = {}
    for place, game in enumerate(judge.asked):
        places.setdefault(game.comparison.prompt_id, []).append(place)
    assert all(second - first == 1 for first, second in places.values())


def test_answers_that_wait_for_the_disk_may_leave_their_places_to_others(store, monkeypatch):
    waiting, most = 0, 0
    keep = Store.aput

    async def slow(self, judgement, game):
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0.02)
        waiting -= 1
        return await keep(self, judgement, game)

    monkeypatch.setattr(Store, "aput", slow)
    judge, games = FakeJudge(seconds=0.01), both(*map(comparison, range(30)))
    limits = Limits(LimitSettings(concurrency=4, unkept=6))
    report = asyncio.run(judge_games(games, judge, store, limits))
    assert report.complete
    assert judge.most_at_once == 4
    assert 6 <= most <= 10


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), max_size=20))
def test_begin_order_keeps_prompts_and_comparisons_together(made):
    comparisons = {(p, c): comparison(p, a=f"answer {c}") for p in range(5) for c in range(2)}
    games = [Game(comparisons[pair], "ab") for pair in made]
    order = begin_order(games)
    assert sorted(order) == list(range(len(games)))
    pairs = [made[place] for place in order]
    for group in (pairs, [prompt for prompt, _ in pairs]):
        runs = [one for place, one in enumerate(group) if place == 0 or group[place - 1] != one]
        assert len(runs) == len(set(runs))
    first = list(dict.fromkeys(prompt for prompt, _ in made))
    assert list(dict.fromkeys(prompt for prompt, _ in pairs)) == first


def test_a_game_that_fails_is_named_and_the_next_call_asks_only_it(store):
    def trouble(game):
        if game.comparison.questions == ("question 3",) and game.order == "ba":
            raise WorkError("the context is too long")

    games = both(*map(comparison, range(10)))
    report = run(games, FakeJudge(trouble=trouble), store)
    assert report.ended == "done"
    assert not report.complete
    assert (report.tally.asked, report.tally.failed) == (19, 1)
    assert report.judgements[7] is None
    assert "1 games have no answer" in report.failure_line()
    assert "the context is too long" in report.failure_line()
    judge = FakeJudge()
    assert run(games, judge, store).complete
    assert judge.asked == [games[7]]


def test_a_judge_that_refuses_ends_the_run_and_keeps_what_was_answered(store):
    judge = fails_after(30, JudgeRefused("set OPENAI_API_KEY"))
    games = both(*map(comparison, range(200)))
    with pytest.raises(JudgeRefused, match="OPENAI_API_KEY"):
        run(games, judge, store)
    assert len(judge.asked) < 50
    assert len(store.get(judgement_keys(judge.identity, games))) == judge.ended


def test_an_answer_that_another_run_stored_first_is_the_one_that_counts(store):
    game = Game(comparison(0), "ab")

    def another_run_is_faster(asked):
        other = Decision("y", 0.25, "said y", 10, 1, 0.01)
        key = judgement_key(FakeJudge.identity, asked)
        assert store.put(Judgement(key, FakeJudge.identity, "ab", other, 1.0), asked)

    report = run([game], FakeJudge(trouble=another_run_is_faster), store)
    (judgement,) = report.judgements
    assert judgement.decision.value == 0.25


def test_a_server_that_is_gone_ends_the_run_after_some_games(store):
    def gone(game):
        raise ServiceUnavailable("no answer in 8 attempts")

    judge = FakeJudge(trouble=gone)
    with pytest.raises(WorkError, match="10 games in a row .* no answer in 8 attempts"):
        run(both(*map(comparison, range(500))), judge, store)
    assert len(judge.asked) < 30


def test_single_games_without_an_answer_do_not_end_the_run(store):
    def now_and_then(game):
        if int(game.comparison.questions[0].split()[1]) % 2:
            raise ServiceUnavailable("no answer")

    report = run(both(*map(comparison, range(60))), FakeJudge(trouble=now_and_then), store)
    assert (report.tally.asked, report.tally.failed) == (60, 60)


def test_a_budget_that_is_spent_ends_the_run_without_a_failure(store):
    judge = fails_after(20, BudgetSpent("no money"))
    games = both(*map(comparison, range(100)))
    report = run(games, judge, store)
    assert report.ended == "budget"
    assert report.failures == []
    assert report.tally.asked == judge.ended == len(store.get(judgement_keys(judge.identity, games)))
    judge = FakeJudge()
    assert run(games, judge, store).tally.asked == 200 - report.tally.asked


def test_an_error_of_the_program_is_not_swallowed_and_loses_nothing(store):
    def defect(game):
        if game.comparison.questions == ("question 5",):
            raise ZeroDivisionError

    judge = FakeJudge(trouble=defect)
    games = both(*map(comparison, range(20)))
    with pytest.raises(ZeroDivisionError):
        run(games, judge, store)
    assert len(store.get(judgement_keys(judge.identity, games))) == judge.ended


def interrupted_run(judge, games, store, *, after, concurrency):
    """A run that is interrupted when so many games have been asked."""

    async def go():
        interrupted = asyncio.Event()
        judge.trouble = lambda game: interrupted.set() if len(judge.asked) >= after else None
        limits = Limits(LimitSettings(concurrency=concurrency))
        return await judge_games(games, judge, store, limits, interrupted=interrupted)

    return asyncio.run(asyncio.wait_for(go(), 120))


def test_interrupted_run_ends_what_is_in_flight_and_begins_nothing(store):
    judge, games = FakeJudge(seconds=0.01), both(*map(comparison, range(100)))
    report = interrupted_run(judge, games, store, after=24, concurrency=8)
    assert report.ended == "interrupted"
    assert 24 <= len(judge.asked) < 60
    assert judge.ended == len(judge.asked) == report.tally.asked
    assert len(store.get(judgement_keys(judge.identity, games))) == judge.ended
    rest = FakeJudge()
    run(games, rest, store)
    assert len(rest.asked) == 200 - len(judge.asked)


def test_interrupted_run_does_not_wait_for_ever(store, monkeypatch):
    monkeypatch.setattr(asking, "GRACE", 0.2)
    judge = FakeJudge(seconds=lambda game: 600 if game.order == "ba" else 0.01)
    games = both(*map(comparison, range(4)))
    started = time.monotonic()
    report = interrupted_run(judge, games, store, after=1, concurrency=4)
    assert time.monotonic() - started < 100
    assert report.ended == "interrupted"
    stored = store.get(judgement_keys(judge.identity, games))
    assert 0 < len(stored) == judge.ended < 8
    # Nothing stays claimed: another run may ask at once.
    assert len(store.claim(judgement_keys(judge.identity, games))) == 8 - judge.ended


def test_cancelled_run_keeps_what_was_answered(store):
    judge, games = FakeJudge(seconds=0.01), both(*map(comparison, range(100)))

    async def go():
        task = asyncio.create_task(judge_games(games, judge, store, Limits(LimitSettings(concurrency=8))))
        judge.trouble = lambda game: task.cancel() if len(judge.asked) == 24 else None
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert 0 < judge.ended == len(store.get(judgement_keys(judge.identity, games))) < 200


def test_two_runs_with_one_store_share_the_work(tmp_path):
    games = both(*map(comparison, range(100)))
    judges = FakeJudge(seconds=0.003), FakeJudge(seconds=0.004)

    async def go():
        with Store(tmp_path / "s.db") as one, Store(tmp_path / "s.db") as other:
            limits = Limits(LimitSettings(concurrency=8))
            return await asyncio.gather(
                judge_games(games, judges[0], one, limits), judge_games(games[::-1], judges[1], other, limits)
            )

    reports = asyncio.run(asyncio.wait_for(go(), 120))
    assert all(report.complete for report in reports)
    assert sum(len(judge.asked) for judge in judges) == 200
    assert sum(report.tally.asked for report in reports) == 200
    assert all(report.tally.done == 200 for report in reports)


def test_what_another_run_failed_at_is_asked_here(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "LOOK_AGAIN", 0.05)

    def fails(game):
        raise WorkError("refused")

    games = both(*map(comparison, range(3)))

    async def go():
        with Store(tmp_path / "s.db") as one, Store(tmp_path / "s.db") as other:
            limits = Limits(LimitSettings(concurrency=8))
            bad = asyncio.create_task(judge_games(games, FakeJudge(0.2, fails), one, limits))
            await asyncio.sleep(0.1)
            good = await judge_games(games, FakeJudge(), other, limits)
            return await bad, good

    bad, good = asyncio.run(asyncio.wait_for(go(), 120))
    assert bad.tally.failed == 6
    assert good.complete
    assert good.tally.asked == 6


def test_clear_sees_whole_prompts_in_the_fixed_order_and_ends_the_run(store):
    looks = []

    def clear(answered):
        looks.append(list(answered))
        return len(answered) >= 40

    games = both(*map(comparison, range(300)))
    # Every third prompt is slow: those behind it arrive first, and have to wait.
    judge = FakeJudge(seconds=lambda game: 0.03 if int(game.comparison.questions[0].split()[1]) % 3 == 0 else 0.001)
    report = run(games, judge, store, concurrency=8, clear=clear)
    assert report.ended == "clear"
    assert len(judge.asked) < 600
    assert judge.ended == len(judge.asked) == report.tally.asked
    for answered in looks:
        assert len(answered) % 2 == 0
        assert [game for game, _ in answered] == games[: len(answered)]
        assert all(judgement is not None for _, judgement in answered)
    assert [len(answered) for answered in looks] == sorted({len(answered) for answered in looks})
    again = FakeJudge()
    assert run(games, again, store, clear=clear).ended == "clear"
    assert again.asked == []


def test_a_run_that_never_clears_looks_at_everything_in_the_end(store):
    looks = []
    games = both(*map(comparison, range(20)))
    report = run(games, FakeJudge(), store, clear=lambda answered: looks.append(len(answered)) or False)
    assert report.ended == "done"
    assert looks[-1] == 40


@pytest.mark.parametrize("prompts", range(150, 156))
def test_what_is_clear_with_the_last_prompt_only_is_clear_live_as_from_the_store(store, prompts):
    games = both(*map(comparison, range(prompts)))

    def ended():
        return run(games, FakeJudge(), store, clear=lambda answered: len(answered) == len(games)).ended

    assert ended() == ended() == "clear"


def test_unparsed_and_unknown_costs_are_counted(store):
    class Unsure(FakeJudge):
        async def decide(self, game):
            await super().decide(game)
            return Decision(None, None, "well", 5, 5, None)

        def expected(self, game):
            return 1, 1, None

    report = run(both(*map(comparison, range(3))), Unsure(), store)
    assert (report.tally.unparsed, report.tally.cost, report.estimate.cost) == (6, None, None)
    assert report.complete
    assert "cost unknown" in report.tally.line()
    assert "cost unknown" in report.estimate.line()


def test_games_that_no_prompt_can_be_made_of_fail_alone(store):
    def bad(game):
        if game.comparison.questions == ("question 1",):
            raise RequestError("the template fails")

    report = run(both(*map(comparison, range(3))), FakeJudge(trouble=bad), store)
    assert (report.tally.asked, report.tally.failed) == (4, 2)


def test_no_games_are_no_work(store):
    report = run([], FakeJudge(), store)
    assert (report.ended, report.complete, report.judgements) == ("done", True, [])


@settings(max_examples=30, deadline=None)
@given(st.text(), st.text(max_size=5), st.integers(0, 3), st.sampled_from(["ab", "ba", "a", "b"]))
def test_keys_made_together_are_those_made_alone(text, other, replicate, order):
    one = Comparison(questions=(text,), answers_a=(other,), answers_b=(text,), reference=other or None)
    games = [Game(one, order, replicate=replicate), Game(one, order)]
    identity = {"judge": "x", "temperature": 0.5, "protocol": {"name": text}}
    assert judgement_keys(identity, games) == [judgement_key(identity, game) for game in games]


def test_the_bar_shows_progress_and_cost(store):
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with Bar(console) as bar:
        run(both(*map(comparison, range(5))), FakeJudge(seconds=0.01), store, watch=bar)
    shown = console.file.getvalue()
    assert (
        "10 games: 0 stored, 10 to ask, about 120 tokens of prompts, at most 30 of answers, cost at most 0.1000"
        in shown
    )
    assert "10/10" in shown
    assert "cost 0.1000" in shown


def test_a_tally_in_a_line():
    tally = Tally(total=9, stored=3, asked=5, failed=1, unparsed=2, prompt_tokens=50, completion_tokens=7, cost=0.25)
    assert tally.line() == (
        "9 of 9 games: 3 stored, 5 asked, 2 unparsed, 1 failed; 50 tokens of prompts, 7 of answers, cost 0.2500"
    )


def test_the_first_signal_asks_and_the_second_insists():
    async def patient(interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
        await interrupted.wait()
        return "ended in order"

    assert run_until_interrupted(patient) == "ended in order"

    async def stubborn(interrupted):
        os.kill(os.getpid(), signal.SIGINT)
        await interrupted.wait()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        run_until_interrupted(stubborn)


KILLED = """
import asyncio, sys
from pathlib import Path
from posttrain.llm_judge.comparisons import Comparison, Game
from posttrain.llm_judge.judgements import Decision
from posttrain.llm_judge.running.limits import Limits, LimitSettings
from posttrain.llm_judge.running.runner import judge_games
from posttrain.llm_judge.store import Store

class Judge:
    identity = {"judge": "fake"}
    def __init__(self, log): self.log = log
    def expected(self, game): return 1, 1, 0.0
    async def decide(self, game):
        await asyncio.sleep(0.02)
        self.log.write(game.comparison.prompt_id + game.order + chr(10))
        return Decision("x", 1.0, "x")

async def main():
    folder = Path(sys.argv[1])
    games = [Game(Comparison(questions=(f"q{n}",), answers_a=("a",), answers_b=("b",)), order)
             for n in range(150) for order in ("ab", "ba")]
    with Store(folder / "s.db") as store, open(folder / "log", "a", buffering=1) as log:
        report = await judge_games(games, Judge(log), store, Limits(LimitSettings(concurrency=4)))
        print(report.complete, report.tally.stored)

asyncio.run(main())
"""


def test_killed_runs_ask_nothing_twice_beyond_what_was_in_flight(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    log, kills = tmp_path / "log", 0
    for target in (40, 120, 200):
        process = subprocess.Popen(command)
        while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= target):
            time.sleep(0.005)
        process.kill()
        kills += process.wait() != 0
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.startswith("True")
    asked = log.read_text().splitlines()
    assert len(set(asked)) == 300
    assert kills
    assert len(asked) - 300 <= 4 * kills

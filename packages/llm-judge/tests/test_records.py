"""A match's record: figures by hand, the same ones again from the annotations beside it, and what its id stands for."""

import asyncio
import json
import math
import sys
from pathlib import Path

import pytest

from posttrain.core import cli
from posttrain.core.errors import RequestError
from posttrain.core.files import read_jsonl
from posttrain.llm_judge.comparisons import Comparison
from posttrain.llm_judge.exchange import read_export
from posttrain.llm_judge.judgements import Decision
from posttrain.llm_judge.matches import Match, play
from posttrain.llm_judge.protocols import load_protocol
from posttrain.llm_judge.records import annotations_of, read_record, record_id, record_of, write_record
from posttrain.llm_judge.running.limits import Limits, LimitSettings
from posttrain.llm_judge.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from judge_commands import declare
from played_matches import SIDES, compared, judge, played

ALPACA = load_protocol("alpaca")
# Of four prompts: B better in both orders, A, the orders disagree, B; A shown first, then B.
LABELS = ["M", "m", "m", "M", "M", "M", "M", "m"]
FOUR = [compared(number, category="x") for number in range(4)]


def test_rates_with_their_p_by_hand():
    record = record_of(played(ALPACA, FOUR, LABELS), judge(ALPACA), SIDES)
    rates = record["rates"]
    # Preferences 1, 0, ½, 1: mean 0.625, s² = 0.6875 / 3.
    error = math.sqrt(0.6875 / 12)
    assert rates["win_rate"] == pytest.approx(62.5)
    assert rates["standard_error"] == pytest.approx(100 * error)
    assert (rates["n_wins"], rates["n_losses"], rates["n_draws"], rates["n_total"]) == (2, 1, 1, 4)
    assert rates["bias"]["consistency"]["value"] == pytest.approx(0.75)
    # Student's t with three degrees of freedom has a closed form.
    x = 0.125 / error / math.sqrt(3)
    assert rates["p_value"] == pytest.approx(1 - 2 / math.pi * (x / (1 + x * x) + math.atan(x)))
    assert record["power"]["prompts"] == 4
    assert record["power"]["sentence"].startswith("With 4 prompts")
    assert record["score"] is record["sequential"] is None
    assert record["finished"]


def test_who_was_asked_what_and_what_it_took():
    record = record_of(played(ALPACA, FOUR, LABELS), judge(ALPACA), SIDES)
    assert record["a"].items() >= {"name": "old", "kind": "file", "where": "old.jsonl"}.items()
    assert record["b"].items() >= {"name": "new", "kind": "given", "where": None}.items()
    assert record["a"]["answers"] != record["b"]["answers"]
    assert record["judge"]["name"].startswith("teacher-alpaca-")
    assert record["protocol"]["name"] == "alpaca"
    assert record["spent"] == {"prompt_tokens": 7, "completion_tokens": 3, "cost": 0.25, "seconds": 2.5}
    took = {"count": 8, "prompt_tokens": 800, "completion_tokens": 16, "cost": 4.0}
    assert record["annotations"].items() >= took.items()
    assert (record["prompts"], record["comparisons"], record["replicates"]) == (4, 4, 1)
    json.dumps(record, allow_nan=False)


def test_equal_answers_are_one_game_in_both_orders_and_paid_once():
    record = record_of(played(ALPACA, [compared(1, a="same", b="same")], ["M", "M"]), judge(ALPACA), SIDES)
    assert record["annotations"]["cost"] == 0.5
    assert record["rates"]["win_rate"] == 50
    # One prompt has no spread, so neither p nor power is known.
    assert record["rates"]["p_value"] is record["rates"]["standard_error"] is record["power"] is None


def test_the_score_of_arena_hard_weighs_strong_verdicts_threefold():
    protocol = load_protocol("arena_hard")
    labels = ["B>>A", "A>B", "A>B", "B>A"]  # B much better, B better; A better, A better
    score = record_of(played(protocol, [compared(1), compared(2)], labels), judge(protocol), SIDES)["score"]
    assert (score["kind"], score["pairs"], score["unparsed"]) == ("arena_hard", 2, 0)
    assert score["score"] == pytest.approx(100 * 4 / 6)


def test_mt_bench_by_category_and_turn():
    protocol = load_protocol("mt_bench")
    comparisons = [compared(1, 2, category="writing"), compared(2, 2, category="math")]
    # B wins turn 1 of the first and the orders disagree on turn 2; A wins both turns of the second.
    labels = ["second", "first", "first", "first", *["first", "second"] * 2]
    score = record_of(played(protocol, comparisons, labels), judge(protocol), SIDES)["score"]
    counts = {"kind": "mt_bench", "wins": 1, "losses": 2, "ties": 1, "disagreements": 1}
    assert score.items() >= counts.items()
    found = score["win_rate"]
    assert found["overall"]["value"] == pytest.approx(37.5)
    assert {turn: one["value"] for turn, one in found["by_turn"].items()} == {"1": 50, "2": 25}
    assert {name: one["value"] for name, one in found["by_category"].items()} == {"writing": 75, "math": 0}
    assert [(one["category"], one["turn"], one["value"]) for one in found["by_category_and_turn"]] == [
        ("writing", 1, 100),
        ("writing", 2, 50),
        ("math", 1, 0),
        ("math", 2, 0),
    ]


def test_grades_of_both_sides_and_their_paired_difference():
    protocol = load_protocol("mt_bench_grade")
    labels = ["8", "9", "6", "7", "4", "7", "4", "4"]  # A and B of each turn of each prompt
    record = record_of(played(protocol, [compared(1, 2), compared(2, 2)], labels), judge(protocol), SIDES)
    score = record["score"]
    assert record["rates"] is None
    assert (score["a"]["overall"]["value"], score["b"]["overall"]["value"]) == (5.5, 6.75)
    assert (score["a"]["by_turn"]["1"]["value"], score["b"]["by_turn"]["1"]["value"]) == (6, 8)
    # Differences 1, 1 of one prompt and 3, 0 of the other: 1.25, and √(2 · (½² + ½²)) / 4.
    assert (score["difference"]["value"], score["difference"]["standard_error"]) == (1.25, 0.25)
    assert score["difference"]["clusters"] == 2


def test_a_match_without_any_verdict_has_a_record_without_a_rate():
    record = record_of(played(ALPACA, [compared(1)], [None, None]), judge(ALPACA), SIDES)
    assert record["finished"]
    assert record["rates"] is None
    assert "no comparison has a verdict" in record["warnings"][0]
    assert record["games"]["unparsed"] == 2


def test_difficulties_of_the_instructions_control_for_length():
    comparisons = [compared(number, b="b" * (4 + 3 * (number % 5))) for number in range(8)]
    labels = ["M", "m", "m", "M", "M", "M", "M", "m", "m", "M", "M", "M", "m", "M", "M", "m"]
    of = played(ALPACA, comparisons, labels)
    known = {one.questions[0]: float(place % 3) for place, one in enumerate(comparisons)}
    rates = record_of(of, judge(ALPACA), SIDES, difficulties=known)["rates"]
    assert 0 < rates["length_controlled_win_rate"] < 100
    known.popitem()
    lacking = record_of(of, judge(ALPACA), SIDES, difficulties=known)
    assert lacking["rates"]["length_controlled_win_rate"] is None
    assert any("1 of 8 difficulties are not known" in warning for warning in lacking["warnings"])


class Sure:
    """Prefers B always."""

    identity = {"judge": "sure"}

    async def decide(self, game):
        return Decision("x", 1.0 if game.order == "ab" else 0.0, "B", 1, 1, 0.0)

    def expected(self, game):
        return 1, 1, 0.0


def test_stopping_early_gives_the_interval_that_knows_of_it(tmp_path):
    comparisons = [compared(number) for number in range(200)]
    with Store(tmp_path / "store.db") as store:
        limits = Limits(LimitSettings(concurrency=4))
        match = Match(comparisons)
        ended = asyncio.run(play(match, Sure(), store, limits, stop_when_clear=True))
        whole = asyncio.run(play(match, Sure(), store, limits))
    record = record_of(ended, Sure(), SIDES, stop_when_clear=True)
    sequential = record["sequential"]
    assert record["finished"]
    assert record["ended"] == "clear"
    assert sequential["prompts"] == record["rates"]["n_total"] < 200 == sequential["of"]
    assert sequential["better"] == "b"
    assert 50 < sequential["interval"][0] < sequential["interval"][1] == 100
    assert record["rates"]["p_value"] is None
    assert any(f"Stopped as clear after {sequential['prompts']} of 200" in warning for warning in record["warnings"])
    other = record_of(whole, Sure(), SIDES)
    assert other["sequential"] is None
    assert other["rates"]["p_value"] == pytest.approx(2.0**-199)
    assert other["id"] != record["id"]


def test_score_on_the_annotations_gives_the_same_rates_and_they_fill_another_store(tmp_path, monkeypatch, capsys):
    declare(monkeypatch)
    protocol = load_protocol("mt_bench")
    comparisons = [compared(1, 2, human=1.0), compared(2, 2), compared(3, 2, a="much longer answers"), compared(4, 2)]
    labels = ["second", "first", "first", "first", None, "tie", "tie", "first", *["second", "tie"] * 4]
    of = played(protocol, comparisons, labels)
    record = record_of(of, judge(protocol), SIDES)
    path = write_record(tmp_path, of, record)
    assert (path, read_record(path)) == (tmp_path / f"{record['id']}.json", record | {"earlier": []})
    assert cli.run(["judge", "score", str(annotations_of(path)), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name: scored[name] for name in record["rates"] if name != "p_value"} == {
        name: value for name, value in record["rates"].items() if name != "p_value"
    }
    assert scored["annotator"] == record["judge"]["name"]
    with Store(tmp_path / "other.db") as other:
        assert other.put_many(read_export(annotations_of(path))) == 16


def test_what_is_not_finished_is_not_written(tmp_path):
    of = played(ALPACA, FOUR, [*LABELS[:-1], ""])
    record = record_of(of, judge(ALPACA), SIDES)
    assert not record["finished"]
    assert [(one["order"], one["why"]) for one in record["failures"]] == [("ba", "it broke")]
    assert record["rates"]["n_total"] == 3
    with pytest.raises(ValueError, match="not finished"):
        write_record(tmp_path, of, record)
    assert list(tmp_path.iterdir()) == []


def test_the_same_question_has_the_same_id_and_no_other():
    def id_of(comparisons=FOUR, sides=SIDES, protocol=ALPACA, replicates=1, **more):
        return record_id(Match(comparisons, protocol, replicates), judge(protocol), sides, **more)

    def labelled(**more):
        return [FOUR[0].model_copy(update=more), *FOUR[1:]]

    swapped = [
        one.model_copy(update={"answers_a": one.answers_b, "answers_b": one.answers_a, "generator_a": "old"})
        for one in FOUR
    ]
    assert id_of(FOUR[::-1]) == id_of()
    different = [
        id_of(),
        id_of(FOUR[:3]),
        id_of(swapped),
        id_of(sides=SIDES[::-1]),
        id_of(protocol=load_protocol("arena_hard")),
        id_of(replicates=2),
        id_of(stop_when_clear=True),
        id_of(FOUR[::-1], stop_when_clear=True),
        id_of(difficulties={"question 1, turn 1": 1.0}),
        id_of(difficulties={"question 1, turn 1": 2.0}),
        id_of(labelled(human=1.0)),
        id_of(labelled(category="y")),
    ]
    assert len(set(different)) == len(different)


def test_what_an_earlier_run_of_the_same_question_took_is_not_lost(tmp_path):
    of = played(ALPACA, FOUR, LABELS)
    first = record_of(of, judge(ALPACA), SIDES)
    path = write_record(tmp_path, of, first)
    assert read_record(path)["earlier"] == []
    again = {**first, "spent": {"cost": 0.0}, "games": {"asked": 0}, "created": "later"}
    for _ in range(2):
        write_record(tmp_path, of, again)
    record = read_record(path)
    assert record["spent"] == {"cost": 0.0}
    assert [one["created"] for one in record["earlier"]] == [first["created"], "later"]
    assert (record["earlier"][0]["spent"], record["earlier"][0]["games"]) == (first["spent"], first["games"])


def test_the_digest_of_annotations_knows_keys_and_values_in_any_order():
    def digest(comparisons, labels):
        return record_of(played(ALPACA, comparisons, labels), judge(ALPACA), SIDES)["annotations"]["digest"]

    assert digest(FOUR, LABELS) == digest(FOUR[::-1], [label for at in (6, 4, 2, 0) for label in LABELS[at : at + 2]])
    assert digest(FOUR, LABELS) != digest(FOUR, [*LABELS[:-1], "M"])


def test_a_file_that_is_no_record_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(RequestError, match=r"x\.json is no record of a match"):
        read_record(tmp_path / "x.json")


def test_grades_are_annotations_too(tmp_path):
    protocol = load_protocol("mt_bench_grade")
    of = played(protocol, [compared(1), compared(2)], ["8", "9", "6", "7"])
    path = write_record(tmp_path, of, record_of(of, judge(protocol), SIDES))
    assert [(row["order"], row["value"]) for row in read_jsonl(annotations_of(path))] == [
        ("a", 8),
        ("b", 9),
        ("a", 6),
        ("b", 7),
    ]
    assert all(len(game.order) == 1 for _, game in read_export(annotations_of(path)))


def test_pairs_of_other_sides_in_one_match_are_a_mistake():
    strange = Comparison(questions=["q"], answers_a=["a"], answers_b=["b"], generator_a="third", generator_b="new")
    with pytest.raises(ValueError, match="2 judges or pairs"):
        record_of(played(ALPACA, [FOUR[0], strange], ["M", "m", "M", "m"]), judge(ALPACA), SIDES)

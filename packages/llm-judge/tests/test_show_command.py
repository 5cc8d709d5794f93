"""`posttrain judge show`: which pairs are worth reading, and that all of a pair is there to read."""

import json
import sys
from pathlib import Path

import pytest

from posttrain.core import cli
from posttrain.core.errors import RequestError
from posttrain.llm_judge.comparisons import Comparison
from posttrain.llm_judge.protocols import load_protocol
from posttrain.llm_judge.records import record_of, write_record
from posttrain.llm_judge.show_command import find_record

sys.path.insert(0, str(Path(__file__).parent))
from judge_commands import declare
from played_matches import SIDES, judge, played

ALPACA = load_protocol("alpaca")
# B wins, A wins, the orders disagree, no verdict, B wins and people say A.
LABELS = ["M", "m", "m", "M", "M", "M", "M", None, "M", "m"]
CATEGORIES = ["math", "math", "prose", "prose", "prose"]


def compared(number, **more):
    return Comparison(
        questions=[f"question {number}"],
        answers_a=[f"the [bold]answer[/] of A to {number}"],
        answers_b=[f"what B says to {number}"],
        generator_a="old",
        generator_b="new",
        prompt_id=f"p{number}",
        **more,
    )


def write(protocol=ALPACA, labels=LABELS, comparisons=None):
    comparisons = comparisons or [
        compared(number, category=category, human=0.0 if number == 4 else None)
        for number, category in enumerate(CATEGORIES)
    ]
    of = played(protocol, comparisons, labels)
    return write_record(Path("runs/judge"), of, record_of(of, judge(protocol), SIDES))


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    declare(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def show(capsys):
    def show(*arguments):
        """The exit status, and standard output or what the error says."""
        status = cli.run(["judge", "show", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.err if status else captured.out

    return show


def shown(show, *arguments):
    """The prompts of the pairs that are shown."""
    status, said = show(*arguments, "--json")
    assert status == 0
    return [pair["prompt_id"] for pair in json.loads(said.splitlines()[-1])["pairs"]]


def test_disagreements_are_shown_unless_something_else_is_asked_for(show):
    path = write()
    assert shown(show, path) == shown(show, path, "--disagreements") == ["p2", "p4"]
    assert shown(show, path, "--wins") == ["p0", "p4"]
    assert shown(show, path, "--losses") == ["p1"]
    assert shown(show, path, "--ties") == ["p2"]
    assert shown(show, path, "--unparsed") == ["p3"]
    assert shown(show, path, "--all") == ["p0", "p1", "p2", "p3", "p4"]
    assert shown(show, path, "--all", "--category", "math") == ["p0", "p1"]
    assert shown(show, path, "--all", "--limit", 3) == ["p0", "p1", "p2"]


def test_a_pair_for_machines(show):
    said = json.loads(show(write(), "--ties", "--json")[1].splitlines()[-1])
    (pair,) = said["pairs"]
    assert (said["found"], said["wanted"], pair["outcome"], pair["category"]) == (1, "ties", "tie", "prose")
    assert (pair["answers_a"], pair["answers_b"]) == (["the [bold]answer[/] of A to 2"], ["what B says to 2"])
    # M is the second answer shown: B's first, A's then.
    assert [(one["order"], one["label"], one["preference"]) for one in pair["said"]] == [("ab", "M", 1), ("ba", "M", 0)]


def test_a_pair_for_people_has_both_answers_and_both_replies(show):
    path = write()
    status, said = show(path.stem[:6])
    assert status == 0
    assert "new (B) against old (A), judged by teacher-alpaca-" in said
    (first, second) = said.split("1 of 2: ")[1].split("2 of 2: ")
    assert first.startswith("p2, prose, a draw, the orders disagree")
    assert "question 2" in first
    (both,) = [line for line in first.splitlines() if "the [bold]answer[/] of A to 2" in line]
    assert "what B says to 2" in both
    assert "A: old (29 characters)" in first
    assert "A shown first: B is better (verdict M, P(B is better) 1.000)" in first
    assert "B shown first: A is better (verdict M, P(B is better) 0.000)" in first
    assert first.count("I say M.") == 2
    assert second.startswith("p4, prose, B wins, people: A is better")


def test_turns_of_a_conversation_stand_one_under_the_other(show):
    protocol = load_protocol("mt_bench")
    asked = Comparison(questions=["one?", "two?"], answers_a=["a1", "a2"], answers_b=["b1", "b2"])
    named = asked.model_copy(update={"generator_a": "old", "generator_b": "new"})
    status, said = show(write(protocol, ["second", "second", "tie", "tie"], [named]), "--all")
    assert status == 0
    first, second = said.split("1 of 2: ")[1].split("2 of 2: ")
    assert "one?" in first
    assert "two?" not in first
    assert second.index("turn 1: one?") < second.index("turn 2: two?") < second.index("a1") < second.index("b2")


def test_grades_are_shown_side_by_side(show):
    protocol = load_protocol("mt_bench_grade")
    path = write(protocol, ["8", "9", "6", "6"], [compared(0), compared(1)])
    assert shown(show, path, "--wins") == ["p0"]
    said = show(path, "--all")[1]
    assert "A alone: grade 8" in said
    assert "B alone: grade 9" in said
    assert "grade of B" in said
    assert "No disagreements here; --all shows every pair." in show(path)[1]


def test_without_an_id_all_records_are_listed(show):
    assert "runs/judge has no records" in show()[1]
    path = write()
    said = show()[1]
    assert path.stem in said
    assert "teacher-alpaca-" in said
    assert json.loads(show("--json")[1].splitlines()[-1])["records"][0]["id"] == path.stem


def test_a_file_that_is_no_record_is_passed_over_with_a_warning(capsys):
    path = write()
    path.with_name("other.json").write_text('{"id": "x", "a": 1}')
    path.with_name("half.json").write_text("{")
    assert cli.run(["judge", "show"]) == 0
    captured = capsys.readouterr()
    assert path.stem in captured.out
    assert "warning: runs/judge/other.json is no record of a match" in captured.err
    assert captured.err.count("warning: ") == 2


def test_what_models_say_does_not_reach_the_terminal_as_commands(show):
    evil = "\x1b]0;owned\x07 \x9b2J\r\nnext"
    compared = Comparison(questions=[evil], answers_a=[evil], answers_b=["b"], generator_a="old", generator_b="new")
    said = show(write(labels=["M", "m"], comparisons=[compared]), "--all")[1]
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(said)
    assert r"\x1b]0;owned\x07 \x9b2J" in said


def test_a_record_by_its_path_its_id_or_the_beginning_of_it():
    path = write()
    assert find_record(path.stem[:3], path.parent) == find_record(str(path), Path()) == path
    other = path.with_name(f"{path.stem[:3]}-other.json")
    other.write_bytes(path.read_bytes())
    with pytest.raises(RequestError, match=f"2 records begin with '{path.stem[:3]}': .*{path.stem}; give more"):
        find_record(path.stem[:3], path.parent)


def test_what_is_not_there_is_told_with_what_is(show):
    assert show("abc") == (
        2,
        "error: runs/judge has no record 'abc'; there is none; `posttrain judge run` makes them\n",
    )
    path = write()
    assert show("xyz") == (2, f"error: runs/judge has no record 'xyz'; there are {path.stem}\n")
    assert "do not go together" in show(path, "--wins", "--all")[1]
    assert "in the category 'maths' (did you mean 'math'?)" in show(path, "--category", "maths")[1]
    assert "gone.json does not exist" in show("gone.json")[1]

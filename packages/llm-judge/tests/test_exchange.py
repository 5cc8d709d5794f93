"""Annotations in files: an export fills an empty store with the same keys, and AlpacaEval's own are understood."""

import json
import os
import sys
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from posttrain.core.errors import RequestError
from posttrain.core.files import read_jsonl, write_jsonl
from posttrain.llm_judge.comparisons import Comparison, Game
from posttrain.llm_judge.exchange import annotator_name, from_row, read_export, rows, to_row
from posttrain.llm_judge.exchange_commands import export_annotations, import_annotations
from posttrain.llm_judge.judgements import Decision, Judgement, judgement_key
from posttrain.llm_judge.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from judged_games import JUDGE, game, judged

ALPACA_EVAL = {
    "instruction": "Name a bird.",
    "output_1": "A wren, for one.",
    "generator_1": "baseline",
    "dataset": "invented",
    "output_2": "Owl",
    "generator_2": "mine",
    "annotator": "some_annotator",
    "preference": 1.25,
    "price_per_example": 0.02,
    "time_per_example": 1.5,
    "raw_completion": {"text": "m", "logprobs": [-0.2]},
    "referenced_models": None,
}

texts = st.text(max_size=20)
short = st.text(min_size=1, max_size=8)
numbers = st.floats(min_value=0, max_value=1e6)


@st.composite
def judgements(draw):
    turns = draw(st.integers(1, 3))
    several = st.lists(texts, min_size=turns, max_size=turns)
    comparison = Comparison(
        questions=draw(several),
        answers_a=draw(several),
        answers_b=draw(several),
        cut_a=draw(st.booleans()),
        cut_b=draw(st.booleans()),
        history=draw(st.lists(st.builds(dict, role=st.sampled_from(["system", "user"]), content=texts), max_size=2)),
        reference=draw(st.none() | texts),
        rubric=draw(st.none() | texts),
        category=draw(st.none() | short),
        generator_a=draw(st.none() | short),
        generator_b=draw(st.none() | short),
        human=draw(st.none() | st.floats(0, 1)),
    )
    of = Game(comparison, draw(st.sampled_from(["ab", "ba", "a", "b"])), replicate=draw(st.integers(0, 3)))
    judge = draw(st.sampled_from([JUDGE, {"backend": "reward", "digest": "0f", "scale": 0.5}]))
    value = draw(st.none() | (st.floats(0, 1) if len(of.order) == 2 else st.floats(1, 10)))
    decision = Decision(
        label=None if value is None else draw(short),
        value=value,
        raw=draw(texts),
        prompt_tokens=draw(st.integers(0, 1 << 40)),
        completion_tokens=draw(st.integers(0, 1 << 40)),
        cost=draw(st.none() | numbers),
        seconds=draw(numbers),
    )
    return Judgement(judgement_key(judge, of), judge, of.order, decision, draw(numbers)), of


@given(st.lists(judgements(), max_size=5))
@settings(max_examples=60, deadline=None)
def test_an_export_says_all_of_every_annotation(tmp_path_factory, annotations):
    file = tmp_path_factory.mktemp("exchange") / "all.jsonl"
    write_jsonl(file, rows(annotations))
    assert (read_export(file) if annotations else []) == annotations


def test_an_export_fills_an_empty_store_with_the_same(tmp_path):
    conversation = Comparison(questions=("q1", "q2"), answers_a=("a1", "a2"), answers_b=("b1", "b2"), reference="r")
    annotations = [judged(game(1), 1e-20), judged(game(1, "ba"), None), judged(game(1, replicate=1))]
    annotations += [judged(Game(conversation, "ba", turn=1)), judged(Game(conversation, "a"), 7.5)]
    annotations += [judged(game(1), judge={"backend": "reward", "digest": "0f"})]
    with Store(tmp_path / "one.db") as one, Store(tmp_path / "other.db") as other:
        one.put_many(annotations)
        write_jsonl(tmp_path / "all.jsonl", rows(one.annotations()))
        assert other.put_many(read_export(tmp_path / "all.jsonl")) == len(annotations)
        assert list(other.annotations()) == list(one.annotations())


def test_a_line_is_alpaca_evals_with_ours_beside_it():
    """B was shown first, and P(the second shown is better) = 0.25 is A's: B's is 0.75."""
    judgement, of = judged(game(1, "ba", generator_a="sft", generator_b="ppo", category="birds"), 0.25, cost=0.5)
    row = to_row(judgement, of)
    assert {name: row[name] for name in ("instruction", "output_1", "generator_1", "output_2", "generator_2")} == {
        "instruction": "question 1",
        "output_1": "an answer to 1",
        "generator_1": "sft",
        "output_2": "another to 1",
        "generator_2": "ppo",
    }
    assert (row["preference"], row["order"], row["value"]) == (1.75, "ba", 0.25)
    assert (row["price_per_example"], row["raw_completion"], row["category"]) == (0.5, "I say 0.25.", "birds")
    assert row["annotator"] == annotator_name(JUDGE) != annotator_name(JUDGE | {"protocol": "arena_hard"})
    assert row["annotator"].startswith("teacher-")


def test_alpaca_evals_lines_become_annotations_of_their_annotator():
    judgement, of = from_row(ALPACA_EVAL, "here")
    assert judgement.judge == {"backend": "annotations", "annotator": "some_annotator"}
    assert judgement.key == judgement_key(judgement.judge, of)
    assert judgement.decision == Decision("1", 0.25, '{"text": "m", "logprobs": [-0.2]}', cost=0.02, seconds=1.5)
    asked = of.comparison
    assert (asked.questions, asked.answers_a, asked.answers_b) == (("Name a bird.",), ("A wren, for one.",), ("Owl",))
    assert (asked.generator_a, asked.generator_b, asked.category, of.order) == ("baseline", "mine", "invented", "ab")
    assert to_row(judgement, of)["annotator"] == "some_annotator"


@pytest.mark.parametrize(
    ("preference", "label", "value"),
    [
        (1, "1", 0.0),
        (2.0, "2", 1.0),
        (1.5, "tie", 0.5),
        (0, "tie", 0.5),
        (None, None, None),
        (float("nan"), None, None),
    ],
)
def test_preferences_of_old_and_new_files_are_read(preference, label, value):
    """0 stood for a tie in AlpacaEval's first files; null is a verdict that could not be read."""
    decision = from_row(ALPACA_EVAL | {"preference": preference}, "here")[0].decision
    assert (decision.label, decision.value) == (label, value)


def test_columns_that_alpaca_eval_may_leave_out_are_not_needed():
    needed = ("instruction", "output_1", "output_2", "annotator", "preference")
    judgement, of = from_row({name: ALPACA_EVAL[name] for name in needed}, "here")
    assert judgement.key == from_row(ALPACA_EVAL, "here")[0].key
    assert (judgement.decision.raw, judgement.decision.cost, of.comparison.generator_a) == ("", None, None)
    numbered = from_row(ALPACA_EVAL | {"annotator": 3, "input": "In Latin."}, "here")
    assert numbered[0].judge["annotator"] == "3"
    assert numbered[1].comparison.questions == ("Name a bird.\n\nIn Latin.",)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"preference": 2.5}, "'preference' input should be less than or equal to 2"),
        ({"preference": 0.5}, "'preference' is from 1 to 2, not 0.5"),
        ({"preference": "better"}, "'preference' input should be a valid number"),
        ({"output_2": None}, "'output_2' input should be a valid string"),
        ({"output_1": "half \ud83d"}, "half a character"),
    ],
)
def test_a_wrong_line_of_alpaca_evals_is_named(change, says):
    with pytest.raises(RequestError, match=f"here: {says}"):
        from_row(ALPACA_EVAL | change, "here")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"output_1": "another text"}, "the key is not that of the judge and the texts; was the line changed"),
        ({"judge": {"model": "better"}}, "the key is not that"),
        ({"preference": 1.9}, "'preference' 1.9 does not follow from 'value' 0.25"),
        ({"preference": None}, "'preference' None does not follow"),
        ({"value": 25.0}, "'value' is a probability with order 'ab', not 25.0"),
        ({"label": None}, "'label' and 'value' stand together"),
        ({"order": "cd"}, "'order' input should be"),
        ({"questions": ["one", "two"]}, "2 questions have 1 answers of A and 1 of B"),
        ({"colour": "red"}, "unknown key 'colour'"),
    ],
)
def test_a_line_of_ours_that_was_changed_is_named(change, says):
    with pytest.raises(RequestError, match=f"here: {says}"):
        from_row(to_row(*judged(game(1))) | change, "here")


@pytest.mark.parametrize("missing", ["value", "judge", "order", "created"])
def test_a_line_of_ours_without_a_column_is_named(missing):
    row = to_row(*judged(game(1)))
    del row[missing]
    with pytest.raises(RequestError, match=f"here: '{missing}' is missing"):
        from_row(row, "here")


def run(function, *arguments):
    app = typer.Typer()
    app.command()(function)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_commands_carry_one_store_over_to_another(tmp_path):
    one, other, file = tmp_path / "one.db", tmp_path / "other.db", tmp_path / "all.jsonl"
    with Store(one) as store:
        store.put_many([judged(game(1), cost=0.25), judged(game(2), None), judged(game(1), judge={"model": "m"})])
    name = annotator_name(JUDGE)
    assert f"{name}: 2 annotations, 1 unparsed, cost 0.2500" in run(export_annotations, file, "--store", one)
    assert "3 are new" in run(import_annotations, file, "--store", other)
    assert "0 are new to" in run(import_annotations, file, "--store", other)
    with Store(one) as first, Store(other) as second:
        assert list(first.annotations()) == list(second.annotations())


def test_an_export_can_be_of_one_judge(tmp_path):
    store, file = tmp_path / "one.db", tmp_path / "some.jsonl"
    with Store(store) as opened:
        opened.put_many([judged(game(1)), judged(game(1), judge={"model": "m"})])
    run(export_annotations, file, "--store", store, "--judge", annotator_name({"model": "m"}))
    assert [row["judge"] for row in read_jsonl(file)] == [{"model": "m"}]
    with pytest.raises(RequestError, match="nothing of an annotator 'n' "):
        run(export_annotations, tmp_path / "none.jsonl", "--store", store, "--judge", "n")


def test_an_export_makes_no_store_and_replaces_no_file(tmp_path):
    (tmp_path / "answers.jsonl").write_text("mine")
    with pytest.raises(RequestError, match=r"one.db does not exist; name a store with --store"):
        run(export_annotations, tmp_path / "all.jsonl", "--store", tmp_path / "one.db")
    Store(tmp_path / "one.db").close()
    with pytest.raises(RequestError, match="answers.jsonl exists; name another file"):
        run(export_annotations, tmp_path / "answers.jsonl", "--store", tmp_path / "one.db")
    assert (tmp_path / "answers.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("bad", "says"), [("{", "not JSON"), ("[]", "must be a JSON object"), ('{"instruction": "q"}', "is missing")]
)
def test_a_file_with_a_wrong_line_imports_nothing(tmp_path, bad, says):
    """The line's number counts the blank ones."""
    file, store = tmp_path / "bad.jsonl", tmp_path / "one.db"
    file.write_text(f"{json.dumps(ALPACA_EVAL)}\n\n{bad}\n")
    with pytest.raises(RequestError, match=rf"bad.jsonl:3.*{says}"):
        run(import_annotations, file, "--store", store)
    assert not store.exists()


def test_alpaca_evals_own_form_is_a_list(tmp_path):
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps([ALPACA_EVAL, ALPACA_EVAL, ALPACA_EVAL | {"output_2": "Tit"}], indent=2))
    output = run(import_annotations, file, "--store", tmp_path / "one.db")
    assert "some_annotator: 3 annotations" in output
    assert "2 are new to" in output
    file.write_text(json.dumps([ALPACA_EVAL, "text"]))
    with pytest.raises(RequestError, match=r"annotations.json: entry 2 must be a JSON object, not str"):
        read_export(file)


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(RequestError, match=r"gone.jsonl does not exist"):
        read_export(tmp_path / "gone.jsonl")
    with pytest.raises(RequestError, match=r"cannot read"):
        read_export(tmp_path)
    (tmp_path / "empty").write_text("")
    with pytest.raises(RequestError, match="empty is empty"):
        read_export(tmp_path / "empty")


def test_a_published_file_of_alpaca_evals_comes_in_and_out_again(tmp_path):
    root = Path(__file__).resolve().parents[3]
    folder = Path(os.environ.get("POSTTRAIN_DATA", root.parent / "shared" / "data"))
    file = folder / "tatsu-lab" / "alpaca_eval" / "weighted_gpt4_turbo" / "OpenHermes-2.5-Mistral-7B.jsonl"
    if not file.exists():
        pytest.skip(f"no annotations under {folder}: set POSTTRAIN_DATA to a folder that has tatsu-lab/alpaca_eval")
    theirs = read_jsonl(file)
    with Store(tmp_path / "one.db") as store:
        assert store.put_many(read_export(file)) == 805
        ours = {row["instruction"]: row for row in rows(store.annotations())}
    for row in theirs:
        out = ours[row["instruction"]]
        assert out["preference"] == pytest.approx(row["preference"], abs=1e-12)
        same = ("output_1", "output_2", "generator_1", "generator_2", "annotator")
        assert {name: out[name] for name in same} == {name: row[name] for name in same}

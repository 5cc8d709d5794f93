"""Annotations as tables: what belongs to one pair, what to one prompt, and the difficulties of instructions."""

import json
import math

import numpy as np
import pytest

from posttrain.core.errors import RequestError
from posttrain.core.files import write_jsonl
from posttrain.llm_judge.annotations import difficulties_of, read_difficulties, tabulate
from posttrain.llm_judge.comparisons import Comparison, Game
from posttrain.llm_judge.exchange import annotator_name, read_export, rows
from posttrain.llm_judge.judgements import Decision, Judgement, judgement_key
from posttrain.llm_judge.statistics.bias import bias_report

NAN = math.nan
JUDGE = {"backend": "scripted", "model": "coin", "protocol": "alpaca"}


def compared(question="Name a colour.", a="Red.", b="A deep blue.", **more) -> Comparison:
    asked, of_a, of_b = ((texts,) if isinstance(texts, str) else texts for texts in (question, a, b))
    return Comparison(questions=asked, answers_a=of_a, answers_b=of_b, **more)


def judged(comparison, order="ab", value=0.75, turn=0, replicate=0, judge=JUDGE):
    game = Game(comparison, order, turn=turn, replicate=replicate)
    label = None if value is None else "2"
    decision = Decision(label=label, value=value, raw="…")
    return Judgement(judgement_key(judge, game), judge, order, decision, created=0.0), game


def test_what_was_cut_is_another_pair_for_a_judge_that_knows_and_the_same_for_one_that_sees_texts():
    whole, cut = compared(), compared(cut_b=True)
    reward, chat = {"judge": "reward", "source": "rm", "digest": "d"}, JUDGE
    assert judgement_key(reward, Game(whole, "ab")) != judgement_key(reward, Game(cut, "ab"))
    assert judgement_key(chat, Game(whole, "ab")) == judgement_key(chat, Game(cut, "ab"))
    # Orders may come from different files: a chat judge's belong together, a reward model's do not.
    games = [(whole, "ab", 0.75), (cut, "ba", 0.5)]
    (of_reward,) = tabulate(judged(*game, judge=reward) for game in games)
    (of_chat,) = tabulate(judged(*game, judge=chat) for game in games)
    assert (len(of_reward.pairs.first), len(of_chat.pairs.first)) == (2, 1)


def test_two_orders_of_one_pair_are_one_row_in_whatever_order_they_come():
    first, second = compared(human=1.0, category="colours"), compared("Name a town.", a="Rome", b="Oslo")
    (table,) = tabulate(
        [judged(first, "ab", 0.75), judged(second, "ba", 0.25), judged(second, "ab", 0.5), judged(first, "ba", 1.0)]
    )
    # Of what is said with B shown first, P(B is better) is what is left.
    assert table.pairs.first.tolist() == [0.75, 0.5]
    assert table.pairs.second.tolist() == [0.0, 0.75]
    assert table.pairs.prompts == [first.prompt_id, second.prompt_id]
    assert (table.pairs.length_a.tolist(), table.pairs.length_b.tolist()) == ([4, 4], [12, 4])
    assert table.pairs.human[0] == 1
    assert math.isnan(table.pairs.human[1])
    assert table.pairs.categories == ["colours", None]
    assert table.instructions == ["Name a colour.", "Name a town."]
    assert table.annotator == annotator_name(JUDGE)


def test_what_is_asked_again_is_another_pair_of_the_same_prompt():
    pair = compared()
    (table,) = tabulate(
        [
            judged(pair, "ab", 1.0),
            judged(pair, "ba", 0.0),
            judged(pair, "ab", 0.0, replicate=1),
            judged(pair, "ba", None, replicate=1),
            judged(pair, "ab", 1.0),
        ]
    )
    np.testing.assert_equal(table.pairs.first, [1, 0, 1])
    np.testing.assert_equal(table.pairs.second, [1, NAN, NAN])
    assert set(table.pairs.prompts) == {pair.prompt_id}


def test_equal_answers_are_marked_as_far_as_the_judge_sees_them():
    asked = compared(("Why?", "And then?"), ("So.", "No."), ("So.", "Nothing."))
    (table,) = tabulate([judged(asked, turn=1), judged(asked, turn=2)])
    assert table.pairs.different.tolist() == [False, True]
    cut = compared("Sing.", "La", "La", cut_a=True)
    reward = {"judge": "reward", "source": "rm", "digest": "d"}
    assert [tabulate([judged(cut, judge=judge)])[0].pairs.equal for judge in (reward, JUDGE)] == [[False], [True]]


def test_turns_of_a_conversation_are_pairs_with_the_answers_so_far():
    asked = compared(("Why?", "And then?"), ("So.", "No."), ("Because of it.", "Nothing."))
    (table,) = tabulate(
        [judged(asked, turn=1), judged(asked, turn=2), judged(asked, "a", 7.0), judged(asked, "b", 9.0)]
    )
    assert table.pairs.length_b.tolist() == [14, 22]
    assert table.instructions == ["Why?", "Why?\n\nAnd then?"]
    assert len(set(table.pairs.prompts)) == 1


def test_each_judge_and_each_two_models_have_a_table():
    ours, theirs = compared(generator_a="sft", generator_b="ppo"), compared(generator_a="sft", generator_b="dpo")
    other = {**JUDGE, "model": "dice"}
    tables = tabulate([judged(ours), judged(theirs), judged(ours, judge=other), judged(ours, "ba")])
    found = [(table.annotator, table.generator_a, table.generator_b, len(table.pairs.first)) for table in tables]
    coin, dice = annotator_name(JUDGE), annotator_name(other)
    assert found == [(coin, "sft", "ppo", 1), (coin, "sft", "dpo", 1), (dice, "sft", "ppo", 1)]


def test_grades_of_single_answers_are_no_comparisons():
    assert tabulate([judged(compared(), "a", 7.0)]) == []


def test_an_export_gives_the_tables_of_what_was_exported(tmp_path):
    annotations = [judged(compared(), "ab", 0.3), judged(compared(), "ba", None), judged(compared("Sing."), "ab", 1.0)]
    write_jsonl(tmp_path / "export.jsonl", rows(annotations))
    (read,), (table,) = tabulate(read_export(tmp_path / "export.jsonl")), tabulate(annotations)
    np.testing.assert_equal(read.pairs.first, table.pairs.first)
    np.testing.assert_equal(read.pairs.second, table.pairs.second)
    assert read.pairs.prompts == table.pairs.prompts


def test_difficulties_are_those_of_the_instructions(tmp_path):
    file = tmp_path / "difficulty.jsonl"
    write_jsonl(file, [{"instruction": "one", "difficulty": 1}, {"instruction": "two", "difficulty": -0.5, "index": 1}])
    known = read_difficulties(file)
    assert difficulties_of(["two", "one", "two"], known, file).tolist() == [-0.5, 1.0, -0.5]
    with pytest.raises(RequestError, match=r"no difficulty for 2 of the 3 instructions, the first being 'three'"):
        difficulties_of(["one", "three", "four", "three"], known, file)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "one"}, r"difficulty.jsonl, row 2: 'difficulty' is missing"),
        ({"instruction": "one", "difficulty": "hard"}, r"row 2: 'difficulty' input should be a valid number"),
        ({"instruction": "one", "difficulty": NAN}, r"row 2: 'difficulty' input should be a finite number"),
        ({"instruction": "one", "difficulty": 2}, r"row 2: the instruction has another difficulty"),
    ],
)
def test_a_difficulty_that_is_none_is_told_with_its_row(tmp_path, row, message):
    file = tmp_path / "difficulty.jsonl"
    file.write_text("".join(json.dumps(content) + "\n" for content in [{"instruction": "one", "difficulty": 1}, row]))
    with pytest.raises(RequestError, match=message):
        read_difficulties(file)


def test_an_order_that_was_asked_and_never_read_is_no_order_that_was_not_asked():
    asked = [compared(question=f"{number}?") for number in range(3)]
    said = [judged(one, order, value) for one in asked for order, value in (("ab", 1.0), ("ba", None))]
    (table,) = tabulate(said)
    assert table.pairs.two_orders
    assert np.isnan(table.pairs.preference).all()
    assert bias_report(table.pairs).unparsed.value == 0.5
    (one_order,) = tabulate([each for each in said if each[1].order == "ab"])
    assert one_order.pairs.preference.tolist() == [1, 1, 1]

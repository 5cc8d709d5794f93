"""Files of prompts and answers: the columns that are out there, and which answer belongs to which prompt."""

import json

import pytest

from posttrain.core.errors import RequestError
from posttrain.core.files import write_jsonl
from posttrain.core.wire import Message
from posttrain.llm_judge.answers.prompt_set import PromptSet, compare
from posttrain.llm_judge.answers.rows import Answer, read_rows


def rows(tmp_path, *contents, name="file.jsonl"):
    write_jsonl(tmp_path / name, contents)
    return read_rows(tmp_path / name)


def row(tmp_path, **content):
    return rows(tmp_path, content)[0]


def test_alpaca_evals_outputs(tmp_path):
    content = {"instruction": "Why?", "input": "Of birds.", "output": "So.", "generator": "m", "dataset": "helpful"}
    (tmp_path / "list.json").write_text(json.dumps([content | {"datasplit": "eval"}], indent=1))
    (found,) = read_rows(tmp_path / "list.json")
    assert (found.prompt.questions, found.prompt.category) == (("Why?\n\nOf birds.",), "helpful")
    assert (found.answer, found.generator) == (Answer(("So.",)), "m")


def test_mt_benchs_questions_and_answers(tmp_path):
    question = row(tmp_path, question_id=81, category="math", turns=["One?", "Two?"], reference=["1", "2"])
    assert question.prompt.questions == ("One?", "Two?")
    assert (question.prompt.id, question.prompt.category, question.prompt.reference) == ("81", "math", "1\n\n2")
    assert question.answer is None
    answer = row(tmp_path, question_id=81, answer_id="x", model_id="m", choices=[{"index": 0, "turns": ["a", "b"]}])
    assert (answer.id, answer.prompt, answer.answer, answer.generator) == ("81", None, Answer(("a", "b")), "m")


@pytest.mark.parametrize("column", ["output", "answer", "text"])
@pytest.mark.parametrize("asked", ["prompt", "instruction"])
def test_plain_columns(tmp_path, asked, column):
    found = row(tmp_path, **{asked: "Why?", column: "So.", "finish_reason": "length", "id": 7})
    assert (found.prompt.questions, found.answer, found.id) == (("Why?",), Answer(("So.",), cut=True), "7")


def test_a_conversation_ends_with_what_is_asked(tmp_path):
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    found = row(tmp_path, prompt=[*said, {"role": "user", "content": "Why?"}], output="So.")
    assert found.prompt.questions == ("Why?",)
    assert found.prompt.history == tuple(map(Message.model_validate, said))
    assert found.prompt.key == row(tmp_path, history=said, prompt="Why?").prompt.key
    assert found.prompt.key != row(tmp_path, prompt="Why?").prompt.key


def test_what_is_known_of_a_prompt(tmp_path):
    known = row(tmp_path, prompt="q", reference={"gsm8k": "2"}, rubric="be kind", difficulty=0.5, human=1).prompt
    assert (known.reference, known.rubric, known.difficulty, known.human) == ('{"gsm8k": "2"}', "be kind", 0.5, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"output": "x"}, "file.jsonl:1 has neither a prompt nor an id"),
        ({"turns": ["a", "b"], "output": "x"}, "1 answers do not belong to 2 questions"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "the prompt ends with the assistant"),
        ({"prompt": "x", "human": 2}, "'human' input should be less than or equal to 1"),
        ({"prompt": 7.5, "output": ["x"]}, "'output' input should be a valid string"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_its_line(tmp_path, content, message):
    with pytest.raises(RequestError) as caught:
        row(tmp_path, **content)
    assert message in str(caught.value)
    assert "file.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def matched(tmp_path, prompts, answers, grow=False):
    asked = PromptSet()
    asked.take(rows(tmp_path, *prompts, name="prompts.jsonl"), grow=True)
    return asked, asked.take(rows(tmp_path, *answers, name="answers.jsonl"), grow=grow)


def test_answers_find_their_prompt_by_text_whatever_their_ids_and_order(tmp_path):
    prompts = [{"prompt": "p", "id": 1}, {"prompt": "q", "id": 2}]
    _, found = matched(tmp_path, prompts, [{"prompt": "q", "id": 1, "output": "Q"}, {"prompt": "p", "output": "P"}])
    assert found.answers == {0: Answer(("P",)), 1: Answer(("Q",))}


def test_answers_without_a_prompt_find_it_by_id(tmp_path):
    prompts = [{"prompt": "p", "id": "a"}, {"turns": ["q", "r"], "id": "b"}]
    answers = [{"id": "b", "outputs": ["Q", "R"]}, {"id": "z", "output": "?"}]
    _, found = matched(tmp_path, prompts, answers)
    assert (found.answers, found.left_out) == ({1: Answer(("Q", "R"))}, 1)


def test_several_answers_to_one_text_are_told_apart_by_ids(tmp_path):
    prompts = [{"prompt": "p", "id": number, "output": str(number)} for number in range(3)]
    asked, found = matched(tmp_path, prompts, prompts[::-1])
    assert found.answers == {number: Answer((str(number),)) for number in range(3)}
    pairs = compare(asked.prompts, found.answers, found.answers, ("a", "b"))
    # Three samples of one prompt depend on each other.
    assert len({pair.prompt_id for pair in pairs}) == 1


def test_new_prompts_of_a_second_file_are_added(tmp_path):
    asked, found = matched(tmp_path, [{"prompt": "p"}], [{"prompt": "q", "output": "Q"}], grow=True)
    assert [prompt.questions for prompt in asked.prompts] == [("p",), ("q",)]
    assert found.answers == {1: Answer(("Q",))}


def test_what_only_one_file_says_of_a_prompt_is_kept(tmp_path):
    asked, _ = matched(tmp_path, [{"prompt": "p", "output": "P"}], [{"prompt": "p", "category": "c", "human": 0}])
    assert (asked.prompts[0].category, asked.prompts[0].human) == ("c", 0)


def test_the_same_row_twice_is_counted_and_another_answer_refused(tmp_path):
    same = {"prompt": "p", "output": "P"}
    _, found = matched(tmp_path, [{"prompt": "p"}], [same, same])
    assert (found.answers, found.repeated) == ({0: Answer(("P",))}, 1)
    with pytest.raises(RequestError, match=r"answers.jsonl:2 has another answer to the prompt of .*answers.jsonl:1"):
        matched(tmp_path, [{"prompt": "p"}], [same, {"prompt": "p", "output": "no"}])


@pytest.mark.parametrize(
    ("prompts", "answers", "message"),
    [
        ([{"id": 1, "output": "x"}], [], "prompts.jsonl:1 has an id and no prompt; give the prompts with --prompts"),
        ([{"prompt": "p", "id": 1}, {"prompt": "p", "id": 2}], [{"prompt": "p", "output": "x"}], "occurs 2 times"),
        ([{"prompt": "p", "id": 1}, {"prompt": "q", "id": 1}], [{"id": 1, "output": "x"}], "2 prompts have the id '1'"),
        ([{"turns": ["p", "q"], "id": 1}], [{"id": 1, "output": "x"}], "1 answers do not belong to 2 questions"),
    ],
)
def test_what_cannot_be_matched_is_refused(tmp_path, prompts, answers, message):
    asked = PromptSet()
    with pytest.raises(RequestError) as caught:
        asked.take(rows(tmp_path, *prompts, name="prompts.jsonl"), grow=True)
        asked.take(rows(tmp_path, *answers, name="answers.jsonl"), grow=False)
    assert message in str(caught.value)


def test_comparisons_have_both_answers_and_what_is_known(tmp_path):
    prompts = [{"prompt": "p", "id": 1, "category": "c", "rubric": "r"}, {"prompt": "q", "id": 2}]
    asked, found = matched(tmp_path, prompts, [{"prompt": "p", "output": "P", "finish_reason": "length"}])
    (pair,) = compare(asked.prompts, found.answers, {0: Answer(("B",)), 1: Answer(("C",))}, ("old", "new"))
    assert (pair.answers_a, pair.cut_a, pair.generator_a) == (("P",), True, "old")
    assert (pair.answers_b, pair.cut_b, pair.generator_b) == (("B",), False, "new")
    assert (pair.prompt_id, pair.category, pair.rubric) == ("1", "c", "r")

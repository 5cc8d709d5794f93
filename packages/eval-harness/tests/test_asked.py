"""What the tasks ask, by the ids of their item files, with what verifiers need."""

import pytest

from posttrain.core.errors import RequestError
from posttrain.data.nano.corpus import evaluation_items
from posttrain.eval_harness.asked import asked, has_references
from posttrain.eval_harness.evaluation import evaluate


def test_instructions_are_asked_as_the_corpus_has_them():
    found = asked("nano_instructions")
    items = {item["id"]: item for item in evaluation_items("instructions", "test")}
    assert list(found) == list(items)
    assert all(found[id].prompt == item["prompt"] for id, item in items.items())
    references = [found[id].reference["instructions"] for id in items]
    assert [[one["id"] for one in asked] for asked in references] == [i["instruction_id_list"] for i in items.values()]
    assert [[one["kwargs"] for one in asked] for asked in references] == [i["kwargs"] for i in items.values()]


def test_a_problems_reference_is_the_number_at_its_end(nano_items):
    nano_items([{"id": "p0", "question": "Two and two?", "answer": "<<2+2=4>>\n#### 4"}])
    found = asked("nano_problems")
    assert list(found) == ["p0"]
    assert "Two and two?" in found["p0"].prompt
    assert found["p0"].reference == {"answer": "4"}


def test_ids_are_those_of_the_item_files(scripted, nano_items):
    nano_items([{"id": f"p{n}", "question": "?", "answer": "#### 1"} for n in range(3)])
    scripted(say=lambda doc: "#### 1")
    items = evaluate("unused", ["nano_problems"], limit=2)["nano_problems"].items
    assert [item["id"] for item in items] == list(asked("nano_problems"))[:2]


def test_a_task_without_an_id_in_its_docs_has_their_numbers_and_no_reference(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"q": "one?"}\n{"q": "two?"}\n')
    (tmp_path / "mine.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: q\ndoc_to_target: q\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    found = asked("mine", tmp_path)
    assert {id: (one.prompt, one.reference) for id, one in found.items()} == {"0": ("one?", None), "1": ("two?", None)}
    assert (has_references("mine"), has_references("nano_instructions_validation")) == (False, True)


def test_what_has_no_answers_is_told():
    with pytest.raises(RequestError, match="nano_choice is a multiple_choice task, which has no answers; name"):
        asked("nano_choice")
    with pytest.raises(RequestError, match="'nano' is a group of tasks; name one of them"):
        asked("nano")

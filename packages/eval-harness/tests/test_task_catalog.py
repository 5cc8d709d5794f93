"""Claims about finding tasks: by name, by include path, from a local mirror, and what a wrong name is told."""

import gzip
import json
import os
from pathlib import Path

import datasets
import pytest

from posttrain.core.errors import RequestError
from posttrain.eval_harness.catalog import NANO_TASKS, load_tasks, stock_names, task_version
from posttrain.eval_harness.evaluation import evaluate
from posttrain.eval_harness.mirror import mirror_folder, read_mirror
from posttrain.eval_harness.task_files import TaskEntry, leaves, read_entries

HERE = Path(__file__).resolve()
DATA = Path(os.environ.get("POSTTRAIN_DATA") or HERE.parents[4] / "shared" / "data")
needs_data = pytest.mark.skipif(not (DATA / "openai/gsm8k").is_dir(), reason="POSTTRAIN_DATA holds no openai/gsm8k")

CAPITALS = """
task: capitals
custom_dataset: !function rows.rows
output_type: generate_until
test_split: test
doc_to_text: question
doc_to_target: answer
generation_kwargs: {until: ["."], do_sample: false, max_gen_toks: 8}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 3}
"""
ROWS = """
import datasets

def rows(**_):
    items = [{"question": "Capital of France?", "answer": "Paris"}, {"question": "Of Italy?", "answer": "Rome"}]
    return {"test": datasets.Dataset.from_list(items)}
"""


@pytest.fixture
def user_folder(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "capitals.yaml").write_text(CAPITALS)
    (folder / "rows.py").write_text(ROWS)
    return folder


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror in the Hub's layout with rows of our own in GSM8K's and MMLU's columns."""

    def write(place, rows):
        path = tmp_path / "mirror" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    problems = [{"question": f"What is {n} + 1?", "answer": f"<<{n}+1={n + 1}>>\n#### {n + 1}"} for n in range(8)]
    write("openai/gsm8k/main/test.jsonl", problems[:3])
    write("openai/gsm8k/main/train.jsonl", problems[3:])
    facts = [
        {"question": f"{subject} {n}?", "subject": subject, "choices": list("abcd"), "answer": n % 4}
        for n in range(6)
        for subject in ("anatomy", "virology")
    ]
    write("cais/mmlu/all/test.jsonl", facts)
    write("cais/mmlu/all/dev.jsonl", facts[:6])
    monkeypatch.setenv("POSTTRAIN_DATA", str(tmp_path / "mirror"))


def test_users_own_task_runs_by_include_path(scripted, user_folder):
    scripted(say=lambda doc: "Paris")
    result = evaluate("unused", ["capitals"], include_path=user_folder)["capitals"]
    assert result.value == 0.5
    assert result.version == 3
    assert [item["id"] for item in result.items] == ["0", "1"]
    assert not any("cluster" in item for item in result.items)


PASSAGES = """
import datasets

def rows(**_):
    items = [{"question": f"{place} {n}?", "answer": "Paris", "cluster": place} for place in "ab" for n in range(3)]
    return {"test": datasets.Dataset.from_list(items)}
"""


def test_users_task_names_what_its_items_share_by_a_key_of_its_docs(scripted, user_folder):
    (user_folder / "rows.py").write_text(PASSAGES)
    (user_folder / "group.yaml").write_text("group: atlas\ntask: [capitals]\nmetadata: {version: 1}\n")
    scripted(say=lambda doc: "Paris" if doc["cluster"] == "a" else "Rome")
    result = evaluate("unused", ["atlas"], include_path=user_folder)
    assert [item["cluster"] for item in result["capitals"].items] == list("aaabbb")
    # Three right and three wrong, but two pieces of evidence: residuals 3/2 and −3/2, √(2/1 · 9/2) / 6.
    assert result["capitals"].standard_error == pytest.approx(0.5)
    assert [item["cluster"] for item in result["atlas"].items] == [f"capitals/{place}" for place in "aaabbb"]


def test_unknown_task_is_told_the_nearest():
    with pytest.raises(RequestError, match="unknown task 'nano_problem'.*did you mean 'nano_problems'"):
        load_tasks(["nano_problem"])
    with pytest.raises(RequestError, match=r"unknown task 'zzqqzzqq' \(choose from: gsm8k, ifeval, mmlu, nano_choice"):
        load_tasks(["zzqqzzqq"])


def test_stock_names_know_tasks_groups_and_tags_without_an_index():
    names = stock_names()
    for name in ("gsm8k", "hellaswag", "mmlu_anatomy"):
        assert Path(names[name] or "").name == f"{name}.yaml"
    assert names["mmlu"] is None
    assert names["math_word_problems"] is None


def test_no_task_and_bad_folders_are_refused(tmp_path, user_folder):
    with pytest.raises(RequestError, match="no task named"):
        load_tasks([])
    with pytest.raises(RequestError, match="is not a folder"):
        load_tasks(["nano_choice"], tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="holds no task file"):
        load_tasks(["nano_choice"], tmp_path / "empty")
    (user_folder / "broken.yaml").write_text("task: [")
    with pytest.raises(RequestError, match=r"broken\.yaml cannot be read"):
        load_tasks(["capitals"], user_folder)


def test_group_written_out_within_another_stands_for_its_tasks(scripted, user_folder):
    for name in ("rivers", "lakes"):
        (user_folder / f"{name}.yaml").write_text(f"include: capitals.yaml\ntask: {name}\n")
    (user_folder / "atlas.yaml").write_text(
        "group: atlas\ntask: [{group: water, task: [rivers, {task: lakes, num_fewshot: 0}]}, capitals]\n"
    )
    index = read_entries([user_folder])
    assert leaves(index, ["atlas"]) == {"atlas", "rivers", "lakes", "capitals"}
    # A known group by name is that one, as lm-eval has it, whatever else stands beside its name.
    assert leaves({**index, "water": TaskEntry({"group": "water", "task": ["lakes"]})}, ["atlas"]) == {
        "atlas", "water", "lakes", "capitals",
    }  # fmt: skip
    scripted(say=lambda doc: "Paris")
    result = evaluate("unused", ["atlas"], include_path=user_folder)
    assert {name for name in ("rivers", "lakes", "capitals") if result[name].value == 0.5} == {
        "rivers", "lakes", "capitals",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "circle"),
    [
        ({"capitals.yaml": "capitals.yaml"}, r"capitals\.yaml → \S*/capitals\.yaml;"),
        (
            {"capitals.yaml": "one.yaml", "one.yaml": "./capitals.yaml"},
            r"capitals\.yaml → \S*/one\.yaml → \S*/capitals\.yaml;",
        ),
    ],
    ids=["itself", "by way of another"],
)
def test_task_file_that_includes_itself_is_refused_with_the_circle(user_folder, files, circle):
    for name, include in files.items():
        (user_folder / name).write_text(f"include: {include}\n{CAPITALS}")
    with pytest.raises(RequestError, match=rf"includes itself: \S*/{circle} take one of these includes out"):
        load_tasks(["capitals"], user_folder)


def test_file_that_two_others_include_is_no_circle(user_folder):
    for name in ("one", "two"):
        (user_folder / f"{name}.yaml").write_text("include: capitals.yaml\n")
    (user_folder / "both.yaml").write_text("include: [one.yaml, two.yaml]\ntask: both\n")
    assert task_version("both", user_folder) == 3


def test_task_that_a_group_holds_already_is_refused(user_folder):
    (user_folder / "group.yaml").write_text("group: atlas\ntask: [capitals]\n")
    with pytest.raises(RequestError, match="Duplicate task 'capitals': found in both 'capitals' and 'atlas'"):
        load_tasks(["capitals", "atlas"], user_folder)


def test_task_file_with_a_missing_function_is_refused(user_folder):
    (user_folder / "rows.py").write_text("")
    with pytest.raises(RequestError, match="no function 'rows'"):
        load_tasks(["capitals"], user_folder)


@pytest.mark.parametrize("name", [*NANO_TASKS, "nano_problems_validation"])
def test_version_read_from_the_file_is_that_of_the_loaded_task(name):
    assert task_version(name) == load_tasks([name])["tasks"][name].VERSION


def test_versions_of_stock_and_user_tasks(user_folder):
    assert task_version("gsm8k") == 3.0
    assert task_version("ifeval") == 4.0
    assert task_version("mmlu") == 2
    assert task_version("capitals", user_folder) == 3
    assert task_version("no_such_task") is None


def test_tag_stands_for_its_tasks(scripted):
    scripted(say=lambda doc: "", prefer=lambda doc, choice: 0.0)
    result = evaluate("unused", ["nano"], limit=2)
    assert set(result.requested) == set(NANO_TASKS)


def test_gsm8k_reads_the_mirror_and_keeps_the_stock_prompt_filters_and_examples(mirror, scripted):
    model = scripted(say=lambda doc: doc["answer"] if "0" in doc["question"] else "2")
    result = evaluate("unused", ["gsm8k"], apply_chat_template=False)["gsm8k"]
    assert (result.n, result.few_shot, result.version) == (3, 5, 3.0)
    assert model.prompts[0].endswith("Question: What is 0 + 1?\nAnswer:")
    assert model.prompts[0].count("Question:") == 6
    assert [item["scores"]["exact_match,flexible-extract"] for item in result.items] == [1, 1, 0]
    assert [item["score"] for item in result.items] == [1, 0, 0]


def test_mmlu_subject_is_taken_out_of_the_config_all(mirror):
    folder = mirror_folder("cais/mmlu")
    assert folder
    splits = read_mirror(folder, "virology")
    assert splits
    assert {name: len(rows) for name, rows in splits.items()} == {"dev": 3, "test": 6}
    assert set(splits["test"]["subject"]) == {"virology"}
    assert read_mirror(folder, "astrology") is None


@pytest.mark.parametrize("form", ["main/test.jsonl.gz", "main/test-00000-of-00001.parquet", "main/test.json"])
def test_mirror_holds_any_form_of_file(form, tmp_path):
    rows = [{"question": f"What is {n}?", "answer": f"#### {n}"} for n in range(3)]
    file = tmp_path / form
    file.parent.mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if form.endswith("gz"):
        file.write_bytes(gzip.compress(text.encode()))
    elif form.endswith("parquet"):
        datasets.Dataset.from_list(rows).to_parquet(str(file))
    else:
        file.write_text(json.dumps(rows))
    splits = read_mirror(tmp_path, "main")
    assert splits
    assert {name: list(split) for name, split in splits.items()} == {"test": rows}


def test_missing_dataset_is_one_line_with_the_place_to_put_it(monkeypatch):
    monkeypatch.delenv("POSTTRAIN_DATA", raising=False)
    with pytest.raises(RequestError, match=r"dataset openai/gsm8k \(main\) cannot be loaded.*POSTTRAIN_DATA"):
        load_tasks(["gsm8k"])


def test_ifeval_without_punkt_is_refused_before_the_run(monkeypatch, tmp_path):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    for _ in range(2):
        with pytest.raises(RequestError, match=r"ifeval needs NLTK's punkt_tab.*nltk\.downloader punkt_tab"):
            load_tasks(["ifeval"])
        # An empty folder of the right name passes lm-eval's own check.
        (tmp_path / "tokenizers/punkt_tab/english").mkdir(parents=True, exist_ok=True)


@needs_data
def test_real_gsm8k_items_through_the_mirror(scripted, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_DATA", str(DATA))
    scripted(say=lambda doc: doc["answer"])
    result = evaluate("unused", ["gsm8k"], few_shot=0)["gsm8k"]
    assert result.n == 1319
    assert result.metrics["exact_match,strict-match"].value == 1.0
    assert result.metrics["exact_match,flexible-extract"].value == 1.0


@needs_data
def test_real_truthfulqa_and_mmlu_through_the_mirror(scripted, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_DATA", str(DATA))
    scripted(prefer=lambda doc, choice: -float(len(choice)))
    result = evaluate("unused", ["truthfulqa_mc2", "mmlu"], limit=2)
    assert result["truthfulqa_mc2"].n == 2
    assert result["mmlu"].n == 57 * 2
    assert result.requested == ("truthfulqa_mc2", "mmlu")
    scores = [item["score"] for item in result["mmlu"].items]
    assert result["mmlu"].value == pytest.approx(sum(scores) / len(scores))
    assert len({item["id"] for item in result["mmlu"].items}) == 57 * 2

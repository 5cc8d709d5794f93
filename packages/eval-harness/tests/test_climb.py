"""Claims about the climb: tolerant answers on GSM8K, one row a stage, its table, and the items that were wrong."""

import json
from importlib.metadata import EntryPoint
from threading import Thread

import pytest

from posttrain.core import cli
from posttrain.core.errors import RequestError
from posttrain.core.files import read_jsonl
from posttrain.eval_harness.asked import asked
from posttrain.eval_harness.evaluation import evaluate
from posttrain.eval_harness.result import Metric, TaskResult
from posttrain.eval_harness.stage_table import append_stage, read_stages
from posttrain.eval_harness.tolerant import answer_of, extract, grade, value_of

ROWS = [{"question": f"How many is {n}?", "answer": f"Count to {n}.\n#### {n}"} for n in (1, 2, 1000, 4)]
ANSWERS = ["<answer>1</answer> or 7", "#### 2\nand 9 more", "It is $1,000.00", "three"]


@pytest.fixture
def gsm8k(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_DATA", str(tmp_path / "mirror"))
    folder = tmp_path / "mirror/openai/gsm8k/main"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


@pytest.mark.parametrize(
    ("text", "answer", "value"),
    [
        ("first 3, then <answer>4</answer> #### 5", "4", 4),
        ("<answer>about 4 or 5</answer>", "5", 5),
        ("<answer>four</answer> 9", "four", None),
        ("<answer></answer> 9", "9", 9),
        ("<answer>1 <answer>2</answer>", "2", 2),
        ("#### 12\nwell, 13", "12", 12),
        ("#### none, so 3", "3", 3),
        ("1,234 apples", "1,234", 1234),
        ("10-4", "4", 4),
        ("it costs -$2.50", "-$2.50", -2.5),
        ("50%", "50%", 50),
        ("3/4", "3/4", 0.75),
        ("nothing", None, None),
        ("1e999", "1e999", None),
    ],
)
def test_answer_is_taken_from_tag_then_hashes_then_the_last_number(text, answer, value):
    assert answer_of(text) == answer
    assert value_of(answer or "") == value


def test_equal_numbers_are_one_text_so_that_votes_are_counted_together():
    assert extract([["1,000", "#### 1000.0", "$1000"], ["none"]], [{}, {}]) == [["1000"] * 3, ["[invalid]"]]
    assert grade({"answer": "so\n#### 1,000"}, ["1000"]) == {"exact_match": 1.0}
    assert grade({"answer": "so\n#### 1,000"}, ["[invalid]"]) == {"exact_match": 0.0}


def test_task_poses_the_bare_question_and_accepts_every_form(gsm8k, scripted):
    said = dict(zip((row["question"] for row in ROWS), ANSWERS, strict=True))
    model = scripted(say=lambda doc: said[doc["question"]])
    task = evaluate("unused", ["gsm8k_climb"])["gsm8k_climb"]
    assert [item["score"] for item in task.items] == [1.0, 1.0, 1.0, 0.0]
    assert [item["prediction"] for item in task.items] == ["1", "2", "1000", "[invalid]"]
    assert (task.value, task.few_shot, task.headline) == (0.75, 0, "exact_match,tolerant")
    assert model.prompts[0] == "<user>How many is 1?"
    posed = asked("gsm8k_climb")
    assert [posed[item["id"]].reference for item in task.items] == [{"gsm8k": n} for n in ("1", "2", "1000", "4")]


def result(value, n=4, task="gsm8k_climb", **metrics):
    told = {"exact_match,tolerant": Metric(value, 0.1)} | {name: Metric(v, None) for name, v in metrics.items()}
    return TaskResult(task, 1.0, 0, None, n, "hf", "exact_match,tolerant", told, [])


def test_a_stage_that_comes_again_replaces_its_row_in_its_place(tmp_path):
    file = tmp_path / "stages.jsonl"
    for stage, value in (("base", 0.1), ("sft", 0.2), ("base", 0.15)):
        append_stage(file, stage, f"runs/{stage}", result(value))
    assert len(read_jsonl(file)) == 3
    rows = read_stages(file)
    assert [(row["stage"], row["accuracy"]) for row in rows] == [("base", 0.15), ("sft", 0.2)]
    assert set(rows[0]) >= {"stage", "accuracy", "n", "standard_error", "checkpoint"}


def test_stages_that_finish_together_lose_no_row(tmp_path):
    file = tmp_path / "stages.jsonl"
    writers = [
        Thread(target=lambda n=n: [append_stage(file, f"{n}-{i}", "c", result(0.5)) for i in range(10)])
        for n in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len({row["stage"] for row in read_stages(file)}) == 40


def test_command_appends_a_row_a_stage_and_prints_the_table(
    gsm8k, scripted, tiny_checkpoint, tmp_path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    scripted(say=lambda doc: doc["answer"])
    arguments = ["--tasks", "gsm8k_climb", "--append", "stage_table.jsonl", "--limit", "3"]
    assert cli.run(["eval", tiny_checkpoint, *arguments, "--stage", "base"]) == 0
    scripted(say=lambda doc: "2")
    assert cli.run(["eval", tiny_checkpoint, *arguments, "--stage", "sft", "--table"]) == 0
    out, _ = capfd.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[-2:] == [["base", "1.0000", "0.0000", "3"], ["sft", "0.3333", "0.3333", "3"]]
    assert cli.run(["eval", "--append", "stage_table.jsonl", "--table", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert [row["stage"] for row in told["stages"]] == ["base", "sft"]
    assert told["stages"][1]["checkpoint"] == tiny_checkpoint


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "name a CHECKPOINT"),
        (["here", "--stage", "sft"], "name it by --append"),
        (["here", "--append", "t.jsonl"], "name it by --stage"),
        (["here", "--append", "t.jsonl", "--stage", "sft"], "t.jsonl:1 is no row of a stage table"),
        (["here", "--pass-at", "4"], "give their number by --samples"),
        (["here", "--samples", "4", "--pass-at", "four"], "--pass-at takes numbers"),
        (["here", "--tokenizer", "there"], "leave it or CHECKPOINT out"),
        (["--tokenizer", "there"], "needs --backend service"),
    ],
)
def test_half_a_request_is_one_line_and_status_2(arguments, complaint, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text('{"loss": 1}\n')
    (tmp_path / "here").mkdir()
    (tmp_path / "here/config.json").write_text("{}")
    assert cli.run(["eval", *arguments]) == 2
    _, err = capfd.readouterr()
    assert complaint in err
    assert len(err.strip().splitlines()) == 1


@pytest.fixture
def with_show(monkeypatch):
    """The command tree as an installation of this version has it."""
    commands = {
        "eval": "posttrain.eval_harness.command:evaluate_checkpoint",
        "eval.show": "posttrain.eval_harness.show_command:show",
    }
    entries = [EntryPoint(name, target, cli.GROUP) for name, target in commands.items()]
    monkeypatch.setattr(cli, "entry_points", lambda group: entries)


def test_show_lists_wrong_answers_beside_question_and_gold(gsm8k, scripted, with_show, tmp_path, capfd):
    said = dict(zip((row["question"] for row in ROWS), [*ANSWERS[:3], "three\x1b[J"], strict=True))
    scripted(say=lambda doc: said[doc["question"]])
    evaluate("unused", ["gsm8k_climb"], out_dir=tmp_path / "items")
    assert cli.run(["eval", "show", str(tmp_path / "items"), "--wrong"]) == 0
    out, _ = capfd.readouterr()
    assert "How many is 4?" in out
    assert "#### 4" in out
    assert "three\\x1b[J" in out
    assert "[invalid]" in out
    assert "How many is 2?" not in out
    assert "1 shown; 1 of 4 below the full score" in out
    assert cli.run(["eval", "show", str(tmp_path / "items/gsm8k_climb.jsonl"), "--jsonl"]) == 0
    shown = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(item["question"], item["score"]) for item in shown][:2] == [
        ("How many is 1?", 1.0),
        ("How many is 2?", 1.0),
    ]


def test_show_names_the_choice_that_was_likeliest(scripted, nano_items, with_show, tmp_path, capfd):
    items = [{"id": str(n), "question": f"Q{n}?", "choices": ["a", "bb", "c"], "answer": n} for n in range(3)]
    nano_items(items)
    scripted(prefer=lambda doc, choice: -abs(len(choice) - 2.0))
    evaluate("unused", ["nano_choice"], out_dir=tmp_path)
    assert cli.run(["eval", "show", str(tmp_path), "--wrong", "--jsonl"]) == 0
    shown = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(item["gold"], item["answer"]) for item in shown] == [("a", "bb"), ("c", "bb")]


def test_show_takes_a_groups_items_from_the_files_of_its_tasks(scripted, nano_items, with_show, tmp_path, capfd):
    nano_items([{"id": str(n), "question": f"Q{n}?", "choices": ["a", "bb"], "answer": n} for n in range(2)])
    scripted(prefer=lambda doc, choice: -len(choice))
    (tmp_path / "tasks").mkdir()
    group = "group: pair\ntask: [nano_choice]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    (tmp_path / "tasks/pair.yaml").write_text(group)
    evaluate("unused", ["pair"], include_path=tmp_path / "tasks", out_dir=tmp_path / "items")
    assert {file.stem for file in (tmp_path / "items").glob("*.jsonl")} == {"pair", "nano_choice"}
    for named in ([], ["--task", "pair"], ["--task", "nano_choice"]):
        assert cli.run(["eval", "show", str(tmp_path / "items"), "--jsonl", *named]) == 0
        shown = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert [(item["task"], item["id"], item["score"]) for item in shown] == [
            ("nano_choice", "0", 1.0),
            ("nano_choice", "1", 0.0),
        ]


def test_show_asks_which_where_a_checkpoint_was_evaluated_in_two_ways(scripted, nano_items, with_show, tmp_path, capfd):
    nano_items([{"id": str(n), "question": f"Q{n}?", "choices": ["a", "bb"], "answer": n} for n in range(2)])
    scripted(prefer=lambda doc, choice: -len(choice))
    evaluate("unused", ["nano_choice"], out_dir=tmp_path / "hf")
    assert cli.run(["eval", "show", str(tmp_path)]) == 0
    assert "2 shown" in capfd.readouterr().out
    evaluate("unused", ["nano_choice"], limit=1, out_dir=tmp_path / "hf-limit-1")
    assert cli.run(["eval", "show", str(tmp_path)]) == 2
    assert "holds 2 evaluations (hf, hf-limit-1); give the folder of one of them" in capfd.readouterr().err
    assert cli.run(["eval", "show", str(tmp_path / "hf-limit-1")]) == 0
    assert "1 shown" in capfd.readouterr().out


@pytest.mark.parametrize(
    "item",
    [
        {"prediction": 7, "score": 1},
        {"prediction": None, "score": 1},
        {"score": 1},
        {"prediction": 0, "score": "good"},
    ],
)
def test_an_item_that_is_not_as_the_task_leaves_it_is_told_in_a_line(item, nano_items, with_show, tmp_path, capfd):
    nano_items([{"id": "a", "question": "Q?", "choices": ["a", "bb"], "answer": 0}])
    (tmp_path / "nano_choice.jsonl").write_text(json.dumps({"id": "a", **item}) + "\n")
    assert cli.run(["eval", "show", str(tmp_path)]) == 2
    assert "item 'a' is not as task nano_choice leaves it" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("nano_problems.jsonl", '{"loss": 1}\n', "is no item of an evaluation"),
        ("nano_problems.jsonl", '{"id": "zz", "score": 1}\n', "has no item 'zz'"),
        ("notes.txt", "", "holds no item file"),
    ],
)
def test_what_is_no_item_file_is_told_in_a_line(name, content, complaint, with_show, tmp_path, capfd):
    (tmp_path / name).write_text(content)
    assert cli.run(["eval", "show", str(tmp_path)]) == 2
    assert complaint in capfd.readouterr().err


def test_other_rows_are_refused_by_line(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"stage": "a"}\n')
    with pytest.raises(RequestError, match=r"t\.jsonl:1 is no row of a stage table: it has no task, accuracy, n"):
        read_stages(tmp_path / "t.jsonl")


@pytest.mark.parametrize("half", ["", '{"stage": "dpo", "task": "gsm'])
def test_a_row_that_a_crash_cut_short_is_passed_over_and_replaced(half, tmp_path):
    file = tmp_path / "stages.jsonl"
    file.write_text(half)
    assert read_stages(file) == []
    append_stage(file, "sft", "runs/sft", result(0.2))
    with file.open("a") as table:
        table.write(half)
    assert [row["stage"] for row in read_stages(file)] == ["sft"]
    append_stage(file, "dpo", "runs/dpo", result(0.3))
    assert [row["stage"] for row in read_stages(file)] == ["sft", "dpo"]


def test_a_table_whose_last_row_lacks_its_newline_keeps_it(tmp_path):
    file = tmp_path / "stages.jsonl"
    append_stage(file, "sft", "runs/sft", result(0.2))
    file.write_bytes(file.read_bytes().rstrip(b"\n"))  # as an editor leaves it
    assert [row["stage"] for row in read_stages(file)] == ["sft"]
    append_stage(file, "dpo", "runs/dpo", result(0.3))
    assert [row["stage"] for row in read_stages(file)] == ["sft", "dpo"]


def test_a_row_whose_numbers_are_none_is_refused_by_line(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"stage": ["a"], "task": "t", "accuracy": "high", "n": 3}\n')
    with pytest.raises(RequestError, match=r"t\.jsonl:1 is no row of a stage table: its accuracy"):
        read_stages(tmp_path / "t.jsonl")
    with pytest.raises(RequestError, match="the table of stages .* cannot be read"):
        read_stages(tmp_path)


def test_a_stages_name_is_shown_as_it_is(tmp_path, capfd):
    append_stage(tmp_path / "t.jsonl", "sft[lora]", "runs/sft", result(0.2))
    assert cli.run(["eval", "--append", str(tmp_path / "t.jsonl"), "--table"]) == 0
    assert "sft[lora]" in capfd.readouterr().out

"""Claims about evaluate() and `posttrain eval` on a real (random) checkpoint: files, store, reuse of keys, silence."""

import json
import math
from pathlib import Path

import pytest
import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from posttrain.core.cli import run
from posttrain.core.errors import RequestError, WorkError
from posttrain.core.files import read_jsonl
from posttrain.core.results import append_result, read_results
from posttrain.eval_harness.catalog import NANO_TASKS, TASK_FOLDER
from posttrain.eval_harness.command import checkpoint_identity
from posttrain.eval_harness.evaluation import backend_label, evaluate
from posttrain.eval_harness.model import CheckpointLM
from posttrain.eval_harness.quiet import quiet
from posttrain.eval_harness.result import Metric, TaskResult


@pytest.fixture(scope="module")
def evaluated(tiny_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    result = evaluate(
        tiny_checkpoint,
        NANO_TASKS,
        limit=12,
        max_gen_toks=16,
        out_dir=out / "eval",
        results_path=out / "metrics.jsonl",
        identity={"fingerprint": "abc", "method": "base"},
    )
    return result, out


def test_every_task_has_value_error_n_few_shot_limit_and_version(evaluated):
    result, _ = evaluated
    assert result.requested == NANO_TASKS
    for name in NANO_TASKS:
        task = result[name]
        assert (task.n, task.few_shot, task.limit, task.version) == (12, 0, 12, 1.0)
        for metric in task.metrics.values():
            assert 0 <= metric.value <= 1
            assert metric.standard_error is not None


def test_item_files_hold_one_object_an_item_whose_scores_average_to_the_value(evaluated):
    result, out = evaluated
    for name in NANO_TASKS:
        rows = read_jsonl(out / "eval" / f"{name}.jsonl")
        assert rows == result[name].items
        assert len({row["id"] for row in rows}) == 12
        for metric, estimate in result[name].metrics.items():
            scores = [row["scores"][metric] for row in rows]
            flat = [s for score in scores for s in (score if isinstance(score, list) else [score])]
            assert sum(flat) / len(flat) == pytest.approx(estimate.value)


def test_generated_answers_have_text_and_finish_reason_and_choices_have_not(evaluated):
    result, _ = evaluated
    for name in ("nano_problems", "nano_instructions"):
        assert {item["finish_reason"] for item in result[name].items} <= {"stop", "length"}
        assert all(isinstance(item["text"], str) for item in result[name].items)
    for name in ("nano_choice", "nano_mc2"):
        assert not any("text" in item or "finish_reason" in item for item in result[name].items)


def test_store_has_one_row_a_task_and_a_second_run_replaces_it(evaluated, tiny_checkpoint):
    result, out = evaluated
    store = out / "metrics.jsonl"
    rows = read_results(store)
    assert [row["task"] for row in rows] == list(NANO_TASKS)
    assert rows[0]["method"] == "base"
    assert rows[0]["metrics"]["acc"]["value"] == result["nano_choice"].value
    again = evaluate(
        tiny_checkpoint, ["nano_choice"], limit=12, max_gen_toks=16, results_path=store, identity={"fingerprint": "abc"}
    )
    assert len(read_results(store)) == len(NANO_TASKS)
    assert again["nano_choice"].items == result["nano_choice"].items


def test_a_task_repeats_to_the_bit_whatever_other_tasks_run_with_it(evaluated, tiny_checkpoint):
    result, _ = evaluated
    again = evaluate(tiny_checkpoint, ["nano_mc2", "nano_instructions"], limit=12, max_gen_toks=16)
    for name in again.requested:
        assert again[name].items == result[name].items


def test_stock_lm_eval_runs_the_task_files_to_the_same_values(evaluated, tiny_checkpoint):
    result, _ = evaluated
    with quiet():
        ours = CheckpointLM(tiny_checkpoint, 64, "cpu", torch.float32, None)
        stock = HFLM(pretrained=ours.model, tokenizer=ours.tokenizer, batch_size=64)
        loaded = TaskManager(include_path=TASK_FOLDER, include_defaults=False).load(["nano_mc2", "nano_instructions"])
        for task in loaded["tasks"].values():
            task.set_config(key="num_fewshot", value=0)
            if task.OUTPUT_TYPE == "generate_until":
                task.set_config(key="generation_kwargs", value={"max_gen_toks": 16}, update=True)
        raw = evaluator.evaluate(
            stock, loaded, limit=12, apply_chat_template=True, fewshot_as_multiturn=True, log_samples=True
        )
    texts = [sample["resps"][0][0] for sample in raw["samples"]["nano_instructions"]]
    assert texts == [item["text"] for item in result["nano_instructions"].items]
    stock_mc2 = raw["results"]["nano_mc2"]
    assert stock_mc2["acc,none"] == pytest.approx(result["nano_mc2"].value, abs=1e-6)
    stock_error = raw["results"]["nano_instructions"]["prompt_level_strict_acc_stderr,none"]
    error = result["nano_instructions"].metrics["prompt_level_strict_acc"].standard_error
    assert stock_error == pytest.approx(error, abs=1e-6)


def test_brackets_in_names_are_shown_and_are_no_markup(scripted, tiny_checkpoint, tmp_path, capfd):
    scripted(prefer=lambda doc, choice: -len(choice))
    folder = tmp_path / "lr[/red]"
    folder.mkdir(parents=True)  # the slash makes two folders, and a closing tag of their path
    (folder / "sft[lora]").symlink_to(tiny_checkpoint)
    arguments = ["--tasks", "nano_choice", "--limit", "2", "--out", str(folder / "out")]
    assert run(["eval", str(folder / "sft[lora]"), *arguments]) == 0
    out, _ = capfd.readouterr()
    assert str(folder / "sft[lora]") in out
    assert f"items in {folder / 'out'}/" in out


def test_what_was_done_before_a_service_ended_is_kept_and_told(scripted, tmp_path):
    def say(doc):
        raise WorkError("http://policy did not answer within 120 s; is the service running?")

    scripted(say=say, prefer=lambda doc, choice: -len(choice))
    wish = {
        "limit": 3,
        "out_dir": tmp_path,
        "results_path": tmp_path / "metrics.jsonl",
        "identity": {"fingerprint": "f"},
    }
    with pytest.raises(WorkError, match=r"is the service running\? \(what was done before is kept: nano_choice\)"):
        evaluate("unused", ["nano_choice", "nano_problems"], **wish)
    assert len(read_jsonl(tmp_path / "nano_choice.jsonl")) == 3
    assert [row["task"] for row in read_results(tmp_path / "metrics.jsonl")] == ["nano_choice"]


def test_departures_from_the_standard_evaluation_are_in_the_key():
    labels = {backend_label("hf"), backend_label("hf", False), backend_label("hf", True, 16)}
    assert len(labels) == 3
    assert backend_label("hf") == "hf"


def test_undefined_value_becomes_null_in_the_store(tmp_path):
    metrics = {"acc": Metric(math.nan, math.nan)}
    row = TaskResult("t", 1, 0, None, 2, "hf", "acc", metrics, []).row({"fingerprint": "f"})
    append_result(tmp_path / "metrics.jsonl", row)
    assert read_results(tmp_path / "metrics.jsonl")[0]["metrics"]["acc"] == {"value": None, "standard_error": None}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"limit": 0}, "--limit 0 leaves no items"),
        ({"few_shot": -1}, "--few-shot -1"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"max_gen_toks": 0}, "--max-gen-toks 0"),
        ({"backend": "vlm"}, "unknown backend 'vlm'"),
    ],
)
def test_wrong_settings_are_refused_before_anything_loads(options, complaint):
    with pytest.raises(RequestError, match=complaint):
        evaluate("nowhere", ["nano_choice"], **options)


def test_command_prints_json_last_and_the_table_to_standard_error(tiny_checkpoint, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["eval", tiny_checkpoint, "--tasks", "nano_choice", "--limit", "3", "--json"]) == 0
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert told["results"][0]["n"] == 3
    assert (tmp_path / told["out"] / "nano_choice.jsonl").exists()
    assert [row["fingerprint"] for row in read_results(tmp_path / "runs/metrics.jsonl")] == [told["fingerprint"]]
    assert "nano_choice" in err
    assert "lm_eval" not in err
    assert "it/s" not in err


def test_an_evaluation_posed_otherwise_leaves_the_items_of_the_first_alone(
    scripted, nano_items, tiny_checkpoint, tmp_path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    nano_items([{"id": str(n), "question": f"Q{n}?", "choices": ["a", "bb"], "answer": n} for n in range(2)])
    scripted(prefer=lambda doc, choice: -len(choice))
    folders = []
    for options in ([], ["--limit", "1"], ["--no-chat-template"], ["--few-shot", "0"]):
        assert run(["eval", tiny_checkpoint, "--tasks", "nano_choice", "--json", *options]) == 0
        folders.append(Path(json.loads(capfd.readouterr().out)["out"]))
    assert [folder.name for folder in folders] == ["hf", "hf-limit-1", "hf-no-chat-template", "hf-0-shot"]
    assert len({folder.parent for folder in folders}) == 1
    assert [len(read_jsonl(folder / "nano_choice.jsonl")) for folder in folders] == [2, 1, 2, 2]


def test_ctrl_c_says_which_tasks_are_kept(scripted, nano_items, tiny_checkpoint, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nano_items([{"id": "0", "question": "Q?", "choices": ["a", "bb"], "answer": 0}])
    model = scripted(prefer=lambda doc, choice: -len(choice))
    arguments = ["eval", tiny_checkpoint, "--tasks", "nano_choice,nano_choice_validation"]

    def stopped(requests):
        raise KeyboardInterrupt

    likelihoods, asked = model.loglikelihood, []
    model.loglikelihood = lambda requests: stopped(requests) if asked else (asked.append(1) or likelihoods(requests))
    assert run(arguments) == 130
    assert "interrupted; kept: nano_choice; the same command starts anew" in capfd.readouterr().err
    assert [row["task"] for row in read_results(Path("runs/metrics.jsonl"))] == ["nano_choice"]
    model.loglikelihood = stopped
    assert run(arguments) == 130
    assert "interrupted; no task was done, nothing is kept" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{}", "--tasks", "nano_problem"], "did you mean 'nano_problems'"),
        (["{}", "--limit", "0"], "--limit 0"),
        (["{}", "--limit", "many"], "--limit"),
        (["/no/such/folder"], "does not exist"),
        (["../here"], "does not exist"),
        (["{}/config.json"], "is a file"),
        (["{}", "--include-path", "nowhere"], "is not a folder"),
    ],
)
def test_wrong_request_is_one_line_and_status_2(tiny_checkpoint, capfd, arguments, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["eval", *(argument.format(tiny_checkpoint) for argument in arguments)]) == 2
    out, err = capfd.readouterr()
    assert complaint in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_folder_without_config_or_tokenizer_is_refused(tiny_checkpoint, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert run(["eval", "empty"]) == 2
    assert "no config.json" in capfd.readouterr().err
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/config.json").write_text("{}")
    assert run(["eval", "bare", "--tasks", "nano_choice"]) == 2
    assert "has no tokenizer" in capfd.readouterr().err


def test_checkpoint_of_a_run_has_the_runs_fingerprint(tiny_checkpoint, tmp_path):
    folder = tmp_path / "run" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (tmp_path / "run" / "provenance.json").write_text('{"fingerprint": "f00"}')
    assert checkpoint_identity(str(folder), None)["fingerprint"] == "f00"
    of_weights = checkpoint_identity(tiny_checkpoint, None)["fingerprint"]
    assert len(of_weights) == 64
    assert checkpoint_identity("org/name", "a")["fingerprint"] != checkpoint_identity("org/name", "b")["fingerprint"]


def test_nano_base_computes_but_does_not_know_the_form():
    from posttrain.data.nano import BASE

    result = evaluate(BASE, ["nano_problems_validation"], limit=60)["nano_problems_validation"]
    assert result.metrics["exact_match,strict-match"].value < 0.1
    assert result.metrics["exact_match,flexible-extract"].value > result.metrics["exact_match,strict-match"].value

"""The check of the stages on a GPU: skipped with a reason without one, whole on a CPU, predictions of what is run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.gpu import check
from benchmarks.gpu.check_plan import CPU, GPU, TENSORS, stage_plans
from benchmarks.gpu.check_rows import write_rows
from posttrain.core.errors import RequestError
from posttrain.core.files import read_jsonl
from posttrain.data.chat import load_tokenizer
from posttrain.data.nano import BASE

ROOT = Path(__file__).parents[1]
STAGES = ["sft", "rm", "dpo", "ppo", "grpo"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_skipped_with_the_reason_and_writes_nothing(tmp_path):
    done = CliRunner().invoke(check.app, ["--json", "--out", str(tmp_path / "gpu")])
    assert done.exit_code == 0, done.output
    assert "there is no GPU here" in json.loads(done.stdout.splitlines()[-1])["skipped"]
    assert "skipped: there is no GPU here" in done.stderr
    assert not (tmp_path / "gpu").exists()


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_the_prediction_is_of_the_settings_that_are_run(tmp_path, adapter):
    plans = {plan.stage: plan for plan in stage_plans(tmp_path, adapter, GPU)}
    assert sorted(plans) == sorted(STAGES)
    for plan in plans.values():
        assert plan.settings["precision"] == "bf16"
        assert (plan.settings["adapter"] is None) == (adapter == "full")
        assert set(plan.predicted) <= set(TENSORS)
    assert plans["ppo"].settings["micro_batch_tokens"] == GPU.micro_batch * GPU.length
    sequences = [
        plans[name].settings["prompts_per_step"] * plans[name].settings["samples_per_prompt"]
        for name in ("ppo", "grpo")
    ]
    assert sequences == [GPU.batch, GPU.batch]
    # AdamW's two moments beside the gradients, in fp32, of what trains; a reference of its own without an adapter only.
    for plan in plans.values():
        assert plan.predicted["optimiser state"] == 2 * plan.predicted["gradients"]
    assert bool(plans["grpo"].predicted["reference model"]) == (adapter == "full")


def test_an_unknown_adapter_is_refused_before_any_stage_runs(monkeypatch):
    monkeypatch.setattr(check, "run_stages", lambda *_: pytest.fail("it ran"))
    done = CliRunner().invoke(check.app, ["--cpu", "--only", "full,lorra"])
    assert isinstance(done.exception, RequestError)
    assert "'lorra' (did you mean 'lora'?)" in str(done.exception)


def test_every_row_is_as_long_as_the_settings_let_through(tmp_path):
    write_rows(tmp_path, Path(BASE), CPU)
    tokenizer = load_tokenizer(BASE)

    def length(messages):
        return len(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))

    rows = {name: list(read_jsonl(tmp_path / f"{name}.jsonl")) for name in ("sft", "pairs", "prompts")}
    assert {len(each) for each in rows.values()} == {CPU.batch * (CPU.steps + 1)}
    whole = {length(row["messages"]) for row in rows["sft"]}
    whole |= {length(row["prompt"] + row[side]) for row in rows["pairs"] for side in ("chosen", "rejected")}
    assert whole == {CPU.length}
    prompts = {
        len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False))
        for row in rows["prompts"]
    }
    assert prompts == {CPU.length // 2}
    assert all(row["chosen"] != row["rejected"] for row in rows["pairs"])


@pytest.mark.slow
def test_all_stages_run_on_a_cpu_full_and_with_an_adapter(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu.check", "--cpu", "--json", "--out", str(tmp_path / "gpu")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert sorted((entry["stage"], entry["adapter"]) for entry in result["stages"]) == sorted(
        (stage, adapter) for stage in STAGES for adapter in ("full", "lora")
    )
    for entry in result["stages"]:
        assert entry["error"] == ""
        assert entry["tokens_per_second"] > 0
        assert entry["optimizer_steps"] >= CPU.steps
        assert entry["predicted_bytes"] == sum(entry["predicted_parts"].values()) > 0
        if not torch.cuda.is_available():
            assert entry["peak_memory_bytes"] is None
    assert not (tmp_path / "gpu").exists()


def test_a_stage_that_fails_is_told_and_those_after_it_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_run_stage", lambda plan, *_: (None, "out of memory"))
    monkeypatch.setattr(check, "random_model", lambda name: Path(BASE))
    done = CliRunner().invoke(check.app, ["--cpu", "--only", "lora", "--json"])
    assert [entry["stage"] for entry in json.loads(done.stdout.splitlines()[-1])["stages"]] == ["sft"]
    assert "1 of 1 stages failed; the first is sft (lora): out of memory" in str(done.exception)

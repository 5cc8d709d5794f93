"""The thread through the whole system, as a user runs it: `posttrain train ppo` on a small nano recipe.

The runs are short, so their numbers mean nothing; what is checked is that everything is there, is reused, survives
being killed, and ends with the same bits.
"""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file

pytestmark = [pytest.mark.service, pytest.mark.long]

SMALL = (
    "data.sft.rows=256",
    "sft.epochs=1",
    "data.preference_prompts.rows=48",
    "preferences.chunk_prompts=16",
    "rm.epochs=1",
    "ppo.steps=4",
    "ppo.save_every=1",
    "ppo.prompts_per_step=16",
    "evaluation.limit=12",
    "evaluation.policy_prompts=12",
    "threads=1",
)


def command(runs: Path, *arguments: str) -> list[str]:
    sets = [part for override in SMALL for part in ("--set", override)]
    return [sys.executable, "-m", "posttrain.core", "train", "ppo", "--runs", str(runs), "--json", *sets, *arguments]


def finish(runs: Path, *arguments: str) -> tuple[dict, str]:
    """Runs to the end; the JSON of the last line and what was said on standard error."""
    done = subprocess.run(command(runs, *arguments), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict, str]:
    """A finished small run: its folder, its JSON, its progress."""
    runs = tmp_path_factory.mktemp("calm") / "runs"
    return runs, *finish(runs)


def only(runs: Path, stage: str) -> Path:
    (path,) = (runs / "nano" / stage).iterdir()
    return path


def test_every_stage_leaves_what_the_design_says(trained):
    runs, _, _ = trained
    for stage in ("sft", "preferences", "rm", "ppo"):
        path = only(runs, stage)
        for name in ("config.yaml", "provenance.json", "metrics.jsonl"):
            assert (path / name).exists(), f"{stage} has no {name}"
        assert not (path / "state").exists()
    for stage in ("sft", "rm", "ppo"):
        names = {file.name for file in (only(runs, stage) / "checkpoint").iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"} <= names


def test_table_has_rows_differences_and_their_standard_errors(trained):
    _, table, _ = trained
    assert [row["method"] for row in table["rows"]] == ["base", "sft", "ppo"]
    assert [(d["after"], d["before"]) for d in table["differences"]] == [
        ("sft", "base"),
        ("ppo", "sft"),
        ("ppo", "base"),
    ]
    for row in table["rows"]:
        assert set(row["columns"]) == set(table["columns"])
        assert all(cell["standard_error"] >= 0 for cell in row["columns"].values())
    kl = {row["method"]: row["columns"]["KL from sft"]["value"] for row in table["rows"]}
    assert kl["sft"] == 0


def test_reward_model_reports_its_held_out_accuracy(trained):
    runs, _, _ = trained
    (path,) = (runs / "rm").glob("*.json")
    accuracy = json.loads(path.read_text())["accuracy"]["all"]
    assert 0 <= accuracy["accuracy"] <= 1
    assert accuracy["n"] > 0


def test_value_head_never_reaches_the_checkpoint(trained):
    runs, _, _ = trained
    sft, ppo = (load_file(only(runs, stage) / "checkpoint" / "model.safetensors") for stage in ("sft", "ppo"))
    assert {name: tensor.shape for name, tensor in ppo.items()} == {name: tensor.shape for name, tensor in sft.items()}
    assert any((ppo[name] != sft[name]).any() for name in sft)


def test_every_step_logs_gold_beside_learned_and_seconds_by_phase(trained):
    runs, _, _ = trained
    rows = [json.loads(line) for line in (only(runs, "ppo") / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    wanted = {"gold/mean", "score/rm/mean", "reward/std", "kl", "clip_fraction", "entropy"}
    wanted |= {f"seconds/{phase}" for phase in ("generation", "reward", "forward", "update")}
    assert wanted <= set(rows[0])
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4)


def test_second_call_reuses_everything(trained):
    runs, table, _ = trained
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file() and path.name != ".lock"}
    started = time.monotonic()
    again, said = finish(runs)
    assert again == table
    assert said.count("finished, reused") == 4
    assert "service ready" not in said
    assert time.monotonic() - started < 60
    after = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_nothing_outlives_the_run(trained):
    assert not _servers_below(trained[0])


def _start(runs: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    # What runs in a shell's background ignores Ctrl-C, and so would what it starts.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command(runs), stdout=pipe, stderr=pipe, text=True, start_new_session=True, preexec_fn=heeds
    )


def _wait_for_ppo(process: subprocess.Popen[str], runs: Path, steps: int) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        for path in (runs / "nano" / "ppo").glob("*/metrics.jsonl"):
            if len(path.read_text().splitlines()) >= steps:
                return
        time.sleep(0.02)
    raise AssertionError("PPO did not get that far")


def _servers_below(runs: Path) -> list[psutil.Process]:
    """BentoML processes that serve checkpoints below `runs`."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        settings = environment.get("POSTTRAIN_POLICY", "") + environment.get("POSTTRAIN_REWARD", "")
        if str(runs) in settings and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.mark.parametrize(
    "end",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_interrupted_run_leaves_no_server_and_resumes_to_the_same_bits(trained, tmp_path, end):
    process = _start(tmp_path)
    _wait_for_ppo(process, tmp_path, steps=2)
    os.killpg(process.pid, end)  # the whole group, as Ctrl-C in a terminal does
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (only(tmp_path, "ppo") / "provenance.json").exists()
    deadline = time.monotonic() + 20
    while _servers_below(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _servers_below(tmp_path)
    table, said = finish(tmp_path)
    assert "resuming" in said
    _same_results(trained, tmp_path, table)


def test_killed_services_are_replaced_and_nothing_is_lost(trained, tmp_path):
    process = _start(tmp_path)
    for steps in (1, 3):
        _wait_for_ppo(process, tmp_path, steps)
        for server in _servers_below(tmp_path):
            os.kill(server.pid, signal.SIGKILL)
    out, said = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert "starting it again" in said
    _same_results(trained, tmp_path, json.loads(out.splitlines()[-1]))


def _same_results(trained, runs: Path, table: dict) -> None:
    calm, expected, _ = trained
    ours, theirs = (load_file(only(r, "ppo") / "checkpoint" / "model.safetensors") for r in (runs, calm))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    for row, other in zip(table["rows"], expected["rows"], strict=True):
        assert row["columns"] == other["columns"]


def test_published_record_holds_the_table_its_command_and_every_evaluation(trained, tmp_path):
    runs, table, _ = trained
    sets = [part for override in SMALL for part in ("--set", override)]
    publish = [sys.executable, "-m", "posttrain.core", "results", "publish", "ppo", "--runs", str(runs)]
    done = subprocess.run([*publish, "--to", str(tmp_path), *sets], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "nano-ppo.json").read_text())
    assert record["rows"][-1]["columns"] == table["rows"][-1]["columns"]
    assert record["commands"][0].startswith(
        "posttrain compare --recipe nano --methods ppo --seeds 0 --set data.sft.rows=256"
    )
    assert str(runs) not in (tmp_path / "nano-ppo.json").read_text()
    rows = json.loads((tmp_path / "metrics.json").read_text())
    assert {(row["method"], row["task"].partition("-")[0]) for row in rows} == {
        (method, task)
        for method in ("base", "sft", "ppo")
        for task in ("nano_choice", "nano_problems", "nano_mc2", "nano_instructions", "policy")
    }
    assert "| ppo |" in (tmp_path / "nano-ppo.md").read_text()


def test_publishing_what_is_not_finished_says_what_to_run(tmp_path):
    publish = [sys.executable, "-m", "posttrain.core", "results", "publish", "ppo", "--runs", str(tmp_path)]
    done = subprocess.run([*publish, "--seeds", "0,1"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "run: posttrain compare --recipe nano --methods ppo --seeds 0,1" in done.stderr

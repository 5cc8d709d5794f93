"""A run that was killed and started again ends as one that was not: same weights, same metrics."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from posttrain.core.hashing import digest_checkpoint
from posttrain.core.runs import RunDirectory, StageIdentity
from posttrain.core.termination import Terminated, ending_in_order
from posttrain.data.sources import Source
from posttrain.trainers import reward_model, sft, training_report
from posttrain.trainers.resumable_trainer import COMPLETE, newest_checkpoint
from posttrain.trainers.stage import StageInputs, run_stage

pytestmark = pytest.mark.long

TIMES = ("seconds", "tokens_per_second")


class Killed(Exception):
    pass


def dying_after(step):
    """An `on_step_begin` of a callback that raises after a step, as a crash would."""

    def on_step_begin(self, args, state, control, **more):
        if state.global_step == step:
            raise Killed

    return on_step_begin


@pytest.fixture
def run_of(request, tmp_path, tiny_checkpoint, conversations, pairs, jsonl):
    """(name, dies after) -> RunDirectory; seven steps or more, saved every third."""
    method, _, packed = getattr(request, "param", "sft").partition(" ")
    module = {"sft": sft, "rm": reward_model}[method]
    data = jsonl("rows.jsonl", conversations if method == "sft" else pairs)
    settings = module.Settings(
        max_length=96, batch_size=8, epochs=1, log_every=2, eval_every=4, save_every=3, optimizer="muon", muon_lr=0.01,
        **({"packing": True} if packed else {}),
    )  # fmt: skip
    identity = StageIdentity(method, module.METHOD.version, {}, 0)

    def run(name, dies_after=None):
        inputs = StageInputs(RunDirectory(tmp_path / name), 0, tiny_checkpoint, source=Source(path=data), threads=1)
        if dies_after is not None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(training_report.Reporter, "on_step_begin", dying_after(dies_after))
                with pytest.raises(Killed):
                    run_stage(method, settings, inputs, identity)
        else:
            run_stage(method, settings, inputs, identity)
        return inputs.run

    return run


def metrics_of(run):
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.mark.parametrize(
    ("run_of", "dies_after"), [("sft", 1), ("sft", 3), ("sft packed", 5), ("rm", 5)], indirect=["run_of"]
)
def test_a_crashed_run_resumes_to_the_same_bits(run_of, dies_after):
    whole = run_of("whole")
    broken = run_of("broken", dies_after=dies_after)
    assert not broken.finished
    assert not broken.checkpoint.exists()
    resumed = run_of("broken")
    assert digest_checkpoint(resumed.checkpoint) == digest_checkpoint(whole.checkpoint)
    assert metrics_of(resumed) == metrics_of(whole)
    assert resumed.provenance()["resumed"]


def test_sigterm_saves_the_state_at_the_end_of_the_step_and_the_run_goes_on_to_the_same_bits(run_of, monkeypatch):
    # A busy machine takes its time.
    monkeypatch.setattr(training_report, "ending_in_order", partial(ending_in_order, 600.0))
    whole = run_of("whole")

    def ended(self, args, state, control, **more):
        if state.global_step == 4:  # neither saved nor logged there otherwise
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(training_report.Reporter, "on_step_begin", ended)
        with pytest.raises(Terminated):
            run_of("broken")
    broken = RunDirectory(whole.path.parent / "broken")
    assert not broken.finished
    assert newest_checkpoint(broken.state).name == "checkpoint-5"
    resumed = run_of("broken")
    assert digest_checkpoint(resumed.checkpoint) == digest_checkpoint(whole.checkpoint)
    # A row more, of the steps up to the save: no average reaches across it.
    assert {row["step"] for row in metrics_of(resumed)} == {row["step"] for row in metrics_of(whole)} | {5}
    assert metrics_of(resumed)[-1] == metrics_of(whole)[-1]


def test_a_run_that_resumes_does_not_start_over(run_of):
    broken = run_of("broken", dies_after=5)
    assert newest_checkpoint(broken.state) == broken.state / "checkpoint-3"
    first_rows = metrics_of(broken)[:2]
    stamps = [json.loads(line)["seconds"] for line in broken.metrics_path.read_text().splitlines()][:2]
    resumed = run_of("broken")
    again = [json.loads(line)["seconds"] for line in resumed.metrics_path.read_text().splitlines()]
    assert metrics_of(resumed)[:2] == first_rows
    assert again[:2] == stamps
    assert again == sorted(again)


def test_totals_of_a_resumed_run_are_those_of_an_undisturbed_one(run_of):
    whole = run_of("whole").provenance()["summary"]["totals"]
    run_of("broken", dies_after=5)
    resumed = run_of("broken").provenance()["summary"]["totals"]
    counts = ("prompts_seen", "examples_seen", "tokens_trained", "optimizer_steps")
    assert {name: resumed[name] for name in counts} == {name: whole[name] for name in counts}
    phases = {"seconds/update", "seconds/evaluation", "seconds/save"}
    assert {name for name in resumed if name.startswith("seconds/")} == phases
    assert resumed["seconds"] == pytest.approx(sum(resumed[name] for name in phases))


def test_seconds_before_a_kill_count_by_phase(run_of):
    broken = run_of("broken", dies_after=5)
    kept = broken.state / "checkpoint-3" / COMPLETE
    kept.write_text(json.dumps({"update": 1000.0, "evaluation": 200.0, "save": 30.0}))
    totals = run_of("broken").provenance()["summary"]["totals"]
    assert 1000 < totals["seconds/update"] < 1010
    assert 200 < totals["seconds/evaluation"] < 210
    assert 30 < totals["seconds/save"] < 40


def test_a_run_killed_behind_its_last_step_still_ends_with_held_out_metrics(run_of, monkeypatch):
    whole = run_of("whole").provenance()
    with monkeypatch.context() as patch:
        patch.setattr(sft, "save_trained", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run_of("broken")
    assert run_of("broken").provenance()["summary"]["held_out_loss"] == whole["summary"]["held_out_loss"]


def test_a_half_written_checkpoint_is_not_taken(run_of):
    whole = run_of("whole")
    broken = run_of("broken", dies_after=6)
    newest = broken.state / "checkpoint-6"
    assert newest_checkpoint(broken.state) == newest
    (newest / COMPLETE).unlink()
    (newest / "optimizer.pt").write_bytes(b"half")
    assert newest_checkpoint(broken.state) == broken.state / "checkpoint-3"
    assert not newest.exists()
    resumed = run_of("broken")
    assert digest_checkpoint(resumed.checkpoint) == digest_checkpoint(whole.checkpoint)
    assert metrics_of(resumed) == metrics_of(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "end"),
    [("sft", signal.SIGKILL), ("rm", signal.SIGKILL), ("dpo", signal.SIGKILL), ("dpo", signal.SIGTERM)],
)
def test_a_command_that_was_ended_resumes_to_the_same_bits(
    method, end, tmp_path, tiny_checkpoint, conversations, pairs, jsonl
):
    data = jsonl("rows.jsonl", conversations if method == "sft" else pairs)

    def start(name):
        arguments = [
            "stage", method, "--from", str(tiny_checkpoint), "--out", str(tmp_path / name), "--data", data,
            "--threads", "1", "--set", "epochs=20", "--set", "save_every=10", "--set", "max_length=96",
            "--set", "batch_size=8",
        ]  # fmt: skip
        code = f"from posttrain.core.cli import main; main({arguments!r})"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)

    assert start("whole").wait(timeout=200) == 0
    process = start("killed")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(end)
    said = process.communicate(timeout=20)[1].decode()
    if end == signal.SIGTERM:
        assert process.returncode == 143
        assert said.splitlines()[-1] == "error: ended by SIGTERM; start the same command again to resume"
        assert "Traceback" not in said
    killed = RunDirectory(tmp_path / "killed")
    assert not killed.finished
    assert start("killed").wait(timeout=200) == 0
    whole = RunDirectory(tmp_path / "whole")
    assert digest_checkpoint(killed.checkpoint) == digest_checkpoint(whole.checkpoint)
    if end == signal.SIGKILL:
        assert metrics_of(killed) == metrics_of(whole)

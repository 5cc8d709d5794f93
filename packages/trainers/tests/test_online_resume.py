"""A run of the online loop that is interrupted, killed or diverges: what it leaves, and that it ends as others do."""

import errno
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parent))
from online_fakes import (
    Interrupted,
    interrupt,
    rows_without_times,
    same_bits,
    tiny_inputs,
    tiny_settings,
)

from posttrain.core.errors import StorageError, WorkError
from posttrain.core.termination import Terminated, ending_in_order
from posttrain.trainers import learners, online, ppo

pytestmark = pytest.mark.long


@pytest.mark.parametrize("controller", ["fixed", "adaptive"])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path, controller):
    """Policy, critic, both optimiser states, KL coefficient, prompts and metrics."""
    settings = tiny_settings(steps=6, save_every=2, kl_controller=controller, kl_target=0.5)
    whole, broken = tiny_inputs(tmp_path, "whole"), tiny_inputs(tmp_path, "broken")
    ppo.train(settings, whole)
    interrupt(broken.policy, version=6)
    with pytest.raises(Interrupted):
        ppo.train(settings, broken)
    assert len(rows_without_times(broken.run)) == 5  # one step beyond the newest save
    again = tiny_inputs(tmp_path, "broken")
    ppo.train(settings, again)
    assert again.policy.pushed[0] == again.policy.asked[0] == 4  # the step that the newest state is of
    assert same_bits(whole.run, again.run)
    assert rows_without_times(whole.run) == rows_without_times(again.run)


def test_only_the_newest_state_is_kept(tmp_path):
    inputs = tiny_inputs(tmp_path)
    ppo.train(tiny_settings(steps=4, save_every=1), inputs)
    assert [folder.name for folder in inputs.run.state.iterdir()] == ["step-000003"]


def test_a_run_killed_with_sigkill_resumes_to_the_same_bits(tmp_path):
    whole = tiny_inputs(tmp_path, "whole")
    torch.set_num_threads(1)
    ppo.train(tiny_settings(steps=14, save_every=1), whole)
    command = [sys.executable, str(Path(__file__).parent / "online_fakes.py"), str(tmp_path), "killed", "14"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    state = tmp_path / "killed" / "state"
    deadline = time.monotonic() + 60
    while not (state.is_dir() and list(state.glob("step-*"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    assert list(state.glob("step-*"))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed = tiny_inputs(tmp_path, "killed")
    assert not killed.run.checkpoint.exists()
    ppo.train(tiny_settings(steps=14, save_every=1), killed)
    assert same_bits(whole.run, killed.run)
    assert rows_without_times(whole.run) == rows_without_times(killed.run)


def test_what_a_kill_leaves_of_a_push_lies_in_the_runs_state_and_goes_with_the_next_save(tmp_path):
    inputs = tiny_inputs(tmp_path)
    (left := inputs.run.state / "posttrain-weights-of-a-killed-run").mkdir(parents=True)
    places, push = set(), inputs.policy.push

    def noting(version, weights):
        places.add(weights.parent.parent)
        return push(version, weights)

    inputs.policy.push = noting
    ppo.train(tiny_settings(steps=3, save_every=2), inputs)
    assert places == {inputs.run.state}
    assert not left.exists()
    assert [path.name for path in inputs.run.state.iterdir()] == ["step-000002"]


def test_a_disk_without_room_for_a_push_is_told_in_a_line(tmp_path, monkeypatch):
    def full(*_):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(learners, "write_weights", full)
    inputs = tiny_inputs(tmp_path)
    with pytest.raises(WorkError, match=f"no space left to write {inputs.run.state}"):
        ppo.train(tiny_settings(), inputs)


def test_divergence_stops_the_run_before_it_is_exported(tmp_path):
    inputs = tiny_inputs(tmp_path)
    with pytest.raises(WorkError, match=r"training diverged: grad_norm/.* lower lr"):
        ppo.train(tiny_settings(steps=8, lr=1e6, critic_lr=1e6), inputs)
    assert not inputs.run.checkpoint.exists()


def test_sigterm_saves_the_state_at_the_end_of_the_step_and_the_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    # A busy machine takes its time.
    monkeypatch.setattr(online, "ending_in_order", partial(ending_in_order, 600.0))
    settings = tiny_settings(steps=4, save_every=100)
    whole, broken = tiny_inputs(tmp_path, "whole"), tiny_inputs(tmp_path, "broken")
    ppo.train(settings, whole)
    complete = broken.policy.complete

    def ended(prompts, **arguments):
        if arguments["version"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return complete(prompts, **arguments)

    broken.policy.complete = ended
    with pytest.raises(Terminated):
        ppo.train(settings, broken)
    assert [folder.name for folder in broken.run.state.iterdir()] == ["step-000003"]
    again = tiny_inputs(tmp_path, "broken")
    ppo.train(settings, again)
    assert len(again.policy.asked) == 1
    assert same_bits(whole.run, again.run)
    assert rows_without_times(whole.run) == rows_without_times(again.run)


def test_sigterm_in_the_last_step_lets_the_run_finish(tmp_path):
    inputs = tiny_inputs(tmp_path)
    complete = inputs.policy.complete

    def ended(prompts, **arguments):
        if arguments["version"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return complete(prompts, **arguments)

    inputs.policy.complete = ended
    assert ppo.train(tiny_settings(steps=2), inputs)["steps"] == 2


def test_a_disk_that_is_full_at_a_save_loses_nothing_and_the_run_goes_on_once_there_is_room(tmp_path, monkeypatch):
    settings = tiny_settings(steps=3, save_every=1)
    whole, broken = tiny_inputs(tmp_path, "whole"), tiny_inputs(tmp_path, "broken")
    ppo.train(settings, whole)
    save = Accelerator.save_state

    def full(self, folder, **options):
        save(self, folder, **options)
        if folder.endswith(".tmp") and "step-000002" in folder:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), folder)

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", full)
        with pytest.raises(StorageError, match="no space left to write .*step-000002; free some"):
            ppo.train(settings, broken)
    assert [folder.name for folder in broken.run.state.iterdir()] == ["step-000001"]
    again = tiny_inputs(tmp_path, "broken")
    ppo.train(settings, again)
    assert same_bits(whole.run, again.run)
    assert rows_without_times(whole.run) == rows_without_times(again.run)

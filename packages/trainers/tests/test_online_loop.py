"""The online loop with services in this process: versions, seeds, groups, what is logged, what is refused."""

import dataclasses
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).parent))
from online_fakes import (
    rows_without_times,
    same_bits,
    tiny_inputs,
    tiny_settings,
    weights,
)

from posttrain.core.errors import RequestError
from posttrain.trainers import ppo
from posttrain.trainers.online import OnlineLoop, train_online
from posttrain.trainers.online_method import OnlineMethod
from posttrain.trainers.phases import Phases

pytestmark = pytest.mark.long


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path):
    runs = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        inputs = tiny_inputs(tmp_path, name, seed=seed)
        ppo.train(tiny_settings(), inputs)
        runs[name] = inputs.run
    assert same_bits(runs["a"], runs["b"])
    assert rows_without_times(runs["a"]) == rows_without_times(runs["b"])
    assert not same_bits(runs["a"], runs["c"])


def test_start_is_pushed_then_each_step_asks_for_its_own_version_and_pushes_the_next(tmp_path):
    inputs = tiny_inputs(tmp_path)
    ppo.train(tiny_settings(steps=3), inputs)
    assert inputs.policy.asked == [1, 2, 3]
    assert inputs.policy.pushed == [1, 2, 3, 4]


def test_the_service_ends_with_the_weights_of_the_checkpoint(tmp_path):
    inputs = tiny_inputs(tmp_path)
    ppo.train(tiny_settings(steps=2), inputs)
    served = inputs.policy.model.state_dict()
    assert all(torch.equal(served[name], tensor) for name, tensor in weights(inputs.run).items())


def test_every_number_that_a_reader_needs_is_in_every_row(tmp_path):
    inputs = tiny_inputs(tmp_path)
    summary = ppo.train(tiny_settings(validate_every=2, validation_prompts=3), inputs)
    from posttrain.core.metrics import MetricsLog

    rows = MetricsLog(inputs.run.metrics_path).rows()
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    names = {
        *("loss/policy", "loss/value", "reward/mean", "reward/std", "score/rm/mean", "score/rm/std", "gold/mean"),
        *("gold/std", "kl", "kl/k3", "kl_coef", "clip_fraction", "entropy", "explained_variance", "lr"),
        *("completion/length", "completion/truncated", "engine/mismatch_mean", "engine/mismatch_max"),
        *("tokens_per_second/generation", "tokens_per_second/update", "grad_norm/policy", "grad_norm/values"),
        *("seconds/generation", "seconds/reward", "seconds/forward", "seconds/update", "seconds/push", "seconds"),
    }
    for row in rows[:4]:
        assert names <= row.keys(), names - row.keys()
    assert [row["step"] for row in rows if "seconds/save" in row] == [2]  # the step after the save
    assert [row["step"] for row in rows if "seconds/validation" in row] == [0, 2, 4]
    assert rows[4]["seconds"] == rows[4]["seconds/validation"] > 0
    assert summary["totals"]["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
    assert summary["last_step"]["reward/mean"] == rows[3]["reward/mean"]
    assert [("validation/gold" in row, "validation/rm" in row) for row in rows] == [
        (True, True),
        (False, False),
        (True, True),
        (False, False),
        (True, True),
    ]


def test_validation_changes_nothing_of_the_run(tmp_path):
    plain, watched = tiny_inputs(tmp_path, "plain"), tiny_inputs(tmp_path, "watched")
    ppo.train(tiny_settings(), plain)
    ppo.train(tiny_settings(validate_every=1, validation_prompts=3), watched)
    assert same_bits(plain.run, watched.run)


def test_a_prompt_longer_than_the_context_is_refused_and_can_be_left_out(tmp_path):
    with pytest.raises(RequestError, match=r"exceeds the context of 128; set max_prompt_tokens = 28"):
        ppo.train(tiny_settings(max_new_tokens=100), tiny_inputs(tmp_path))
    loop_settings = tiny_settings(max_new_tokens=100, max_prompt_tokens=28)
    loop = OnlineLoop(ppo.PPO(loop_settings), loop_settings, tiny_inputs(tmp_path))
    assert 0 < len(loop.prompts) < 10
    with pytest.raises(RequestError, match="none of 10 prompts"):
        ppo.train(tiny_settings(max_prompt_tokens=2), tiny_inputs(tmp_path))


@pytest.mark.parametrize(
    ("missing", "message"),
    [("policy", "no policy service"), ("reward", "no reward"), ("source", "prompts"), ("reference", "reference")],
)
def test_what_is_missing_is_named(tmp_path, missing, message):
    with pytest.raises(RequestError, match=message):
        ppo.train(tiny_settings(), dataclasses.replace(tiny_inputs(tmp_path), **{missing: None}))


class Centred(OnlineMethod):
    """A method of twenty lines from outside the package: REINFORCE with the group's mean as baseline."""

    def accept(self, group):
        return float(group.rewards.std(correction=0)) > 0

    def credit(self, batch):
        means = torch.stack([batch.rewards[batch.groups == g].mean() for g in batch.groups])
        return {"advantages": (batch.rewards - means)[:, None] * batch.mask}, {"groups": float(batch.groups.max()) + 1}

    def loss(self, minibatch):
        loss = -(minibatch.logprobs * minibatch.rows.credit["advantages"]).sum() / minibatch.tokens
        return loss, {"loss/policy": loss}


def test_a_method_from_outside_runs_on_the_loop_with_groups_and_without_a_reference(tmp_path):
    inputs = dataclasses.replace(tiny_inputs(tmp_path), reference=None)
    settings = tiny_settings(samples_per_prompt=3, truncation="penalty")
    train_online(Centred(), settings, inputs)
    rows = rows_without_times(inputs.run)
    assert all("kl" not in row and "grad_norm/values" not in row for row in rows)
    assert any(row["grad_norm/policy"] > 0 for row in rows)


def test_refused_groups_are_replaced_by_further_prompts(tmp_path):
    class Picky(Centred):
        def accept(self, group):
            return int(group.prompt.prompt["reference"]["answer"]) % 4 == 0

    counts = {}
    for rounds in (0, 6):
        settings = tiny_settings(samples_per_prompt=2, resample_rounds=rounds)
        loop = OnlineLoop(Picky(), settings, tiny_inputs(tmp_path, f"rounds{rounds}"))
        groups, metrics = loop.sample(Phases())
        counts[rounds] = len(groups)
        assert loop.position.cursor == len(groups) + metrics["groups_refused"]
    assert counts[0] < 4
    assert counts[6] == 4


def test_a_step_whose_groups_are_all_refused_goes_on_without_an_update(tmp_path):
    class Never(Centred):
        def accept(self, group):
            return False

    inputs = tiny_inputs(tmp_path)
    train_online(Never(), tiny_settings(steps=2), inputs)
    assert [row["groups_refused"] for row in rows_without_times(inputs.run)] == [4, 4]
    start = safetensors.torch.load_file(inputs.start / "model.safetensors")
    assert all(torch.equal(start[name], tensor) for name, tensor in weights(inputs.run).items())

"""The engine's log-probabilities beside the trainer's: compared at every step, used where exact, else recomputed."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from online_fakes import (
    FakePolicy,
    StubbornPolicy,
    rows_without_times,
    tiny_inputs,
    tiny_model,
    tiny_settings,
    weights,
)

from posttrain.core.errors import WorkError
from posttrain.trainers import ppo
from posttrain.trainers.models import save_checkpoint
from posttrain.trainers.online import OnlineLoop
from posttrain.trainers.phases import Phases

pytestmark = pytest.mark.long


def test_old_logprobs_are_of_the_weights_that_sampled(tmp_path):
    """Stale weights would show here: engine and trainer agree at every step."""
    inputs = tiny_inputs(tmp_path)
    ppo.train(tiny_settings(), inputs)
    assert max(row["engine/mismatch_max"] for row in rows_without_times(inputs.run)) < 1e-4


def test_bf16_keeps_weights_in_fp32_after_a_stage_in_fp32(tmp_path):
    ppo.train(tiny_settings(steps=1), tiny_inputs(tmp_path, "fp32"))
    inputs = tiny_inputs(tmp_path, "bf16")
    ppo.train(tiny_settings(steps=2, precision="bf16", truncation="penalty"), inputs)
    assert {tensor.dtype for tensor in weights(inputs.run).values()} == {torch.float32}
    first = rows_without_times(inputs.run)[0]
    assert first["kl"] == first["kl/k3"] == 0  # the reference reads in the same precision
    mismatch = first["engine/mismatch_mean"]
    assert 1e-5 < mismatch < 0.1  # the fake engine samples in fp32
    ppo.train(tiny_settings(steps=1), tiny_inputs(tmp_path, "fp32 again"))


class RoughPolicy(FakePolicy):
    """Says log-probabilities that are off by half a hundredth, as an engine in bf16 does."""

    def complete(self, prompts, **arguments):
        return [
            [dataclasses.replace(c, logprobs=[x + 0.005 for x in c.logprobs]) for c in choices]
            for choices in super().complete(prompts, **arguments)
        ]


def test_an_exact_engine_spares_the_forward_pass_of_old_logprobs_after_the_first_step(tmp_path):
    exact = tiny_inputs(tmp_path, "exact")
    rough = tiny_inputs(tmp_path, "rough", policy=RoughPolicy(exact.start))
    for inputs, expected in ((exact, [1, 0, 0, 0]), (rough, [1, 1, 1, 1])):
        ppo.train(tiny_settings(), inputs)
        assert [row["old_logprobs/recomputed"] for row in rows_without_times(inputs.run)] == expected
    row, *_ = rows_without_times(rough.run)
    assert row["engine/mismatch_mean"] == pytest.approx(0.005, abs=1e-4)


def test_sampled_and_recomputed_old_logprobs_learn_the_same_from_an_exact_engine(tmp_path):
    """Losses and gradients: Adam would blow a gradient of rounding noise up to a whole learning rate."""
    rows = {}
    for wish in ("sampled", "recomputed"):
        inputs = tiny_inputs(tmp_path, wish)
        changes = {"steps": 1, "epochs": 1, "minibatches": 1, "truncation": "penalty", "truncation_reward": -1.0}
        ppo.train(tiny_settings(old_logprobs=wish, **changes), inputs)
        (rows[wish],) = rows_without_times(inputs.run)
    assert [row.pop("old_logprobs/recomputed") for row in rows.values()] == [0, 1]
    weights_of = {name: [key for key in row if key.startswith("importance/")] for name, row in rows.items()}
    assert (len(weights_of["sampled"]), len(weights_of["recomputed"])) == (0, 3)
    for key in weights_of["recomputed"]:
        del rows["recomputed"][key]
    assert rows["sampled"]["grad_norm/policy"] > 1e-3
    assert rows["sampled"] == pytest.approx(rows["recomputed"], rel=1e-4, abs=1e-5)


def test_a_service_with_other_weights_stops_the_run(tmp_path):
    save_checkpoint(*tiny_model(seed=1), tmp_path / "other")
    inputs = tiny_inputs(tmp_path, policy=StubbornPolicy(tmp_path / "other"))
    with pytest.raises(WorkError, match="serves other weights"):
        ppo.train(tiny_settings(), inputs)


@pytest.mark.parametrize("wish", ["sampled", "recomputed"])
def test_nothing_is_learnt_from_a_rollout_of_other_weights(tmp_path, wish):
    save_checkpoint(*tiny_model(seed=1), tmp_path / "other")
    settings = tiny_settings(old_logprobs=wish)
    inputs = tiny_inputs(tmp_path, policy=StubbornPolicy(tmp_path / "other"))
    loop = OnlineLoop(ppo.PPO(settings), settings, inputs)
    before = [parameter.clone() for parameter in loop.learners.policy.parameters()]
    with pytest.raises(WorkError, match="serves other weights"):
        loop.train()
    after = loop.learners.policy.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


class Unending(FakePolicy):
    """Never says the end, so every completion is cut at the length limit."""

    def complete(self, prompts, **arguments):
        return [
            [dataclasses.replace(c, finish_reason="length") for c in choices]
            for choices in super().complete(prompts, **arguments)
        ]


class UnendingStubborn(Unending, StubbornPolicy):
    pass


def test_other_weights_stop_the_run_where_all_completions_are_truncated_and_masked(tmp_path):
    save_checkpoint(*tiny_model(seed=1), tmp_path / "other")
    inputs = tiny_inputs(tmp_path, policy=UnendingStubborn(tmp_path / "other"))
    with pytest.raises(WorkError, match="serves other weights"):
        ppo.train(tiny_settings(steps=1, truncation="mask"), inputs)


def test_the_engine_is_compared_on_the_tokens_that_the_rule_mask_takes_out_of_the_loss(tmp_path):
    settings = tiny_settings(truncation="mask")
    loop = OnlineLoop(ppo.PPO(settings), settings, tiny_inputs(tmp_path))
    groups, _ = loop.sample(Phases())
    batch = loop.look_back(groups)
    sampled = batch.mask.clone()
    loop.credit(batch)
    assert not torch.equal(batch.mask, sampled)
    assert torch.equal(batch.sampled, sampled)
    _, differences = loop.accumulate(batch)
    assert sum(len(difference) for difference in differences) == sum(len(ids) for ids in batch.completion_ids)

"""Rewards in the online loop: their sources and weights, what truncated completions get, what is said of them."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from online_fakes import (
    rows_without_times,
    tiny_inputs,
    tiny_settings,
)

from posttrain.core.clients import Completion
from posttrain.trainers import ppo
from posttrain.trainers.batch import Batch
from posttrain.trainers.online import OnlineLoop
from posttrain.trainers.online_method import Group
from posttrain.trainers.online_metrics import sampling_metrics
from posttrain.trainers.phases import Phases
from posttrain.trainers.rewards import terminal_rewards, weighted_sum
from posttrain.trainers.rollouts import RenderedPrompt

pytestmark = pytest.mark.long


def test_gold_is_asked_and_logged_though_nothing_learns_from_it(tmp_path):
    inputs = tiny_inputs(tmp_path)
    ppo.train(tiny_settings(steps=1, truncation="penalty"), inputs)
    (asked, items), *_ = inputs.reward.asked
    assert asked == ["rm", "verifier"]
    assert set(items[0]) == {"prompt", "completion", "finish_reason", "reference"}
    (row,) = rows_without_times(inputs.run)
    assert row["gold/mean"] == row["score/verifier/mean"]


def test_a_source_that_is_both_reward_and_gold_is_asked_once(tmp_path):
    inputs = tiny_inputs(tmp_path)
    ppo.train(tiny_settings(steps=1, rewards={"verifier": 1.0}), inputs)
    assert inputs.reward.asked[0][0] == ["verifier"]


@pytest.mark.parametrize(
    ("rule", "expected"), [("lowest", [0.5, -1.0, -1.0]), ("penalty", [0.5, -3.0, -1.0]), ("mask", [0.5, 0.0, -1.0])]
)
def test_a_truncated_completion_gets_what_the_rule_says_instead_of_its_score(rule, expected):
    rewards, finished = torch.tensor([0.5, 9.0, -1.0]), torch.tensor([True, False, True])
    assert terminal_rewards(rewards, finished, rule, -3.0).tolist() == expected


def test_when_nothing_finished_the_lowest_reward_is_the_penalty():
    assert terminal_rewards(torch.ones(2), torch.zeros(2, dtype=torch.bool), "lowest", -3.0).tolist() == [-3.0, -3.0]


def test_the_lowest_reward_of_a_step_is_that_of_all_its_rounds():
    rewards, finished = torch.tensor([9.0, 1.0]), torch.tensor([False, True])
    assert terminal_rewards(rewards, finished, "lowest", -3.0, lowest=0.0).tolist() == [0.0, 1.0]
    assert terminal_rewards(rewards, finished, "lowest", -3.0, lowest=2.0).tolist() == [1.0, 1.0]
    assert terminal_rewards(rewards, torch.zeros(2).bool(), "lowest", -3.0, lowest=0.5).tolist() == [0.5, 0.5]
    assert terminal_rewards(rewards, finished, "penalty", -3.0, lowest=0.0).tolist() == [-3.0, 1.0]


def test_under_the_rule_mask_truncated_completions_have_no_gradient(tmp_path):
    settings = tiny_settings(truncation="mask", prompts_per_step=8)
    loop = OnlineLoop(ppo.PPO(settings), settings, tiny_inputs(tmp_path))
    groups, _ = loop.sample(Phases())
    batch = loop.look_back(groups)
    loop.credit(batch)
    assert batch.finished.any()
    assert not batch.finished.all()
    minibatch = loop.look_now(batch, int(batch.mask.sum()), len(batch))
    minibatch.logprobs.retain_grad()
    loop.method.loss(minibatch)[0].backward()
    assert (minibatch.logprobs.grad[~batch.finished] == 0).all()
    left = batch.credit["advantages"][batch.mask]
    # Whitened among themselves: a truncated row's missing reward moves nobody else's advantage.
    assert float(left.mean()) == pytest.approx(0, abs=1e-5)
    assert float(left.std(unbiased=False)) == pytest.approx(1, abs=1e-3)


def test_rewards_are_the_weighted_sum_of_their_sources():
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, 20.0]), "gold": torch.tensor([5.0, 5.0])}
    assert weighted_sum(scores, {"a": 2.0, "b": 0.1}).tolist() == pytest.approx([3.0, 6.0])


def sampled_group(rewards, reasons):
    prompt = RenderedPrompt({"id": "0", "prompt": [], "reference": None, "kind": ""}, [1])
    completions = [Completion([2, 3], [-1.0, -1.0], "", reason) for reason in reasons]
    return Group(prompt, completions, torch.tensor(rewards), {"rm": torch.tensor([1.0, 2.0, 3.0])})


@pytest.mark.parametrize(
    ("rule", "reasons", "mean", "std"),
    [
        ("mask", ["stop", "length", "stop"], 3.0, 1.0),
        ("penalty", ["stop", "length", "stop"], 2.0, 8**0.5 / 3**0.5),
        ("mask", ["length"] * 3, 0.0, 0.0),
    ],
)
def test_the_mean_reward_is_of_the_completions_that_the_method_learns_from(rule, reasons, mean, std):
    rewards = [2.0, 0.0, 4.0] if "stop" in reasons else [0.0] * 3
    metrics = sampling_metrics([sampled_group(rewards, reasons)], None, rule)
    assert (metrics["reward/mean"], metrics["reward/std"]) == pytest.approx((mean, std))
    assert metrics["score/rm/mean"] == 2.0  # raw, of all


@pytest.mark.parametrize("finished", [[True, False], [False, False]])
def test_the_penalised_reward_leaves_out_rows_that_the_rule_mask_empties(finished):
    settings = ppo.Settings(kl_coef=0.5)
    finished = torch.tensor(finished)
    mask = finished[:, None].expand(2, 2).clone()
    batch = Batch(
        prompt_ids=[[1], [1]],
        completion_ids=[[2, 3], [2, 3]],
        mask=mask,
        sampled_logprobs=torch.full((2, 2), -1.0),
        rewards=torch.tensor([3.0, 0.0]),
        groups=torch.tensor([0, 1]),
        finished=finished,
        logprobs=torch.full((2, 2), -1.0),
        ref_logprobs=torch.full((2, 2), -2.0),
        outputs={"values": torch.zeros(2, 2)},
    )
    _, metrics = ppo.PPO(settings).credit(batch)
    # Two tokens of one nat each: 3 - 0.5 * 2.
    assert metrics["reward/penalised"] == pytest.approx(2.0 if finished.any() else 0.0)

"""Group advantages against plain loops, by hand, and what must hold of them."""

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.trainers.group_advantages import group_deviations, group_relative, is_constant, leave_one_out


@st.composite
def rollouts(draw):
    """Groups of two to five rewards, their rows shuffled, some of them not counted (with garbage as reward)."""
    groups = draw(st.lists(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=2, max_size=5), min_size=1))
    rows = draw(st.permutations([(g, r, c) for g, group in enumerate(groups) for r, c in group]))
    number, rewards, counted = zip(*rows, strict=True)
    rewards = [r if c else float("nan") for r, c in zip(rewards, counted, strict=True)]
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(number), torch.tensor(counted)


def others(i, rewards, groups, counted):
    """The rewards of row i's group that count, without its own."""
    members = range(len(rewards))
    return [float(rewards[j]) for j in members if j != i and groups[j] == groups[i] and counted[j]]


@settings(deadline=None, max_examples=60)
@given(rollouts(), st.booleans())
def test_group_relative_advantages_equal_the_plain_loop(rollout, scale):
    rewards, groups, counted = rollout
    advantages = group_relative(rewards, groups, counted, scale)
    deviations = group_deviations(rewards, groups, counted)
    for i in range(len(rewards)):
        rest = others(i, rewards, groups, counted)
        if not counted[i]:
            assert advantages[i] == 0
            continue
        members = [*rest, float(rewards[i])]
        deviation = statistics.stdev(members) if rest else 0.0
        expected = (float(rewards[i]) - statistics.mean(members)) / ((deviation + 1e-4) if scale else 1.0)
        assert float(advantages[i]) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert float(deviations[i]) == pytest.approx(deviation, rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(rollouts(), st.booleans())
def test_group_relative_advantages_sum_to_zero_in_each_group(rollout, scale):
    rewards, groups, counted = rollout
    advantages = group_relative(rewards, groups, counted, scale)
    for group in groups.unique():
        assert float(advantages[groups == group].sum()) == pytest.approx(0, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(rollouts())
def test_the_baseline_of_leave_one_out_is_the_mean_of_the_others(rollout):
    rewards, groups, counted = rollout
    advantages = leave_one_out(rewards, groups, counted)
    centred = group_relative(rewards, groups, counted, False)
    for i in range(len(rewards)):
        rest = others(i, rewards, groups, counted)
        if not counted[i] or not rest:
            assert advantages[i] == 0
            continue
        assert float(rewards[i] - advantages[i]) == pytest.approx(statistics.mean(rest), rel=1e-9, abs=1e-9)
        n = len(rest) + 1
        assert float(advantages[i]) == pytest.approx(n / (n - 1) * float(centred[i]), rel=1e-9, abs=1e-9)


def test_two_completions_by_hand():
    # r = (0, 1): mean .5, sample deviation √.5 = .70711;  −.5 / .70721 = −.70700;  the other's reward: −1 and 1
    rewards, groups, counted = torch.tensor([0.0, 1.0]), torch.zeros(2, dtype=torch.long), torch.ones(2).bool()
    assert group_relative(rewards, groups, counted, False).tolist() == [-0.5, 0.5]
    assert group_relative(rewards, groups, counted, True).tolist() == pytest.approx([-0.70700, 0.70700], abs=1e-5)
    assert leave_one_out(rewards, groups, counted).tolist() == [-1.0, 1.0]


def test_scaled_advantages_do_not_depend_on_the_unit_of_rewards():
    # Deviations of .4 or more, beside which the 1e-4 that keeps rounding small is nothing.
    rewards = torch.tensor([0.0, 1.0, 0.2, 0.8, 0.1, 0.9, 0.9, 0.0])
    groups, counted = torch.arange(8) // 4, torch.ones(8).bool()
    scaled = group_relative(1000 * rewards, groups, counted, True)
    assert torch.allclose(scaled, group_relative(rewards + 7, groups, counted, True), atol=2e-3)
    assert float(scaled[:4].std()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("advantages", [lambda *rows: group_relative(*rows, True), leave_one_out, group_deviations])
def test_a_group_of_one_is_refused(advantages):
    with pytest.raises(ValueError, match="sample two or more a prompt"):
        advantages(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 0, 1]), torch.ones(3).bool())


@pytest.mark.parametrize(
    ("rewards", "constant"),
    [([1.0, 1.0], True), ([0.3, 0.30001], True), ([0.0, 1.0], False), ([2.0], True), ([], True)],
)
def test_a_constant_group_is_one_without_a_difference_beyond_rounding(rewards, constant):
    assert is_constant(torch.tensor(rewards)) == constant


def test_equal_rewards_give_advantages_of_zero_and_not_of_their_rounding():
    rewards, groups = torch.full((3,), 0.1), torch.zeros(3, dtype=torch.long)
    assert group_relative(rewards, groups, torch.ones(3).bool(), True).abs().max() < 1e-3

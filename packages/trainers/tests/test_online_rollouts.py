"""Rollouts of the online loop: prompts in turn, and a policy service that forgets, fails or answers in any order."""

import dataclasses
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from online_fakes import (
    FakePolicy,
    FakeReward,
    rows_without_times,
    same_bits,
    tiny_inputs,
    tiny_model,
    tiny_settings,
)

from posttrain.core.errors import WorkError
from posttrain.core.seeds import derive_seed
from posttrain.trainers import ppo
from posttrain.trainers.models import save_checkpoint
from posttrain.trainers.online import OnlineLoop
from posttrain.trainers.phases import Phases
from posttrain.trainers.rollouts import RenderedPrompt, held_version, take_prompts

pytestmark = pytest.mark.long


class ForgetfulPolicy(FakePolicy):
    """Dies once, on its third request, and comes back with its first weights."""

    def complete(self, prompts, **arguments):
        if len(self.asked) == 2:
            self.__init__(self.checkpoint)
            self.asked = [None, None, None]
        return super().complete(prompts, **arguments)

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint
        super().__init__(checkpoint)


def test_a_service_that_lost_its_weights_gets_them_again_and_nothing_changes(tmp_path):
    calm = tiny_inputs(tmp_path, "calm")
    ppo.train(tiny_settings(), calm)
    shaken = tiny_inputs(tmp_path, "shaken", policy=ForgetfulPolicy(calm.start))
    summary = ppo.train(tiny_settings(), shaken)
    assert summary["repeated_pushes"] == 1
    assert same_bits(calm.run, shaken.run)


def test_a_service_that_holds_later_versions_is_pushed_beyond_them(tmp_path):
    fresh = tiny_inputs(tmp_path, "fresh")
    ppo.train(tiny_settings(), fresh)
    used = tiny_inputs(tmp_path, "used", policy=fresh.policy)
    ppo.train(tiny_settings(), used)
    assert used.policy.pushed == sorted(set(used.policy.pushed))
    assert same_bits(fresh.run, used.run)


def test_a_service_that_started_from_another_checkpoint_is_given_the_right_weights(tmp_path):
    save_checkpoint(*tiny_model(seed=1), tmp_path / "other")
    right = tiny_inputs(tmp_path, "right")
    other = tiny_inputs(tmp_path, "other-start", policy=FakePolicy(tmp_path / "other"))
    for inputs in (right, other):
        ppo.train(tiny_settings(), inputs)
    assert same_bits(right.run, other.run)


def test_a_service_that_always_forgets_is_an_error(tmp_path):
    inputs = tiny_inputs(tmp_path)
    inputs.policy.push = lambda version, weights: {}
    with pytest.raises(WorkError, match="lost the weights of step 0"):
        ppo.train(tiny_settings(), inputs)


def test_every_prompt_comes_once_a_pass_and_each_pass_has_its_own_order():
    prompts = [RenderedPrompt({"id": str(i), "prompt": [], "reference": None, "kind": ""}, [i]) for i in range(7)]
    taken = [prompt.ids[0] for prompt in take_prompts(prompts, 0, 21, seed=1)]
    passes = [taken[:7], taken[7:14], taken[14:]]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert [p.ids[0] for p in take_prompts(prompts, 5, 6, seed=1)] == taken[5:11]


@pytest.mark.parametrize(
    ("ids", "version"), [(["policy@17"], 17), (["policy@3", "adapter"], 3), (["Qwen/Qwen2.5-0.5B"], 0)]
)
def test_the_version_that_a_service_holds_is_in_its_list_of_models(ids, version):
    assert held_version({"data": [{"id": name} for name in ids]}) == version


class OneAfterAnother(FakePolicy):
    """Answers a request when the completions of all those before it have been scored."""

    def __init__(self, checkpoint, reward):
        super().__init__(checkpoint)
        self.reward, self.lock = reward, threading.Lock()

    def complete(self, prompts, **arguments):
        with self.lock:
            before = len(self.asked)
            answers = super().complete(prompts, **arguments)
        deadline = time.monotonic() + 30
        while len(self.reward.asked) < before:
            assert time.monotonic() < deadline, "nothing is scored while others are generated"
            time.sleep(0.001)
        return answers


def test_completions_are_scored_while_others_are_generated_and_nothing_depends_on_the_order(tmp_path):
    settings = tiny_settings(overlap_scoring=True, samples_per_prompt=2, steps=2)
    calm = tiny_inputs(tmp_path, "calm")
    ppo.train(settings, calm)
    reward = FakeReward()
    ordered = tiny_inputs(tmp_path, "ordered", policy=OneAfterAnother(calm.start, reward), reward=reward)
    ppo.train(settings, ordered)
    assert [len(items) for _, items in reward.asked] == [2] * 8
    assert rows_without_times(calm.run) == rows_without_times(ordered.run)
    assert same_bits(calm.run, ordered.run)


class ForgettingOnce(FakePolicy):
    """Is back at its first weights when the second rollout's requests come."""

    def complete(self, prompts, **arguments):
        if len(self.asked) == 4:
            self.version = 0
        return super().complete(prompts, **arguments)


def test_weights_that_all_requests_miss_are_pushed_once(tmp_path):
    inputs = tiny_inputs(tmp_path)
    inputs = dataclasses.replace(inputs, policy=ForgettingOnce(inputs.start))
    summary = ppo.train(tiny_settings(overlap_scoring=True), inputs)
    assert summary["repeated_pushes"] == 1


def test_a_request_that_fails_ends_the_rollout(tmp_path):
    class Failing(FakePolicy):
        def complete(self, prompts, **arguments):
            raise WorkError("out of memory")

    inputs = tiny_inputs(tmp_path)
    with pytest.raises(WorkError, match="out of memory"):
        ppo.train(tiny_settings(overlap_scoring=True), dataclasses.replace(inputs, policy=Failing(inputs.start)))


class LastFails(FakePolicy):
    """Fails at the last prompt of a rollout at once, and answers the others when `released` is set."""

    def __init__(self, checkpoint):
        super().__init__(checkpoint)
        self.others, self.released = threading.Semaphore(0), threading.Event()

    def complete(self, prompts, *, seed, **arguments):
        if seed == self.last:
            for _ in range(3):
                assert self.others.acquire(timeout=30)
            raise WorkError("out of memory")
        self.others.release()
        assert self.released.wait(30)
        return super().complete(prompts, seed=seed, **arguments)


def test_a_failure_is_known_before_the_other_requests_end_and_nothing_is_scored_after_it(tmp_path):
    settings = tiny_settings(overlap_scoring=True)
    inputs = tiny_inputs(tmp_path)
    policy = LastFails(inputs.start)
    policy.last = derive_seed(7, "prompt", 3)
    loop = OnlineLoop(ppo.PPO(settings), settings, dataclasses.replace(inputs, policy=policy))
    with pytest.raises(WorkError, match="out of memory"):
        loop.rollouts.take(loop.prompts[:4], 0, 7, Phases())
    under_way = [thread for thread in threading.enumerate() if thread.name.startswith("rollout")]
    assert len(under_way) >= 3
    policy.released.set()
    for thread in under_way:
        thread.join(30)
    assert not inputs.reward.asked

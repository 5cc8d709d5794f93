"""Macro: the services over real HTTP on loopback, a step of PPO, an epoch of SFT, an evaluation.

Services run on all cores. Training and evaluation run on one thread here: on the nano model several gain little, and
threads that wait for each other lose a hundredfold when another program takes a core away.
"""

import os
from itertools import count

import pytest

from benchmarks.workloads import conversations
from posttrain.core.clients import PolicyClient, RewardClient
from posttrain.core.runs import RunDirectory
from posttrain.core.supervised import SupervisedService
from posttrain.data import nano
from posttrain.data.sources import Source

CORES = os.cpu_count() or 1


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    log = tmp_path_factory.mktemp("policy") / "log"
    with SupervisedService("policy", ["policy", str(nano.BASE)], log) as service:
        client = PolicyClient(service.url)
        yield client
        client.close()


@pytest.fixture(scope="module")
def reward(tmp_path_factory, reward_model):
    log = tmp_path_factory.mktemp("reward service") / "log"
    with SupervisedService("reward", ["reward", str(reward_model)], log) as service:
        client = RewardClient(service.url)
        yield client
        client.close()


@pytest.mark.benchmark(group="services")
def test_policy_endpoint(measure, policy, prompts):
    """64 prompts in one request, 48 tokens at most, ids and log-probabilities, as a trainer asks."""

    def rollout():
        answer = policy.complete(prompts, version=None, max_tokens=48, seed=0)
        return sum(len(completion.token_ids) for choices in answer for completion in choices)

    tokens = rollout()  # the same seed gives the same tokens each time
    measure(rollout, work=tokens, unit="tokens", rounds=11, threads=CORES)


@pytest.mark.benchmark(group="services")
def test_policy_latency(measure, policy, prompts):
    """One prompt to its first token and back."""
    ask = prompts[:1]
    measure(
        lambda: policy.complete(ask, version=None, max_tokens=1, seed=0),
        work=1,
        unit="requests",
        calls=10,
        rounds=9,
        threads=CORES,
    )


@pytest.mark.benchmark(group="services")
def test_reward_endpoint(measure, reward):
    """512 answers by a reward model and 512 verified, in one request."""
    rows = [row["messages"] for row in conversations(512)]
    items = [
        {"prompt": row[:-1], "completion": row[-1]["content"], "finish_reason": "stop", "reference": {"gsm8k": "42"}}
        for row in rows
    ]
    measure(lambda: reward.score(["rm", "gsm8k"], items), work=512, unit="items", rounds=9, threads=CORES)


@pytest.mark.benchmark(group="stages")
def test_ppo_steps(measure, policy, reward, tmp_path):
    """Two steps of PPO on 64 prompts, from reading the checkpoint to writing one, with both services."""
    from posttrain.trainers import ppo
    from posttrain.trainers.stage import StageInputs

    settings = ppo.Settings(steps=2, prompts_per_step=64, max_new_tokens=48, rewards={"rm": 1.0}, save_every=100)
    runs = (RunDirectory(tmp_path / str(number)) for number in count())

    def steps():
        inputs = StageInputs(
            next(runs),
            seed=0,
            start=nano.BASE,
            reference=nano.BASE,
            source=Source(path="nano", rows=256),
            policy=policy,
            reward=reward,
        )
        return ppo.train(settings, inputs)

    measure(steps, work=2, unit="steps", rounds=3)


@pytest.mark.benchmark(group="stages")
def test_sft_epoch(measure, tmp_path):
    """One epoch of SFT over 256 conversations, from reading the checkpoint to writing one."""
    from posttrain.trainers import sft
    from posttrain.trainers.stage import StageInputs

    settings = sft.Settings(epochs=1, eval_every=1000, save_every=1000)
    runs = (RunDirectory(tmp_path / str(number)) for number in count())
    validation = Source(path="nano", rows=16, skip=256)

    def epoch():
        source = Source(path="nano", rows=256)
        return sft.train(settings, StageInputs(next(runs), 0, nano.BASE, source=source, validation=validation))

    measure(epoch, work=256, unit="conversations", rounds=3)


@pytest.mark.benchmark(group="stages")
def test_evaluation(measure):
    """64 word problems, greedy, by the checkpoint in process."""
    from posttrain.eval_harness.evaluation import evaluate

    measure(lambda: evaluate(nano.BASE, ["nano_problems"], limit=64), work=64, unit="items", rounds=3)

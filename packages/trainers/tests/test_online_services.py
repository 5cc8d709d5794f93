"""PPO against the real services over sockets: killed and restarted, it ends with the bits of a calm run."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from online_fakes import rows_without_times, tiny_inputs, tiny_settings

from posttrain.core.clients import PolicyClient, RewardClient
from posttrain.trainers import ppo

pytest.importorskip("posttrain.rollout", reason="needs the policy service (posttrain-rollout)")
pytest.importorskip("posttrain.reward_model", reason="needs the reward service (posttrain-reward-model)")
pytestmark = [pytest.mark.slow, pytest.mark.service]

REWARD = "def letters(prompt, completion, reference):\n    return sum(c.islower() for c in completion) / 8\n"


class Service:
    """`posttrain serve …` on a free port, in a process group of its own."""

    def __init__(self, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", "posttrain.core", "serve", *arguments, "--port", str(self.port)]
        self.start()

    def start(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(
            [*self.command, "--threads", "1"], env=environment, start_new_session=True, **quiet
        )
        deadline = time.monotonic() + 90
        while not RewardClient(self.url).ready():
            assert time.monotonic() < deadline, f"{self.command} did not become ready"
            time.sleep(0.1)

    def kill(self):
        # The worker too, which is told to end when its parent has, and would answer what has come until then.
        for process in (*psutil.Process(self.process.pid).children(recursive=True), self.process):
            process.kill()
        self.process.wait()


@pytest.fixture
def services(tmp_path):
    (tmp_path / "letters.py").write_text(REWARD)
    start = tiny_inputs(tmp_path).start
    policy = Service("policy", str(start))
    reward = Service("reward", "--source", f"letters={tmp_path / 'letters.py'}:letters")
    yield policy, reward
    for service in (policy, reward):
        service.kill()


def test_killed_services_are_waited_for_and_get_their_weights_again(tmp_path, services):
    torch.set_num_threads(1)
    policy, reward = services
    settings = tiny_settings(
        steps=12, rewards={"letters": 1.0}, gold_source=None, max_new_tokens=8, truncation="penalty", save_every=3
    )

    class Shaken(PolicyClient):
        asked = 0

        def complete(self, *arguments, **options):
            self.asked += 1
            if self.asked == 5:  # the step's weights are there, and lost before they are used
                for service in services:
                    service.kill()
                    threading.Thread(target=service.start).start()
            return super().complete(*arguments, **options)

    def inputs(name, client):
        return tiny_inputs(tmp_path, name, policy=client(policy.url), reward=RewardClient(reward.url))

    calm, shaken = inputs("calm", PolicyClient), inputs("shaken", Shaken)
    ppo.train(settings, calm)
    assert ppo.train(settings, shaken)["repeated_pushes"] == 1
    bits = [(run.checkpoint / "model.safetensors").read_bytes() for run in (calm.run, shaken.run)]
    assert bits[0] == bits[1]
    assert rows_without_times(calm.run) == rows_without_times(shaken.run)

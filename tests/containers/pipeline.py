"""PPO on the nano lab as three containers, and as three processes without any: the same `posttrain stage ppo`, seed and
threads. Gives what each made, for comparison.

What PPO starts from and learns from are two checkpoints in a folder, `policy` and `reward`; tests make untrained ones.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.core.hashing import digest_weights
from posttrain.core.supervised import SupervisedService
from tests.containers.driver import Container, Driver, Launch, Mount
from tests.containers.services import hardened, keyed, policy, reward, wait_until_ready

THREADS = {"OMP_NUM_THREADS": "1"}
STAGE_SECONDS = 1200.0


@dataclass(frozen=True)
class Training:
    """One run of `stage ppo`."""

    rows: list[dict[str, Any]]
    """Its metrics, without what hangs on the machine and on disturbances: times, and how often weights were pushed."""
    weights: str
    """SHA-256 of the trained weights."""
    fingerprint: str
    seconds: float
    """Of the stage, its services being ready."""


def read_training(run: Path, seconds: float) -> Training:
    """What a finished run directory says."""
    provenance = json.loads((run / "provenance.json").read_text())
    return Training(logged_rows(run), digest_weights(run / "checkpoint"), provenance["fingerprint"], seconds)


def logged_rows(run: Path) -> list[dict[str, Any]]:
    """The whole lines of its metrics.jsonl; none before there are any."""
    file = run / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    rows = [json.loads(line) for line in text.split("\n")[:-1]]  # after the last newline there may be half a line
    clocks = ("second", "time", "push")
    return [{name: value for name, value in row.items() if not any(c in name for c in clocks)} for row in rows]


def stage_words(models: Path | str, out: Path | str, urls: tuple[str, str], settings: Sequence[str]) -> tuple[str, ...]:
    """`stage ppo` from the checkpoints in a folder, as arguments."""
    start = f"{models}/policy"
    words = ("stage", "ppo", "--from", start, "--reference", start, "--data", "nano", "--out", str(out))
    words += ("--policy-url", urls[0], "--reward-url", urls[1], "--threads", "1")
    return (*words, *(word for setting in settings for word in ("--set", setting)))


class Contained:
    """Two services and a trainer, a container each; everything that runs is removed at the end."""

    def __init__(self, driver: Driver, policy: Container, reward: Container, trainer: Launch, run: Path) -> None:
        self._driver, self.policy, self.reward, self._trainer = driver, policy, reward, trainer
        self.run = run
        self.container: Container | None = None

    def begin(self) -> None:
        """Starts the trainer; again, if it has ended, with what it left."""
        if self.container is not None:
            self.container.remove()
        self._began = time.monotonic()
        self.container = self._driver.start(self._trainer)

    def end(self) -> Training:
        """Waits for the trainer's end, which is to be a good one."""
        assert self.container is not None
        status = self.container.wait(STAGE_SECONDS)
        seconds = time.monotonic() - self._began
        assert status == 0, self.container.logs()
        return read_training(self.run, seconds)


@contextmanager
def contained(
    driver: Driver, images: dict[str, str], models: Path, work: Path, key_file: Path, settings: Sequence[str]
) -> Iterator[Contained]:
    """The services, ready, and a trainer that is not started yet; `images` has rollout, reward-model and trainers."""
    services: list[Container] = []
    trained: Contained | None = None
    try:
        for launch in (policy(images["rollout"], models), reward(images["reward-model"], models)):
            services.append(driver.start(hardened(keyed(replace(launch, environment=THREADS), key_file))))
        for container in services:
            wait_until_ready(container)
        words = stage_words("/models", "/data/ppo", (services[0].inside_url, services[1].inside_url), settings)
        mounts = (Mount(models, "/models", read_only=True), Mount(work, "/data"))
        trainer = Launch(images["trainers"], words, environment=THREADS, mounts=mounts)
        trained = Contained(driver, services[0], services[1], hardened(keyed(trainer, key_file)), work / "ppo")
        yield trained
    finally:
        if trained is not None and trained.container is not None:
            trained.container.remove()
        for container in services:
            container.remove()


def uncontained(models: Path, work: Path, settings: Sequence[str]) -> Training:
    """The same with processes of this environment."""
    run = work / "ppo"
    threads = ["--threads", "1"]
    arguments = ["policy", f"{models}/policy", "--engine", "native", *threads]
    with (
        SupervisedService("policy", arguments, work / "policy.log") as p,
        SupervisedService("reward", ["reward", f"{models}/reward", *threads], work / "reward.log") as r,
    ):
        command = [sys.executable, "-m", "posttrain.core", *stage_words(models, run, (p.url, r.url), settings)]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **THREADS}, check=False)
        seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    return read_training(run, seconds)

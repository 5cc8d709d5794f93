"""PPO in three containers (trainer, policy, reward) is the PPO of three processes, also when one is killed."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from tests.containers.conftest import readable
from tests.containers.pipeline import Training, contained, logged_rows, uncontained
from tests.containers.services import wait_until_ready

pytestmark = [pytest.mark.container, pytest.mark.timeout(3600)]
STEPS = 24
SETTINGS = (f"steps={STEPS}", "prompts_per_step=16", "max_new_tokens=16", "minibatches=2", "save_every=10")
RUN = "POSTTRAIN_PPO_RUN"
"""Names a finished run directory of `posttrain train ppo`: it is trained again, at its length, in containers."""


@pytest.fixture(scope="module")
def images(image) -> dict[str, str]:
    return {target: image(target) for target in ("rollout", "reward-model", "trainers")}


@pytest.fixture(scope="module")
def calm(images, models, tmp_path_factory) -> Training:
    """Without containers; where there are no images it is not worth its time."""
    return uncontained(models, tmp_path_factory.mktemp("uncontained"), SETTINGS)


def test_ppo_in_three_containers_is_the_ppo_of_three_processes(driver, images, models, work, key_file, calm):
    with contained(driver, images, models, work, key_file, SETTINGS) as training:
        training.begin()
        trained = training.end()
    assert [row["step"] for row in trained.rows] == list(range(STEPS))
    assert trained.rows == calm.rows
    assert trained.weights == calm.weights
    assert trained.fingerprint == calm.fingerprint


def test_a_reward_container_that_is_killed_and_started_again_changes_nothing(
    driver, images, models, work, key_file, calm
):
    with contained(driver, images, models, work, key_file, SETTINGS) as training:
        training.begin()
        assert training.container is not None
        while len(logged_rows(training.run)) < 3:
            assert training.container.running(), training.container.logs()
            time.sleep(0.05)
        training.reward.signal(signal.SIGKILL)
        assert training.reward.ended(60)
        missed = len(logged_rows(training.run))
        assert missed < STEPS - 1, "the training was over before"
        time.sleep(2)
        assert len(logged_rows(training.run)) <= missed + 1, "it went on without rewards"
        assert training.container.running(), training.container.logs()
        training.reward.start()
        wait_until_ready(training.reward)
        if not training.container.running():
            # A trainer waits two minutes for a service, and some engines need longer to start a container.
            assert "did not answer within" in training.container.logs()
            training.begin()
        trained = training.end()
    assert [row["step"] for row in trained.rows] == list(range(STEPS))
    assert trained.rows == calm.rows
    assert trained.weights == calm.weights


@pytest.mark.slow
def test_a_run_of_the_recipe_is_trained_again_in_containers_to_the_bit(driver, images, tmp_path, work, key_file):
    """`python -m delivery pipeline RUN` calls this and keeps the figures that it prints."""
    if not (named := os.environ.get(RUN)):
        pytest.skip(f"{RUN} names no finished run of posttrain train ppo; python -m delivery pipeline RUN gives one")
    run = Path(named)
    config = yaml.safe_load((run / "config.yaml").read_text())
    start = Path(config["start"])
    (learned,) = (run.parents[1] / "rm").glob(f"{config['parents'][1][:12]}")
    models = tmp_path / "models"
    shutil.copytree(start, models / "policy")
    shutil.copytree(learned / "checkpoint", models / "reward")
    readable(models)
    settings = [f"{name}={json.dumps(value)}" for name, value in config["settings"].items()]
    before = time.monotonic()
    with contained(driver, images, models, work, key_file, settings) as training:
        ready_seconds = time.monotonic() - before
        training.begin()
        trained = training.end()
    bare = uncontained(models, tmp_path / "bare", settings)
    figures = {
        "steps": len(trained.rows),
        "services_ready_seconds": round(ready_seconds, 1),
        "stage_seconds": round(trained.seconds, 1),
        "uncontained_stage_seconds": round(bare.seconds, 1),
        "same_metrics": trained.rows == bare.rows,
        "same_weights": trained.weights == bare.weights,
        "same_as_the_run": trained.rows == logged_rows(run),
        "weights": trained.weights,
    }
    print("\n" + json.dumps(figures))
    assert figures["same_metrics"]
    assert figures["same_weights"]

"""The images that serve nothing do their work: rows of data, an evaluation without torch, a recipe from the lab."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.core.supervised import SupervisedService
from tests.containers.driver import Launch, Mount, run
from tests.containers.pipeline import THREADS
from tests.containers.services import hardened, keyed, policy, reward, serving

pytestmark = [pytest.mark.container, pytest.mark.timeout(1800)]
SMALL = (
    "reward=verifier",
    "data.sft.rows=128",
    "sft.epochs=1",
    "ppo.steps=3",
    "ppo.prompts_per_step=16",
    "ppo.max_new_tokens=16",
    "evaluation.limit=8",
    "evaluation.policy_prompts=8",
    "threads=1",
)
TRAIN = ("train", "ppo", "--json", *(word for override in SMALL for word in ("--set", override)))


def test_the_data_image_shows_rows(driver, image):
    ran = run(driver, hardened(Launch(image("data"), ("data", "show", "nano", "--rows", "2"))))
    assert ran.status == 0, ran.output
    assert [set(json.loads(line)) >= {"id", "prompt", "reference"} for line in ran.output.splitlines()] == [True, True]


def test_the_evaluation_image_evaluates_what_a_service_holds_without_torch(driver, image, models, work, key_file):
    with serving(driver, hardened(keyed(policy(image("rollout"), models), key_file))) as asked:
        words = ("eval", "--backend", "service", "--tokenizer", "/models/policy", "--policy-url", asked.inside_url)
        words += ("--tasks", "nano_choice", "--limit", "8", "--json")
        mounts = (Mount(models, "/models", read_only=True), Mount(work, "/data"))
        ran = run(driver, hardened(keyed(Launch(image("eval-harness"), words, mounts=mounts), key_file)), 300)
    assert ran.status == 0, ran.output
    said = json.loads(ran.output.splitlines()[-1])
    assert "nano_choice" in json.dumps(said)
    assert [len(path.read_text().splitlines()) for path in work.glob("runs/**/nano_choice.jsonl")] == [8]


def test_the_judge_image_without_a_judge_says_how_to_name_one(driver, image):
    ran = run(driver, hardened(Launch(image("llm-judge"))))
    assert ran.status == 2, ran.output
    (line,) = ran.errors
    assert "no judge to serve" in line


def test_the_labs_table_of_containers_is_the_one_without(driver, image, models, work, key_file, tmp_path):
    """`posttrain train ppo` with services of its own elsewhere, from nothing to the table."""
    launches = (policy(image("rollout"), models), reward(image("reward-model"), models))
    hard = [hardened(keyed(replace(launch, environment=THREADS), key_file)) for launch in launches]
    with serving(driver, hard[0]) as p, serving(driver, hard[1]) as r:
        urls = {"POLICY_URL": p.inside_url, "REWARD_URL": r.inside_url}
        launch = Launch(image("lab"), TRAIN, environment={**THREADS, **urls}, mounts=(Mount(work, "/data"),))
        ran = run(driver, hardened(keyed(launch, key_file)), 900)
    assert ran.status == 0, ran.output
    contained = json.loads(ran.output.splitlines()[-1])
    bare = uncontained(models, tmp_path)
    assert [row["method"] for row in contained["rows"]] == ["base", "sft", "ppo"]
    assert [row["columns"] for row in contained["rows"]] == [row["columns"] for row in bare["rows"]]
    assert contained["differences"] == bare["differences"]


def uncontained(models: Path, folder: Path) -> dict:
    """The same table of processes of this environment."""
    threads = ["--threads", "1"]
    with (
        SupervisedService("policy", ["policy", f"{models}/policy", *threads], folder / "policy.log") as p,
        SupervisedService("reward", ["reward", f"{models}/reward", *threads], folder / "reward.log") as r,
    ):
        command = [sys.executable, "-m", "posttrain.core", *TRAIN, "--runs", str(folder / "runs")]
        environment = {**os.environ, **THREADS, "POLICY_URL": p.url, "REWARD_URL": r.url}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

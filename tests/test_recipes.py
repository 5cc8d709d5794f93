"""Every shipped recipe runs every stage, on an untrained model of two layers, a few steps each (make recipes-check)."""

import json
import math
from itertools import pairwise
from pathlib import Path

import huggingface_hub
import pytest

from posttrain.core.cli import run as command
from posttrain.core.files import read_jsonl
from posttrain.lab.forecast import forecast, rows_of
from posttrain.lab.gpus import find_gpu
from posttrain.lab.graph import plan_training
from posttrain.lab.models import resolve_shape
from posttrain.lab.pipeline import Options, run_one, run_services
from posttrain.lab.plan import Stage
from posttrain.lab.recipe import recipe_names
from posttrain.lab.stage_walk import needed_stages
from posttrain.trainers.offline import OfflineSettings
from tests.recipe_smoke import RECIPES, mirror, small_recipe

TINY, L4 = resolve_shape("random:qwen2-tiny"), find_gpu("l4")
pytestmark = [pytest.mark.service, pytest.mark.long]


@pytest.fixture(autouse=True)
def small_world(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_DATA", str(mirror(tmp_path_factory.mktemp("hub"))))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    for name in ("REWARD_URL", "POLICY_URL"):
        monkeypatch.delenv(name, raising=False)


def run_arm(recipe: str, arm: str, root: Path) -> list[Stage]:
    """All stages of an arm, as `posttrain train` runs them, without the evaluation."""
    plan = plan_training(small_recipe(recipe), arm, 0, root)
    with run_services(plan, root / "logs") as services:
        for stage in plan.stages:
            if not stage.run.finished:
                run_one(plan, stage, services, Options())
    return list(plan.stages)


def check(stage: Stage) -> None:
    """What every stage leaves: a loadable checkpoint or pairs, finite metrics, the adapter that its recipe asks for."""
    run = stage.run
    provenance = run.provenance()
    assert provenance["fingerprint"] == stage.identity.fingerprint
    if stage.method in ("preferences", "best_of_n"):
        return
    names = {file.name for file in run.checkpoint.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert (run.path / "adapter" / "adapter_config.json").exists(), f"{stage.method} trained no adapter"
    rows = read_jsonl(run.metrics_path)
    numbers = [value for row in rows for key, value in row.items() if isinstance(value, float) and "loss" in key]
    assert numbers
    assert all(math.isfinite(value) for value in numbers)


def check_steps(recipe: str, arm: str, stages: list[Stage]) -> None:
    """Offline stages on rows that are there take as many steps as `posttrain plan` says."""
    small = small_recipe(recipe)
    needed = {stage.name: stage for stage in needed_stages(small, [arm])}
    said = {
        stage.method: forecast(small, stage, TINY, L4, rows_of(small, stage, needed)).work.steps
        for stage in needed.values()
        if isinstance(stage.settings, OfflineSettings) and stage.field != "made"
    }
    for stage in stages:
        if stage.method in said:
            assert stage.run.provenance()["summary"]["steps"] == said[stage.method], f"{arm}: {stage.method}"


def test_climb_runs_all_five_stages(tmp_path):
    """Base → SFT → DPO → PPO → GRPO, each from the one before."""
    stages = run_arm("gsm8k", "grpo", tmp_path)
    assert [stage.method for stage in stages] == ["sft", "dpo", "ppo", "grpo"]
    for before, after in pairwise(stages):
        assert after.start == before.run.checkpoint
    for stage in stages:
        check(stage)
    check_steps("gsm8k", "grpo", stages)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_runs_every_stage(tmp_path, recipe):
    done: dict[str, Stage] = {}
    for arm in RECIPES[recipe]:
        stages = run_arm(recipe, arm, tmp_path)
        check_steps(recipe, arm, stages)
        done |= {stage.identity.fingerprint: stage for stage in stages}
    for stage in done.values():
        check(stage)


def test_every_recipe_but_nano_is_checked():
    assert set(RECIPES) == set(recipe_names()) - {"nano"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_dry_run_without_the_model_prints_stages_memory_and_price_for_the_l4(recipe, tmp_path, capsys, monkeypatch):
    def away(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", away)
    arm = RECIPES[recipe][0]
    asked = ["train", arm, "--recipe", recipe, "--dry-run", "--json", "--runs", str(tmp_path / "runs")]
    assert command(asked) == 0
    said = json.loads(capsys.readouterr().out)
    found = said["forecast"]
    assert said["stages"][0] == {"stage": "sft"}
    assert found["gpu"] == "NVIDIA L4 (24 GB)"
    assert found["fits"], "every stage of a recipe for the L4 fits it"
    assert found["price"] > 0

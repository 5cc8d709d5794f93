"""A comparison's plans, and the rows of other runs that join it: rebuilt from what their directories say."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from packages.lab.tests.finished_runs import finished
from posttrain.core.errors import RequestError
from posttrain.core.files import atomic_write_json
from posttrain.lab import jobs as jobs_module
from posttrain.lab import policy_measures
from posttrain.lab.comparison import (
    _recorded_identity,
    external_entries,
    plan_comparison,
    plans_without,
    refuse_unlike,
)
from posttrain.lab.evaluations import SETTINGS_FILE, evaluation_settings
from posttrain.lab.graph import plan_training
from posttrain.lab.pipeline import record_base
from posttrain.lab.plan import Plan
from posttrain.lab.recipe import load_recipe
from posttrain.lab.runs_command import find_runs
from posttrain.lab.seeds import parse_seeds
from posttrain.lab.tasks import joining_tasks, tasks_of
from posttrain.lab.worker import do
from posttrain.trainers.stage import StageInputs, resolved_config


@pytest.fixture(autouse=True)
def own_services(monkeypatch):
    monkeypatch.delenv("REWARD_URL", raising=False)
    monkeypatch.delenv("POLICY_URL", raising=False)


def planned(root: Path, method: str = "dpo", seed: int = 0, *overrides: str) -> Plan:
    return plan_training(load_recipe("nano", overrides), method, seed, root, {}, True)


def write(plan: Plan, *, all_but: str = "") -> Plan:
    """Every stage of the plan as a finished run leaves it, without the training."""
    record_base(plan)
    for stage in plan.stages:
        inputs = StageInputs(run=stage.run, seed=plan.seed, start=stage.start)
        config = resolved_config(stage.method, stage.settings, inputs, stage.identity)
        stage.run.path.mkdir(parents=True, exist_ok=True)
        (stage.run.path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        if stage.method == all_but:
            continue
        if stage.method not in ("preferences", "best_of_n"):
            stage.run.checkpoint.mkdir(exist_ok=True)
        keys = ("stage", "method", "seed", "fingerprint", "config_hash", "parents")
        stage.run.finish({**{key: config[key] for key in keys}, "cost": {"wall_seconds": 1.0}})
        atomic_write_json(stage.run.eval / SETTINGS_FILE, {"settings": evaluation_settings(plan.recipe.evaluation)})
    return plan


def fingerprint(plan: Plan, method: str) -> str:
    return next(stage.run.path.name for stage in plan.stages if stage.method == method)


@pytest.mark.parametrize("text", ["0,x", "", "0,,1", "-1", "1.5", "²", "0;1"])
def test_seeds_that_are_no_numbers_are_refused(text):
    with pytest.raises(RequestError, match="--seeds takes numbers separated by commas"):
        parse_seeds(text)


def test_seeds_keep_their_order_and_are_named_once():
    assert parse_seeds("2, 0,1") == [2, 0, 1]
    with pytest.raises(RequestError, match="names a seed twice"):
        parse_seeds("1,0,1")


def arms(methods: str | None, *overrides: str) -> list[str]:
    plans = plan_comparison(load_recipe("nano", overrides), methods, "0", Path("/nowhere"))
    return [plan.method for plan in plans]


def test_what_is_compared_is_what_the_recipe_says_unless_told():
    assert arms(None, "compare=[dpo, ppo]") == ["dpo", "ppo"]
    assert arms(" orpo,dpo ,") == ["orpo", "dpo"]


def test_all_is_what_the_recipe_compares_and_each_variant():
    recipe = load_recipe("nano")
    assert recipe.variants
    assert arms("all") == [*recipe.compared(), *recipe.variants]


def test_every_seed_has_a_plan_of_every_arm(tmp_path):
    plans = plan_comparison(load_recipe("nano"), "dpo,orpo", "3,1", tmp_path)
    assert [(plan.seed, plan.method) for plan in plans] == [(3, "dpo"), (3, "orpo"), (1, "dpo"), (1, "orpo")]


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        ("dpoo", "unknown method 'dpoo' .*did you mean 'dpo'"),
        ("dpo,rm", "--methods rm: it makes no policy"),
        ("preferences", "--methods preferences: it makes no policy"),
        (" , ", "--methods names nothing to compare"),
    ],
)
def test_methods_that_cannot_be_compared_are_refused(methods, told):
    with pytest.raises(RequestError, match=told):
        arms(methods)


@pytest.mark.parametrize("method", ["dpo", "simpo", "orpo", "kto", "ppo", "grpo", "rloo", "dpo-on-policy", "best_of_n"])
def test_what_identified_a_run_is_rebuilt_from_its_files(tmp_path, method):
    plan = write(planned(tmp_path, method))
    places = {found.fingerprint: found.run for found in find_runs(tmp_path)}
    for stage in plan.stages:
        assert _recorded_identity(stage.run, places) == stage.identity
    assert _recorded_identity(plan.rows[0].run, places) == plan.rows[0].identity


def test_a_run_whose_config_was_changed_is_refused(tmp_path):
    plan = write(planned(tmp_path))
    config = plan.last.run.path / "config.yaml"
    config.write_text(config.read_text().replace("beta: 0.1", "beta: 0.2"))
    with pytest.raises(RequestError, match="was changed after it was made"):
        external_entries([fingerprint(plan, "dpo")], [planned(tmp_path, "orpo")], tmp_path)


def test_a_run_whose_ancestor_was_changed_is_refused(tmp_path):
    plan = write(planned(tmp_path))
    config = plan.stages[0].run.path / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 7"))
    with pytest.raises(RequestError, match=r"nano/sft/.* was changed after it was made"):
        external_entries([fingerprint(plan, "dpo")], [planned(tmp_path, "orpo")], tmp_path)


def test_a_row_joins_with_its_own_stages_and_those_before(tmp_path):
    other = write(planned(tmp_path, "ppo", 0, "ppo.lr=0.0005"))
    (entry,) = external_entries([fingerprint(other, "ppo")], [planned(tmp_path, "ppo")], tmp_path)
    assert entry.name == f"ppo [{other.last.run.path.name[:6]}]"  # the comparison has a ppo of its own
    assert [run.path.parent.name for run in entry.first.before] == ["sft", "preferences", "rm", "ppo"]
    assert entry.first.identity == other.last.identity


def test_a_row_that_joins_is_measured_once_there_is_what_its_seed_is_measured_with(tmp_path):
    write(planned(tmp_path, "dpo", 0, "dpo.beta=0.3"))
    named = fingerprint(planned(tmp_path, "dpo", 0, "dpo.beta=0.3"), "dpo")
    plan = planned(tmp_path / "fresh", "orpo")
    (entry,) = external_entries([named], [plan], tmp_path)
    tasks = tasks_of([plan])
    (joining,) = joining_tasks(entry.runs)
    labels = {task.key: task.label for task in tasks}
    assert {labels[key] for key in joining.needs} == {"sft, seed 0", "rm, seed 0"}
    assert (joining.label, joining.finished, joining.stage) == ("dpo, seed 0: evaluation", False, None)
    assert joining.key not in labels


def test_a_worker_measures_a_row_that_joins_as_it_was_found(tmp_path, monkeypatch):
    other = write(planned(tmp_path, "dpo", 0, "dpo.beta=0.3"))
    plan = planned(tmp_path, "orpo")
    (entry,) = external_entries([fingerprint(other, "dpo")], [plan], tmp_path)
    measured = []
    monkeypatch.setattr(policy_measures, "ensure_measured", lambda row, plan, services: measured.append((row, plan)))
    jobs = []
    monkeypatch.setattr(jobs_module, "run_tasks", lambda tasks, slots, *_: jobs.append(slots[0]._job(tasks[0])))
    jobs_module.run_jobs(joining_tasks(entry.runs), tmp_path, 1, {})
    do(jobs[0])
    assert measured == [(entry.runs[0][0], plan)]


def test_a_row_of_another_architecture_is_refused_before_anything_is_trained(tmp_path):
    other = write(planned(tmp_path))
    config = json.loads((other.base.folder / "config.json").read_text())
    atomic_write_json(other.last.run.checkpoint / "config.json", {**config, "num_hidden_layers": 99})
    with pytest.raises(RequestError, match="its model has num_hidden_layers 99, this comparison's base "):
        external_entries([fingerprint(other, "dpo")], [planned(tmp_path, "orpo")], tmp_path)


def test_arms_without_a_failure_are_those_that_need_nothing_of_it(tmp_path):
    plans = [planned(tmp_path, method, seed) for method in ("dpo", "ppo", "orpo") for seed in (0, 1)]
    keys = {(plan.method, plan.seed): f"{plan.last.identity.fingerprint}/{plan.seed}" for plan in plans}
    rm = next(stage.identity.fingerprint for stage in plans[0].stages if stage.method == "rm")
    left = {name: [p.method for p in plans_without(plans, {key})] for name, key in (*keys.items(), ("rm", rm))}
    assert left[("dpo", 0)] == ["ppo", "ppo", "orpo", "orpo"]  # under no seed: rows have the same seeds
    assert left["rm"] == ["dpo", "dpo", "orpo", "orpo"]


def test_a_row_joins_with_the_seeds_that_the_comparison_has(tmp_path):
    runs = [write(planned(tmp_path, "dpo", seed, "dpo.beta=0.3")) for seed in (0, 1, 2)]
    named = [fingerprint(run, "dpo") for run in runs[:2]]
    (entry,) = external_entries(named, [planned(tmp_path, "orpo", seed) for seed in (0, 2)], tmp_path)
    assert entry.seeds == (0, 2)


@pytest.mark.parametrize(
    ("method", "told"), [("rm", "has no trained policy"), ("preferences", "has no trained policy")]
)
def test_a_row_without_a_policy_is_refused(tmp_path, method, told):
    plan = write(planned(tmp_path))
    with pytest.raises(RequestError, match=told):
        external_entries([fingerprint(plan, method)], [planned(tmp_path, "orpo")], tmp_path)


def test_the_base_is_no_row_that_joins(tmp_path):
    base = write(planned(tmp_path)).rows[0].run.path.name
    with pytest.raises(RequestError, match="has no trained policy"):
        external_entries([base], [planned(tmp_path, "orpo")], tmp_path)


def test_an_unfinished_row_is_refused(tmp_path):
    plan = write(planned(tmp_path), all_but="dpo")
    with pytest.raises(RequestError, match="is not finished; finish it first"):
        external_entries([fingerprint(plan, "dpo")], [planned(tmp_path, "orpo")], tmp_path)


def test_a_row_whose_ancestor_is_not_finished_any_more_is_refused(tmp_path):
    plan = write(planned(tmp_path))
    plan.stages[0].run.provenance_path.unlink()
    with pytest.raises(RequestError, match="is not a finished run; train it again"):
        external_entries([fingerprint(plan, "dpo")], [planned(tmp_path, "orpo")], tmp_path)


def test_a_row_of_other_seeds_is_refused_with_both(tmp_path):
    plan = write(planned(tmp_path, "dpo", 5))
    with pytest.raises(
        RequestError, match="trained with seed 5, this comparison has 0; name a seed of it with --seeds"
    ):
        external_entries([fingerprint(plan, "dpo")], [planned(tmp_path, "orpo")], tmp_path)


def test_a_row_that_nobody_trained_is_refused(tmp_path):
    write(planned(tmp_path))
    with pytest.raises(RequestError, match="no run has a fingerprint that begins with 'zzz'"):
        external_entries(["zzz"], [planned(tmp_path, "orpo")], tmp_path)


def test_a_row_that_is_in_the_comparison_already_is_refused(tmp_path):
    plan = write(planned(tmp_path))
    with pytest.raises(RequestError, match="that is dpo, which is in this comparison; leave it out"):
        external_entries([fingerprint(plan, "dpo")], [plan], tmp_path)


def test_sft_policy_that_was_deleted_under_a_finished_choice_is_trained_again(tmp_path):
    plans = finished(tmp_path, ["best_of_n"])
    assert all(task.finished for task in tasks_of(plans))
    shutil.rmtree(plans[0].reference.run.path)
    refuse_unlike(plans, [], [])
    assert [task.label for task in tasks_of(plans) if not task.finished] == ["sft, seed 0", "sft, seed 0: evaluation"]

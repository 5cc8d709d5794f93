"""Tuning: the declared grid, equal effort, a record of every trial, and the choice in the recipe."""

import errno
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from packages.lab.tests.finished_runs import SMALL, finish, read_once
from posttrain.core.errors import RequestError
from posttrain.lab.arms import Tuned
from posttrain.lab.graph import plan_training
from posttrain.lab.recipe import load_recipe, recipe_path
from posttrain.lab.tasks import tasks_of
from posttrain.lab.tuned_section import HEAD, refuse_unwritable_recipe, write_tuned
from posttrain.lab.tuning import METRIC, ArmTuning, as_yaml, chosen, trials_of

RECORDS = Path(__file__).parents[3] / "results" / "tuning"


@pytest.fixture(autouse=True)
def _light(monkeypatch):
    read_once(monkeypatch)


@pytest.fixture(scope="module")
def nano():
    return load_recipe("nano")


def test_all_arms_that_are_compared_have_a_grid_of_the_same_size(nano):
    sizes = {
        name: len(trials_of(nano, name, None, 0.5))
        for name in [*nano.compared(), *nano.variants]
        if nano.arm(name).described.grid
    }
    assert set(sizes.values()) == {4}
    assert set(nano.compared()) - set(sizes) == {"best_of_n"}


def test_trials_put_their_values_and_their_length_into_the_arms_section(nano):
    (first, *_) = trials_of(nano, "dpo", None, 0.5)
    assert first.overrides[-1] == "dpo.length=0.5"
    recipe = load_recipe("nano", first.overrides)
    assert {key: getattr(recipe.arm("dpo").settings, key) for key in first.values} == first.values
    assert recipe.arm("dpo").settings.length == 0.5
    (of_variant, *_) = trials_of(nano, "ppo-verifier", None, 0.5)
    settings = load_recipe("nano", of_variant.overrides).arm("ppo-verifier").settings
    assert settings.length == 0.5
    assert settings.rewards == {"verifier": 1.0}


def test_trials_of_a_published_variant_leave_what_it_fixes(nano):
    for trial in trials_of(nano, "dapo-verifier", None, 0.5):
        settings = load_recipe("nano", trial.overrides).arm("dapo-verifier").settings
        assert (set(trial.values), settings.kl_coef) == ({"lr"}, 0)


def test_trials_are_measured_on_the_validation_prompts_and_the_table_on_others(nano):
    for name in ("dpo", "ppo-verifier"):
        for trial in trials_of(nano, name, None, 0.5):
            assert load_recipe("nano", trial.overrides).data.measured_prompts == nano.data.validation
    splits = nano.data.measured_prompts.split, nano.data.validation.split
    assert splits == ("test", "validation")


def test_fewer_trials_are_drawn_alike_each_time_and_more_are_refused(nano):
    two = trials_of(nano, "dpo", 2, 0.5)
    assert two == trials_of(nano, "dpo", 2, 0.5)
    assert len({json.dumps(dict(each.values)) for each in two}) == 2
    with pytest.raises(RequestError, match="dpo has a grid of 4 combinations"):
        trials_of(nano, "dpo", 5, 0.5)


def test_a_method_without_a_grid_has_nothing_to_tune(nano):
    with pytest.raises(RequestError, match="best_of_n has nothing to tune"):
        trials_of(nano, "best_of_n", None, 0.5)


def test_the_highest_gold_reward_is_chosen_and_of_equals_the_first_and_none_that_failed():
    trials = [gold(1, 0.5), {"values": {"lr": 0}, "failed": "training diverged"}, gold(2, 0.6), gold(3, 0.6)]
    assert chosen(trials)["values"] == {"lr": 2}
    assert chosen(trials[1:2]) is None


def gold(lr: float, value: float) -> dict:
    return {"values": {"lr": lr}, "gold": {"value": value}}


@pytest.mark.parametrize(
    ("value", "text"),
    [(5e-7, "5.0e-07"), ((0.9, 0.95), "[0.9, 0.95]"), ("no", "'no'"), (None, "null"), ([1.0] * 99, str([1.0] * 99))],
)
def test_a_value_is_written_in_one_line_that_reads_the_same(value, text):
    assert as_yaml(value) == text


def test_pairs_of_numbers_are_tried_whole():
    recipe = load_recipe("nano", ["grids.ppo.betas=[[0.9, 0.95], [0.9, 0.999]]"])
    tried = [load_recipe("nano", trial.overrides).arm("ppo") for trial in trials_of(recipe, "ppo", None, 0.5)]
    assert [arm.settings.betas for arm in tried] == [(0.9, 0.95), (0.9, 0.999)]


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "dpo",
            ["dpo.lr=1e-5"],
            "dpo.lr is set, and would go before what tuning chooses; .* make it the first value of grids.dpo.lr",
        ),
        ("grpo-verifier", ["variants.grpo-verifier.lr=1e-5"], "variants.grpo-verifier.lr is set"),
        (
            "orpo",
            ["orpo.optimizer=adamw"],
            "the grid of orpo varies muon_lr, of which its settings make no use; .* in the recipe, grids.orpo",
        ),
    ],
)
def test_a_grid_that_would_change_nothing_is_refused(name, overrides, message):
    with pytest.raises(RequestError, match=message):
        trials_of(load_recipe("nano", overrides), name, None, 0.5)


def test_every_arm_of_gsm8k_can_be_tuned_around_its_own_settings():
    recipe = load_recipe("gsm8k")
    for name in set(recipe.compared()) - {"best_of_n"}:
        arm, trials = recipe.arm(name), trials_of(recipe, name, None, 0.5)
        assert len(trials) == 4
        assert {key: getattr(arm.settings, key) for key in arm.grid} == dict(trials[0].values)
        # Ten times the papers' rates, for an adapter.
        assert all(1e-6 < trial.values.get("lr", 1e-5) < 1e-4 for trial in trials)


def tuning(folder: Path, name: str = "dpo", *overrides: str, seed: int = 0, length: float = 0.5) -> ArmTuning:
    overrides = (*SMALL, *overrides)
    recipe = load_recipe("nano", overrides)
    asked = trials_of(recipe, name, None, length)
    plans = [
        plan_training(load_recipe("nano", [*overrides, *trial.overrides]), name, seed, folder / "runs", None, True)
        for trial in asked
    ]
    return ArmTuning(
        recipe, recipe.arm(name), list(zip(asked, plans, strict=True)), length, folder, {"command": "tune"}
    )


def end(of: ArmTuning, place: int, reward: float) -> None:
    """Writes a trial's run as a worker leaves it, and tells that it ended."""
    plan = of.planned[place][1]
    finish([plan], lambda row, seed, task: [reward, reward])
    (task,) = [task for task in tasks_of([plan], {plan.rows[-1].name}, on_tasks=False) if task.row]
    of.ended(task, None)


def diverge(of: ArmTuning, place: int, why: str = "training diverged: the loss is nan (log: x)") -> None:
    plan = of.planned[place][1]
    last = plan.last.identity.fingerprint
    (task,) = [task for task in tasks_of([plan], {plan.rows[-1].name}, on_tasks=False) if task.stage == last]
    of.ended(task, why)


def record(of: ArmTuning) -> dict:
    return json.loads(of.path.read_text())


def test_a_trial_is_recorded_when_it_ends_and_is_not_missing_from_then_on(tmp_path):
    first = tuning(tmp_path)
    assert len(first.missing()) == 4
    end(first, 2, 0.5)
    assert [each["gold"]["value"] for each in record(first)["trials"]] == [0.5]
    # In a fresh clone there are no runs.
    again = tuning(tmp_path / "clone", "dpo")
    again = replace(again, folder=tmp_path)
    assert [trial for trial, _ in again.missing()] == [first.planned[place][0] for place in (0, 1, 3)]


def test_the_choice_and_its_number_are_of_all_that_is_recorded(tmp_path):
    whole = tuning(tmp_path)
    for place, reward in enumerate((0.4, 0.7, 0.5, 0.6)):
        end(whole, place, reward)
    part = replace(whole, planned=whole.planned[2:])
    tuned = part.tuned()
    assert (tuned.values, tuned.trials) == (dict(whole.planned[1][0].values), 4)
    assert record(whole)["chosen"] == tuned.values


def test_a_trial_that_diverged_is_recorded_counts_and_is_not_chosen(tmp_path):
    of = tuning(tmp_path)
    diverge(of, 0)
    end(of, 1, 0.1)
    assert [trial for trial, _ in of.missing()] == [trial for trial, _ in of.planned[2:]]
    assert record(of)["trials"][0]["failed"] == "training diverged: the loss is nan (log: x)"
    assert "gold" not in record(of)["trials"][0]
    assert (of.tuned().values, of.tuned().trials) == (dict(of.planned[1][0].values), 2)


def test_an_arm_whose_trials_all_diverged_has_no_choice(tmp_path):
    of = tuning(tmp_path)
    for place in range(4):
        diverge(of, place)
    assert (of.missing(), of.tuned(), record(of)["chosen"]) == ([], None, None)


def test_a_trial_that_failed_for_another_reason_is_made_again(tmp_path):
    of = tuning(tmp_path)
    diverge(of, 0, "ended by SIGKILL, as the system does when memory runs out (log: x)")
    assert len(of.missing()) == 4


@pytest.mark.parametrize(
    ("name", "otherwise"),
    [
        ("dpo", {"overrides": ("dpo.pairs=on_policy",)}),
        ("dpo", {"overrides": ("dpo.epochs=2",)}),
        ("dpo", {"overrides": ("sft.epochs=1",)}),
        ("dpo", {"overrides": ("evaluation.policy_prompts=100",)}),
        ("dpo", {"overrides": ("evaluation.policy_max_tokens=50", "best_of_n={}")}),
        ("dpo", {"overrides": ("data.validation.rows=100",)}),
        ("dpo", {"length": 1.0}),
        ("dpo", {"seed": 1}),
        ("ppo", {"overrides": ("ppo.reward=verifier",)}),
        ("ppo", {"overrides": ("ppo.from=dpo",)}),
        ("grpo", {"overrides": ("grpo.variant=dapo",)}),
    ],
)
def test_trials_that_were_made_otherwise_do_not_compete_and_leave_the_record(tmp_path, name, otherwise):
    before = tuning(tmp_path, name)
    end(before, 0, 0.9)
    after = tuning(tmp_path, name, *otherwise.pop("overrides", ()), **otherwise)
    assert len(after.missing()) == 4
    end(after, 1, 0.4)
    assert [each["gold"]["value"] for each in record(after)["trials"]] == [0.4]
    place = {"learns_from": after.arm.learns_from, "start": after.arm.start}
    assert {key: record(after)[key] for key in place} == place


def test_a_grid_with_more_values_goes_on_from_what_is_recorded(tmp_path):
    few = tuning(tmp_path, "dpo", "grids.dpo={lr: [1.0e-4]}")
    end(few, 0, 0.5)
    more = tuning(tmp_path, "dpo", "grids.dpo={lr: [1.0e-4, 3.0e-4]}")
    assert [dict(trial.values) for trial, _ in more.missing()] == [{"lr": 3e-4}]


def test_runs_that_ended_unrecorded_are_recorded_without_another_run(tmp_path):
    of = tuning(tmp_path)
    finish([of.planned[3][1]], lambda row, seed, task: [0.3, 0.3])
    of.record_finished()
    assert [each["fingerprint"] for each in record(of)["trials"]] == [of.planned[3][1].last.identity.fingerprint]


def test_committed_records_are_of_what_the_recipe_trains_now_and_chose_what_it_says(nano):
    """Trials of another day join those of the same fingerprint's arm only: a record that lacks its place is lost."""
    for name, tuned in nano.tuned.items():
        record, arm = json.loads((RECORDS / f"nano-{name}.json").read_text()), nano.arm(name)
        assert (record["learns_from"], record["start"]) == (arm.learns_from, arm.start)
        assert (record["chosen"], len(record["trials"])) == (tuned.values, tuned.trials)
        assert arm.trials == tuned.trials


TUNED = Tuned(
    values={"lr": 3e-4, "beta": 0.1},
    learns_from="offline pairs",
    start="sft",
    trials=4,
    metric=METRIC,
    record="results/tuning/nano-dpo.json",
)


def test_the_choice_goes_into_the_recipe_and_the_rest_of_the_file_stays(tmp_path):
    path = tmp_path / "mine.yaml"
    text = recipe_path("nano").read_text().partition(HEAD)[0]
    path.write_text(text)
    write_tuned(path, "dpo", TUNED)
    write_tuned(path, "kto", TUNED.model_copy(update={"values": {"lr": 5e-4}}))
    write_tuned(path, "dpo", TUNED)
    written = path.read_text()
    assert written.startswith(text.rstrip("\n"))
    assert written.count("tuned:") == 1
    assert list(yaml.safe_load(written)["tuned"]) == ["dpo", "kto"]
    arm = load_recipe(str(path)).arm("dpo")
    assert (arm.settings.lr, arm.settings.beta, arm.trials) == (3e-4, 0.1, 4)


def test_a_section_after_the_choice_is_kept(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: a\n\ntuned:\n  dpo: {values: {lr: 1.0}}\n\nmodel: nano\n")
    write_tuned(path, "kto", TUNED)
    assert list(yaml.safe_load(path.read_text())) == ["name", "model", "tuned"]
    assert set(yaml.safe_load(path.read_text())["tuned"]) == {"dpo", "kto"}


def test_a_value_of_ones_own_goes_before_the_choice_and_has_no_trials(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(recipe_path("nano").read_text().partition(HEAD)[0])
    write_tuned(path, "dpo", TUNED)
    arm = load_recipe(str(path), ["dpo.lr=0.001"]).arm("dpo")
    assert (arm.settings.lr, arm.settings.beta, arm.trials) == (0.001, 0.1, 0)


AWKWARD = {
    "comment in column 0 within it": "name: a\ntuned:\n  dpo:\n# why\n    trials: 4\nmodel: nano\n",
    "flow mapping that ends in column 0": "name: a\ntuned: {\n  dpo: {trials: 4}\n}\n# about the model\nmodel: nano\n",
    "quoted key": "name: a\n'tuned':\n  dpo: {trials: 4}\nmodel: nano\n",
    "empty": "name: a\ntuned:\nmodel: nano\n",
    "text that looks like it": "name: a\ndescription: |\n  x\n\n  tuned:\nmodel: nano\n",
    "no newline at the end": "name: a\ntuned: {dpo: {trials: 4}}",
}


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_any_way_to_write_the_section_is_replaced_and_nothing_else(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    old = yaml.safe_load(text)
    for _ in range(2):
        write_tuned(path, "kto", TUNED)
        chosen = TUNED.model_dump(exclude_none=True)
        assert yaml.safe_load(path.read_text()) == {**old, "tuned": {**(old.get("tuned") or {}), "kto": chosen}}
        assert path.read_text().count(HEAD) == 1
    assert ("# about the model" in path.read_text()) == ("# about the model" in text)


@pytest.mark.parametrize(
    "text",
    ["name: a\n...\n", "{name: a, tuned: {}}\n", "name: a\ntuned: &t {x: {trials: 4}}\nseconds: *t\n", "  name: a\n"],
    ids=["end of the document", "all in a flow mapping", "referred to", "indented"],
)
def test_a_file_that_cannot_be_changed_without_harm_is_left_and_what_to_write_is_told(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"(?s)put it there by hand:\ntuned:.* kto:.*lr: 0\.0003"):
        write_tuned(path, "kto", TUNED)
    assert path.read_text() == text


def test_a_recipe_that_cannot_be_written_is_said_so(tmp_path, monkeypatch):
    path = tmp_path / "mine.yaml"
    path.write_text("name: a\n")
    if os.geteuid() == 0:  # root may write anywhere

        def refuse(**_):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(tempfile, "mkstemp", refuse)
        monkeypatch.setattr(os, "access", lambda place, mode: False)
    else:
        tmp_path.chmod(0o500)
    for write in (lambda: refuse_unwritable_recipe(path), lambda: write_tuned(path, "dpo", TUNED)):
        with pytest.raises(RequestError, match=r"mine.yaml.*; copy the recipe to a file of your own and tune that"):
            write()
    tmp_path.chmod(0o700)
    assert path.read_text() == "name: a\n"


def test_choices_that_are_written_at_once_are_all_there(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: a\n")
    names = [f"arm-{number}" for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: write_tuned(path, name, TUNED), names))
    assert set(yaml.safe_load(path.read_text())["tuned"]) == set(names)

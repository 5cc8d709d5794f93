"""How long work takes here: from the runs that are there, else from the recipe."""

from posttrain.core.files import atomic_write_json
from posttrain.core.runs import RunDirectory, StageIdentity
from posttrain.lab.estimates import seconds_by_work
from posttrain.lab.recipe import load_recipe


def make(root, stage, seconds, seed, evaluation=None, recipe="nano"):
    run = RunDirectory.of(root, recipe, StageIdentity(stage, 1, {}, seed))
    run.finish({"stage": stage, "cost": {"wall_seconds": seconds}} if seconds is not None else {"stage": stage})
    if evaluation is not None:
        atomic_write_json(run.eval / "evaluation.json", {"settings": {}, "seconds": evaluation})


def test_median_of_the_runs_that_are_there(tmp_path):
    for seed, seconds in enumerate((10.0, 14.0, 90.0)):
        make(tmp_path, "dpo", seconds, seed)
    assert seconds_by_work(tmp_path, load_recipe("nano"))["dpo"] == 14.0


def test_evaluations_of_all_rows_are_one_kind_of_work(tmp_path):
    make(tmp_path, "dpo", 10.0, 0, evaluation=4.0)
    make(tmp_path, "base", None, 0, evaluation=8.0)
    assert seconds_by_work(tmp_path, load_recipe("nano"))["evaluation"] == 6.0


def test_runs_go_before_the_recipe_which_stands_for_what_was_never_run(tmp_path):
    recipe = load_recipe("nano", ["seconds={dpo: 30, ppo: 100}"])
    assert seconds_by_work(tmp_path, recipe) == {"dpo": 30, "ppo": 100}
    make(tmp_path, "dpo", 10.0, 0)
    assert seconds_by_work(tmp_path, recipe) == {"dpo": 10, "ppo": 100}


def test_another_recipe_says_nothing(tmp_path):
    make(tmp_path, "dpo", 10.0, 0, recipe="other")
    assert "dpo" not in seconds_by_work(tmp_path, load_recipe("nano", ["seconds={}"]))


def test_the_base_which_nobody_trains_has_no_time(tmp_path):
    make(tmp_path, "base", None, 0)
    assert "base" not in seconds_by_work(tmp_path, load_recipe("nano"))

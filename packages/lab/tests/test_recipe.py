"""Recipes: what ships is valid, and what is wrong in one is named before anything runs."""

import pytest

from posttrain.core.errors import RequestError
from posttrain.eval_harness.presets import preset
from posttrain.lab.evaluations import evaluation_settings
from posttrain.lab.recipe import load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid(name):
    assert load_recipe(name).name == name


def test_nano_and_gsm8k_ship():
    assert {"nano", "gsm8k"} <= set(recipe_names())


def test_unknown_recipe_suggests_the_nearest():
    with pytest.raises(RequestError, match=r"unknown recipe 'nanno' \(did you mean 'nano'\?\)"):
        load_recipe("nanno")


def test_unknown_key_of_a_method_suggests_the_nearest():
    with pytest.raises(RequestError, match=r"recipe nano: unknown key 'ppo.stepz' \(did you mean 'steps'\?\)"):
        load_recipe("nano", ["ppo.stepz=3"])


def test_unknown_section_suggests_the_nearest():
    with pytest.raises(RequestError, match="did you mean 'ppo'"):
        load_recipe("nano", ["pppo.steps=3"])


def test_reward_by_name_has_weight_one():
    assert load_recipe("nano", ["reward=verifier"]).reward == {"verifier": 1.0}
    assert load_recipe("nano", ["reward={rm: 1, gsm8k: 0.5}"]).reward == {"rm": 1.0, "gsm8k": 0.5}


def test_recipe_in_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nmodel: nano\n"
        "data: {sft: {path: nano}, prompts: {path: nano}, validation: {path: nano, split: validation}}\n"
        "evaluation: {tasks: [nano_choice], table: {nano_choice/acc: choice}}\n"
    )
    assert load_recipe(str(path)).evaluation.columns() == {("nano_choice", "acc"): "choice"}


def test_key_that_a_section_has_wrong_is_told_of_the_section_and_not_of_a_variant_that_takes_it_over():
    """nano has variants of grpo; which of the two is told must not depend on chance."""
    with pytest.raises(RequestError, match=r"recipe nano: unknown key 'grpo.stepz'"):
        load_recipe("nano", ["grpo.stepz=3"])


def test_every_method_that_makes_a_row_is_compared_where_the_recipe_names_none():
    recipe = load_recipe("nano", ["compare=null"])
    assert set(recipe.compared()) == {"dpo", "simpo", "orpo", "kto", "ppo", "grpo", "rloo", "best_of_n"}


def test_headline_is_the_last_column_where_none_is_named():
    table = "evaluation.table={nano_choice/acc: choice, nano_mc2/acc: mc2}"
    assert load_recipe("nano", [table, "evaluation.headline=null"]).evaluation.headline_column == "mc2"
    assert load_recipe("nano", [table, "evaluation.headline=nano_choice/acc"]).evaluation.headline_column == "choice"


def test_headline_that_the_table_does_not_show_is_refused():
    with pytest.raises(RequestError, match="headline 'nano_mc2/f1' must be an entry of table: nano_choice/acc"):
        load_recipe("nano", ["evaluation.headline=nano_mc2/f1"])


def test_reward_of_no_source_is_refused():
    with pytest.raises(RequestError, match="'reward' .*at least 1"):
        load_recipe("nano", ["reward={}"])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("reward={rm: 1, verifier: 0}", "'reward.verifier' must not be 0; leave the source out"),
        (
            "grpo.reward={rm: .nan}",
            "'grpo.reward.rm' input should be a finite number|reward.rm' input should be a finite",
        ),
        ("dpo.lr=.inf", "'lr' input should be a finite number"),
    ],
)
def test_weights_and_rates_that_would_teach_nothing_are_refused(override, told):
    with pytest.raises(RequestError, match=told):
        load_recipe("nano", [override])


@pytest.mark.parametrize("override", ["budget.tokens=0", "budget.seconds=0", "evaluation.limit=1"])
def test_bound_that_leaves_nothing_is_refused(override):
    with pytest.raises(RequestError, match=f"'{override.partition('=')[0]}' .*greater than"):
        load_recipe("nano", [override])


def test_section_that_is_no_section_is_refused():
    with pytest.raises(RequestError, match="'ppo' must be a section of settings, not 3"):
        load_recipe("nano", ["ppo=3"])


def test_table_entry_of_another_task_is_refused():
    with pytest.raises(RequestError, match="'nano_chess/acc' must be task/metric"):
        load_recipe("nano", ["evaluation.table={nano_chess/acc: chess}"])


def test_recipe_name_cannot_leave_the_runs_folder():
    with pytest.raises(RequestError, match="'name'"):
        load_recipe("nano", ["name=../outside"])


def test_choice_for_an_arm_that_is_gone_is_told():
    with pytest.raises(RequestError, match="recipe nano: tuned.gone: unknown method 'gone' .*; remove or rename it"):
        load_recipe(
            "nano", ["tuned.gone={values: {}, learns_from: rm, start: sft, trials: 4, metric: gold, record: r}"]
        )


def test_how_an_evaluation_is_posed_is_in_its_record_and_key_only_where_it_departs_from_the_standard():
    standard = load_recipe("nano").evaluation
    assert "posing" not in evaluation_settings(standard)
    assert standard.posing.label("hf") == "hf"
    as_the_reference_lab = load_recipe(
        "nano", ["evaluation.chat_template=false", "evaluation.few_shot_seed=42"]
    ).evaluation
    assert evaluation_settings(as_the_reference_lab)["posing"] == {"chat_template": False, "few_shot_seed": 42}
    assert as_the_reference_lab.posing.label("hf") == "hf, no chat template, few-shot seed 42"
    with pytest.raises(RequestError, match="it needs chat_template"):
        load_recipe("nano", ["evaluation.chat_template=false", "evaluation.fewshot_as_multiturn=true"])


@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "simpo-onpolicy"])
def test_evaluation_beside_the_published_rows_is_the_preset_lab(name):
    evaluation, lab = load_recipe(name).evaluation, preset("lab")
    assert evaluation.posing == lab.posing
    assert evaluation.tasks == lab.tasks
    assert list(evaluation.columns()) == list(lab.columns.values())

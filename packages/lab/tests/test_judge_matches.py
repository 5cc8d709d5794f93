"""Which answers are judged against which, when a match is another one, and what cannot be judged."""

import pytest

from packages.lab.tests.finished_runs import entry_of, plans_of, read_once
from packages.lab.tests.judged_runs import TASK, answer, answered_runs, by_name, judge
from posttrain.core.errors import RequestError
from posttrain.lab.collect import collect_table, entries_of
from posttrain.lab.evaluations import evaluation_settings
from posttrain.lab.graph import plan_training
from posttrain.lab.judge_matches import answers_of, judged_items, matches_done, refuse_unjudgeable, scale_of
from posttrain.lab.judge_rows import row_matches
from posttrain.lab.recipe import load_recipe

HALF = {"rm": [0.5] * 4, "verifier": [0.5] * 4}


@pytest.fixture(autouse=True)
def _files_are_read_once(monkeypatch):
    read_once(monkeypatch)


def runs(plans):
    return [run for entry in entries_of(plans) for run in entry.runs]


class TestMatches:
    def test_are_every_row_of_every_seed_against_the_sft_policy_of_that_seed(self, tmp_path):
        plans = answered_runs(tmp_path, ["dpo", "best_of_n"], (0, 1))
        names = [match.name for match in row_matches(entries_of(plans))]
        rows = ("base", "dpo", "best_of_n")
        assert names == [f"{row}, seed {seed}" for row in rows for seed in (0, 1)]
        assert matches_done(runs(plans)) == (0, 6)

    def test_base_has_one_a_seed_in_the_directory_that_all_share(self, tmp_path):
        first, second = answered_runs(tmp_path, ["dpo"], (0, 1))
        places = judged_items(first.rows[0], first), judged_items(second.rows[0], second)
        assert places[0] != places[1]
        assert places[0].parent == places[1].parent

    def test_row_without_answers_has_none(self, tmp_path):
        plans = answered_runs(tmp_path, ["best_of_n"], (0,), "best_of_n.reward=verifier")
        assert [match.row.name for match in row_matches(entries_of(plans))] == ["base"]
        assert answers_of(plans[0].rows[-1], plans[0]) == {}
        assert matches_done(runs(plans)) == (0, 1)

    def test_row_that_is_not_evaluated_yet_will_have_one(self, tmp_path):
        plans = answered_runs(tmp_path, ["dpo"])
        (plans[0].rows[-1].run.eval / "evaluation.json").unlink()
        assert [match.row.name for match in row_matches(entries_of(plans))] == ["base"]
        assert matches_done(runs(plans)) == (0, 2)

    def test_row_of_other_runs_has_its_own(self, tmp_path):
        plans, others = answered_runs(tmp_path, ["dpo"]), answered_runs(tmp_path, ["simpo"])
        entries = [*entries_of(plans), entry_of(others, "their simpo")]
        assert [match.row.name for match in row_matches(entries)] == ["base", "dpo", "their simpo"]

    def test_items_that_only_one_of_the_two_answered_are_not_in_it(self, tmp_path):
        (plan,) = answered_runs(tmp_path, ["dpo"])
        path = plan.rows[-1].run.eval / f"{TASK}.jsonl"
        path.write_text(path.read_text().replace(f"{TASK}/0", f"{TASK}/9"))
        assert f"{TASK}/9" in answers_of(plan.rows[-1], plan)
        assert judged_items(plan.rows[-1], plan) is not None
        path.write_text(path.read_text().replace(TASK, "other"))
        assert judged_items(plan.rows[-1], plan) is None

    def test_answer_that_was_as_long_as_it_may_be_was_cut(self, tmp_path):
        (plan,) = answered_runs(tmp_path, ["dpo"])
        answer(plan.rows[-1], by_name("dpo", 0), cut=[2])
        assert [each.cut for each in answers_of(plan.rows[-1], plan).values()] == [False, False, True, False]


class TestAnotherMatch:
    """What was judged holds for these answers and these judges alone."""

    def place(self, plan):
        return judged_items(plan.rows[-1], plan)

    @pytest.mark.parametrize("who", [1, 2], ids=["sft", "dpo"])
    def test_is_one_of_other_answers(self, tmp_path, who):
        (plan,) = answered_runs(tmp_path, ["dpo"])
        before = self.place(plan)
        answer(plan.rows[who], ["something", "else", "was", "said"])
        assert self.place(plan) != before

    def test_is_one_whose_answer_was_cut(self, tmp_path):
        (plan,) = answered_runs(tmp_path, ["dpo"])
        before = self.place(plan)
        answer(plan.rows[-1], by_name("dpo", 0), cut=[0])
        assert self.place(plan) != before

    def test_is_one_of_other_judges(self, tmp_path):
        (plan,) = answered_runs(tmp_path, ["dpo"])
        (other,) = plans_of(tmp_path, ["dpo"], (0,), "judge.judges=[rm]")
        (trained_longer,) = plans_of(tmp_path, ["dpo"], (0,), "rm.epochs=3")
        assert len({self.place(each) for each in (plan, other, trained_longer)}) == 3

    def test_is_not_one_of_another_title_in_the_table(self, tmp_path):
        (plan,) = answered_runs(tmp_path, ["dpo"])
        (other,) = plans_of(
            tmp_path, ["dpo"], (0,), "evaluation.table={nano_choice/acc: c}", "evaluation.headline=null"
        )
        assert self.place(plan) == self.place(other)


class TestTable:
    def test_has_the_preferences_of_every_seed_pooled(self, tmp_path):
        plans = answered_runs(tmp_path, ["dpo"], (0, 1))
        for plan, likes in zip(plans, ([1.0, 1.0, 1.0, 0.5], [0.0, 1.0, 1.0, 0.5]), strict=True):
            judge(plan.rows[-1], plan, rm=likes, verifier=[1.0, 0.5, 0.5, 0.5])
            judge(plan.rows[0], plan, **HALF)
        table = collect_table(plans, check=False)
        assert (table.judges.names, table.judges.gold, table.judges.task) == (("rm", "verifier"), "verifier", TASK)
        dpo = table.win_rates["dpo"]
        assert (dpo["rm"].rate.value, dpo["rm"].by_seed) == (0.75, {0: 0.875, 1: 0.625})
        assert dpo["rm"].margin.clusters == 4
        assert dpo["verifier"].rate.value == 0.625
        assert list(table.win_rates) == ["base", "dpo"]
        assert matches_done(runs(plans)) == (4, 4)

    def test_does_not_show_what_is_judged_on_some_seeds_only(self, tmp_path):
        plans = answered_runs(tmp_path, ["dpo"], (0, 1))
        for plan in plans:
            judge(plan.rows[0], plan, **HALF)
        judge(plans[0].rows[-1], plans[0], **HALF)
        assert list(collect_table(plans, check=False).win_rates) == ["base"]

    def test_of_runs_that_nobody_judged_has_none(self, tmp_path):
        table = collect_table(answered_runs(tmp_path, ["dpo"]), check=False)
        assert (table.judges, dict(table.win_rates)) == (None, {})

    def test_of_a_recipe_that_names_no_judge_has_none(self, tmp_path):
        plans = answered_runs(tmp_path, ["dpo"], (0,), "judge=null")
        assert collect_table(plans, check=False).judges is None
        assert row_matches(entries_of(plans)) == []
        assert matches_done(runs(plans)) == (0, 0)


def test_what_is_judged_changes_no_stage_and_no_evaluation(tmp_path):
    for override in ("judge=null", "judge={task: nano_problems, judges: [gsm8k]}"):
        recipes = load_recipe("nano"), load_recipe("nano", [override])
        plans = [plan_training(recipe, "ppo", 0, tmp_path, None, True) for recipe in recipes]
        assert [stage.identity for stage in plans[0].stages] == [stage.identity for stage in plans[1].stages]
        assert evaluation_settings(recipes[0].evaluation) == evaluation_settings(recipes[1].evaluation)


class TestRefused:
    @pytest.mark.parametrize(
        ("overrides", "told"),
        [
            (("judge=null",), r"recipe nano does not say what is judged; add to it `judge: \{task: TASK, judges: "),
            (("judge.task=nano_instruction",), r"nano_instruction is none of .* \(did you mean 'nano_instruct"),
            (("judge.task=nano_choice",), "nano_choice is none of the tasks that are evaluated and generate answers"),
            (("evaluation.tasks=[nano_choice]", "evaluation.table={nano_choice/acc: c}", "evaluation.headline=null"),
             "nano_instructions is none of the tasks that are evaluated"),
            (("reward=verifier", "data.preference_prompts=null"),
             "judge.judges names rm, and there is no reward model here; leave it out"),
        ],
    )  # fmt: skip
    def test_before_anything_is_done(self, tmp_path, overrides, told):
        with pytest.raises(RequestError, match=told):
            refuse_unjudgeable(plans_of(tmp_path, ["grpo"], (0,), *overrides))

    def test_verifier_of_a_task_whose_references_are_not_known(self, tmp_path):
        (tmp_path / "tasks").mkdir()
        (tmp_path / "tasks" / "mine.yaml").write_text("task: mine\noutput_type: generate_until\n")
        evaluation = f"{{tasks: [mine], table: {{mine/acc: mine}}, include_path: {tmp_path / 'tasks'}}}"
        mine = (f"evaluation={evaluation}", "judge.task=mine")
        recipe = load_recipe("nano", mine)
        with pytest.raises(RequestError, match="judge.judges names verifier, .* answers to mine is not known"):
            refuse_unjudgeable([plan_training(recipe, "dpo", 0, tmp_path, None, True)])
        alone = load_recipe("nano", [*mine, "judge.judges=[rm]"])
        refuse_unjudgeable([plan_training(alone, "dpo", 0, tmp_path, None, True)])

    def test_source_that_there_is_not_when_it_is_planned(self, tmp_path):
        with pytest.raises(RequestError, match=r"unknown reward source 'verifyer' \(did you mean 'verifier'\?\)"):
            plans_of(tmp_path, ["dpo"], (0,), "judge.judges=[verifyer]")

    @pytest.mark.parametrize(
        ("override", "told"),
        [
            ("judge.judges=[rm, rm]", "judges names a source twice: rm, rm"),
            ("judge.judges=[]", "judge.judges"),
            ("judge.jugdes=[rm]", r"unknown key 'judge.jugdes' \(did you mean 'judges'\?\)"),
        ],
    )
    def test_block_that_is_none(self, override, told):
        with pytest.raises(RequestError, match=told):
            load_recipe("nano", [override])

    @pytest.mark.parametrize("name", ["nano", "gsm8k"])
    def test_shipped_recipe_is_not(self, tmp_path, name):
        recipe = load_recipe(name, ["model=nano", "revision=null"])
        # Nothing is read of GSM8K here: only what its block says.
        recipe = recipe.model_copy(update={"data": load_recipe("nano").data})
        refuse_unjudgeable([plan_training(recipe, "dpo", 0, tmp_path, None, True)])


def test_differences_of_a_models_scores_are_log_odds_and_those_of_a_verifiers_only_have_a_sign():
    recipe = load_recipe("nano", ["sources={liked: /a/checkpoint, mine: nano}"])
    scales = {judge: scale_of(recipe, judge) for judge in ("rm", "liked", "mine", "verifier")}
    assert scales == {"rm": "model", "liked": "model", "mine": "verifier", "verifier": "verifier"}

"""Fairness: each condition that rows share is broken on purpose, and refused; or let through by name, and marked."""

import json
import shutil
from collections.abc import Callable

import pytest

from packages.lab.tests.finished_runs import SMALL, change_json, entry_of, finish, finished, plans_of, read_once
from posttrain.core.errors import RequestError
from posttrain.lab import graph
from posttrain.lab.collect import collect_table
from posttrain.lab.conditions import (
    FIELDS,
    REMEDY,
    check_conditions,
    check_names,
    moving_data,
    recipe_conditions,
    recorded_conditions,
    stage_conditions,
)
from posttrain.lab.plan import Plan, Row
from posttrain.lab.recipe import load_recipe


@pytest.fixture(autouse=True)
def _files_are_read_once(monkeypatch):
    read_once(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> list[Plan]:
    """Two arms on two seeds, finished, with an untouched copy beside them."""
    root = tmp_path_factory.mktemp("conditions")
    with pytest.MonkeyPatch.context() as monkeypatch:
        read_once(monkeypatch)
        plans = finished(root / "runs", ["dpo", "ppo"], (0, 1))
    shutil.copytree(root / "runs", root / "untouched")
    return plans


@pytest.fixture
def plans(made) -> list[Plan]:
    root = made[0].last.run.root
    shutil.rmtree(root)
    shutil.copytree(root.parent / "untouched", root)
    return made


def dpo(plans: list[Plan], seed: int = 0) -> Row:
    return next(plan.rows[-1] for plan in plans if (plan.method, plan.seed) == ("dpo", seed))


def recorded(field: str, value: object) -> Callable[[Row], None]:
    """Breaks what the provenance of a run says."""
    return lambda row: change_json(row.run.provenance_path, lambda record: record["conditions"].update({field: value}))


def evaluated(name: str, value: object) -> Callable[[Row], None]:
    """Breaks what the record of an evaluation says."""
    path = "evaluation.json"
    return lambda row: change_json(row.run.eval / path, lambda record: record["settings"].update({name: value}))


def adapter(**changes: object) -> Callable[[Row], None]:
    """Makes the checkpoint a PEFT adapter."""
    modules = ["v_proj", "q_proj"]
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": modules, **changes}
    return lambda row: (row.checkpoint / "adapter_config.json").write_text(json.dumps(config)) and None


def template(row: Row) -> None:
    """Saves the checkpoint with another chat template."""
    path = row.checkpoint / "chat_template.jinja"
    path.write_text(path.read_text() + "{# another #}")


NANO_ROWS = {"path": "nano", "split": "train", "rows": 7, "skip": 0, "generator": "x"}

BROKEN = [
    ("base.revision", recorded("base.revision", "abc123"), "abc123", "null", "train it from the same base"),
    ("base.digest", recorded("base.digest", "0ther"), "0ther", "[0-9a-f]{64}", "train it from the same base"),
    ("adapter", adapter(), r'\{.*"r": 8.*\}', "null", "train it with the same adapter settings"),
    ("template", template, "[0-9a-f]{12}", "[0-9a-f]{12}", "save the checkpoint with the base's chat template"),
    ("evaluation.limit", evaluated("limit", 10), "10", "4", "evaluate it with the recipe's tasks, few-shot and limit"),
    ("evaluation.few_shot", evaluated("few_shot", 5), "5", "null", "evaluate it with the recipe's tasks"),
    ("evaluation.max_gen_toks", evaluated("max_gen_toks", 9), "9", "null", "evaluate it with the recipe's tasks"),
    ("evaluation.chat_template", evaluated("posing", {"chat_template": False}), "false", "true", "evaluate it with"),
    ("evaluation.dtype", evaluated("posing", {"dtype": "bfloat16"}), "bfloat16", "null", "evaluate it with"),
    ("evaluation.few_shot_seed", evaluated("posing", {"few_shot_seed": 42}), "42", "1234", "evaluate it with"),
    (
        "evaluation.fewshot_as_multiturn",
        evaluated("posing", {"fewshot_as_multiturn": False}),
        "false",
        "null",
        "evaluate it with",
    ),
    ("evaluation.tasks", evaluated("tasks", {"nano_choice": 0.5}), r'\{"nano_choice": 0.5\}', r"\{.*\}", "evaluate it"),
    *(
        (f"data.{name}", recorded(f"data.{name}", NANO_ROWS), r'\{.*"rows": 7.*\}', ".*", "train it on the same rows")
        for name in ("sft", "pairs", "preference_prompts", "prompts", "validation", "measured")
    ),
]


MADE_OTHERWISE = [
    ("made_from.sft", "dpo", "dpo", "sft.lr=0.001"),
    ("made_from.offline_pairs", "dpo", "simpo", "preferences.label_noise=0.2"),
    ("made_from.on_policy_pairs", "dpo-on-policy", "simpo-on-policy", "on_policy.samples_per_prompt=3"),
    ("made_from.rm", "ppo", "grpo", "rm.lr=0.001"),
]
"""Condition, an arm of the table, an arm of other runs, and what was otherwise there."""


def test_every_condition_is_broken_here_and_has_a_remedy():
    assert {field for field, *_ in BROKEN} | {"seeds"} | {field for field, *_ in MADE_OTHERWISE} == set(FIELDS)
    assert {field.partition(".")[0] for field in FIELDS} == set(REMEDY)


class TestBroken:
    """The row joins from other runs: rows of the comparison itself are identified by most of this already."""

    def refusal(self, plans: list[Plan], damage: Callable[[Row], None], seed: int, allowed: tuple[str, ...] = ()):
        entry = entry_of([plan for plan in plans if plan.method == "dpo"], "theirs")
        damage(dpo(plans, seed))
        own = [plan for plan in plans if plan.method == "ppo"]
        return collect_table(own, [entry], allowed, check=False)

    @pytest.mark.parametrize(("field", "damage", "value", "expected", "remedy"), BROKEN, ids=[b[0] for b in BROKEN])
    def test_is_refused_with_the_field_both_values_and_what_to_do(self, plans, field, damage, value, expected, remedy):
        message = (
            f"theirs cannot stand in this table: {field} is {value}, the table's is {expected}; {remedy}.*, "
            f"or let it through, marked, with --allow {field}$"
        )
        with pytest.raises(RequestError, match=message):
            self.refusal(plans, damage, seed=0)

    @pytest.mark.parametrize("seed", [0, 1])
    def test_in_any_one_of_a_rows_runs_is_refused(self, plans, seed):
        with pytest.raises(RequestError, match="theirs cannot stand in this table: base.digest is 0ther"):
            self.refusal(plans, recorded("base.digest", "0ther"), seed)

    @pytest.mark.parametrize(("field", "damage"), [each[:2] for each in BROKEN], ids=[b[0] for b in BROKEN])
    def test_is_let_through_by_name_and_marks_the_row(self, plans, field, damage):
        (footnote,) = self.refusal(plans, damage, 0, (field,)).footnotes
        assert footnote.startswith(f"theirs: {field} is ")
        assert ", the other rows have " in footnote

    @pytest.mark.parametrize("allowed", ["base", "base.digest"])
    def test_is_let_through_by_the_name_of_its_group(self, plans, allowed):
        (footnote,) = self.refusal(plans, recorded("base.digest", "0ther"), 0, (allowed,)).footnotes
        assert footnote.startswith("theirs: base.digest is 0ther, the other rows have ")

    def test_is_not_let_through_by_the_name_of_another(self, plans):
        with pytest.raises(RequestError, match=r"base\.digest is 0ther"):
            self.refusal(plans, recorded("base.digest", "0ther"), 0, ("base.revision", "evaluation"))

    def test_in_every_run_of_a_row_is_one_footnote(self, plans):
        def both(_: Row) -> None:
            for seed in (0, 1):
                evaluated("few_shot", 5)(dpo(plans, seed))

        assert len(self.refusal(plans, both, 0, ("evaluation",)).footnotes) == 1


class TestMadeFrom:
    """Rows of other runs learn from what rows of their kind in the table learn from, and start from its SFT."""

    def joined(self, root, own: list[str], theirs: str, *otherwise: str, allowed: tuple[str, ...] = ()):
        entry = entry_of(finished(root / "theirs", [theirs], (0,), *otherwise), "theirs")
        return collect_table(finished(root / "own", own), [entry], allowed, check=False)

    @pytest.mark.parametrize(("field", "own", "theirs", "otherwise"), MADE_OTHERWISE)
    def test_something_else_is_refused_with_both_hashes_and_what_to_do(self, tmp_path, field, own, theirs, otherwise):
        message = (
            f"theirs cannot stand in this table: {field} is [0-9a-f]{{12}}, the table's is [0-9a-f]{{12}}; train it "
            f"from the table's SFT policy, on its pairs and its reward model, .* --allow {field}$"
        )
        with pytest.raises(RequestError, match=message):
            self.joined(tmp_path, [own], theirs, otherwise)

    @pytest.mark.parametrize(("field", "own", "theirs", "otherwise"), MADE_OTHERWISE[1:])
    def test_something_else_is_let_through_by_name_and_marks_the_row(self, tmp_path, field, own, theirs, otherwise):
        (footnote,) = self.joined(tmp_path, [own], theirs, otherwise, allowed=(field,)).footnotes
        assert field in footnote

    def test_another_sft_is_also_that_of_the_pairs_that_were_sampled_from_it(self, tmp_path):
        notes = self.joined(tmp_path, ["dpo"], "dpo", "sft.lr=0.001", allowed=("made_from",)).footnotes
        assert [field for field in FIELDS if any(field in note for note in notes)] == [
            "made_from.sft",
            "made_from.offline_pairs",
        ]

    @pytest.mark.parametrize(
        ("own", "theirs", "otherwise"),
        [
            (["dpo"], "dpo-on-policy", ()),  # other pairs than offline ones, and rightly so
            (["dpo-on-policy"], "simpo", ()),
            (["dpo"], "dpo-on-policy", ("on_policy.samples_per_prompt=3",)),  # the table has none of that kind
            (["dpo"], "orpo", ()),  # starts from the base
            (["dpo"], "orpo-sft", ()),
            (["dpo"], "ppo-verifier", ("rm.lr=0.001",)),  # learns from no reward model
            (["dpo"], "ppo", ("ppo.from=simpo",)),
        ],
    )
    def test_like_is_compared_with_like(self, tmp_path, own, theirs, otherwise):
        assert self.joined(tmp_path, own, theirs, *otherwise).footnotes == ()

    @pytest.mark.parametrize(
        ("otherwise", "field"), [("preferences.label_noise=0.2", "offline_pairs"), ("sft.lr=0.001", "sft")]
    )
    def test_what_its_start_was_made_from_counts(self, tmp_path, otherwise, field):
        with pytest.raises(RequestError, match=f"theirs cannot stand in this table: made_from.{field} is"):
            self.joined(tmp_path, ["dpo"], "ppo-verifier", "variants.ppo-verifier.from=dpo", otherwise)

    def test_variants_of_the_table_itself_are_made_from_what_they_say(self, tmp_path):
        names = ["dpo", "dpo-on-policy", "orpo", "orpo-sft", "ppo", "ppo-verifier"]
        assert collect_table(finished(tmp_path, names), check=False).footnotes == ()

    def test_reward_model_of_a_service_is_known_by_its_digest(self, tmp_path):
        recipe = load_recipe("nano", ["tuned={}", *SMALL])
        digests = {"rm": "0123456789abcdef", "verifier": "1"}
        plan = graph.plan_training(recipe, "ppo", 0, tmp_path, digests, True)
        finish([plan])
        found = recipe_conditions([plan], [0]), recorded_conditions(entry_of([plan], "theirs").first, [0])
        assert [each["made_from.rm"] for each in found] == ["0123456789ab"] * 2


class TestAdapters:
    """With a recipe that trains adapters the table's own would be one; what differs within it is still refused."""

    OURS = {"type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}
    EXPECTED = {"adapter": OURS}

    @pytest.mark.parametrize(
        "changes",
        [
            {"r": 16},
            {"lora_alpha": 32},
            {"lora_dropout": 0.1},
            {"target_modules": ["q_proj"]},
            {"target_modules": "all-linear"},
        ],
    )
    def test_of_another_rank_scale_dropout_or_place_are_refused(self, plans, changes):
        adapter(**changes)(dpo(plans))
        found = recorded_conditions(dpo(plans), (0,))
        with pytest.raises(RequestError, match="dpo cannot stand in this table: adapter is .*same adapter settings"):
            check_conditions(self.EXPECTED, {"dpo": found})

    def test_of_the_same_settings_are_the_same_in_whatever_order_their_places_are_named(self, plans):
        adapter()(dpo(plans))
        assert check_conditions(self.EXPECTED, {"dpo": recorded_conditions(dpo(plans), (0,))}) == []


class TestSeeds:
    def test_that_a_row_of_other_runs_lacks_are_refused(self, plans):
        entry = entry_of([plan for plan in plans if (plan.method, plan.seed) == ("dpo", 1)], "theirs")
        own = [plan for plan in plans if plan.method == "ppo"]
        message = r"theirs cannot stand .*: seeds is \[1\], the table's is \[0, 1\]; train the missing seeds, or let it"
        with pytest.raises(RequestError, match=message):
            collect_table(own, [entry], check=False)

    def test_that_were_let_through_are_paired_on_what_there_is(self, plans):
        entry = entry_of([plan for plan in plans if (plan.method, plan.seed) == ("dpo", 1)], "theirs")
        own = [plan for plan in plans if plan.method == "ppo"]
        table = collect_table(own, [entry], ("seeds",), check=False)
        assert table.footnotes == ("theirs: seeds is [1], the other rows have [0, 1]",)
        difference = next(d for d in table.differences if (d.after, d.before) == ("theirs", "sft"))
        assert list(difference.by_seed) == [1]

    def test_that_an_arm_of_the_comparison_lacks_are_refused(self, plans):
        with pytest.raises(RequestError, match=r"dpo cannot stand in this table: seeds is \[0\], the table's is"):
            collect_table([plan for plan in plans if (plan.method, plan.seed) != ("dpo", 1)], check=False)


class TestOwnRows:
    def test_that_nobody_touched_deviate_in_nothing(self, plans):
        assert collect_table(plans, check=False).footnotes == ()

    def test_checkpoint_with_another_template_is_refused(self, plans):
        template(dpo(plans, 1))
        with pytest.raises(RequestError, match="dpo cannot stand in this table: template is"):
            collect_table(plans, check=False)

    def test_base_evaluated_otherwise_is_refused(self, plans):
        evaluated("limit", 10)(plans[0].rows[0])
        with pytest.raises(RequestError, match=r"base cannot stand in this table: evaluation\.limit is 10, .* 4;"):
            collect_table(plans, check=False)

    def test_deviation_that_has_to_do_with_no_items_leaves_the_check_of_the_items(self, plans):
        template(dpo(plans, 0))
        path = dpo(plans).run.eval / "nano_choice.jsonl"
        path.write_text(path.read_text().replace("nano_choice/3", "nano_choice/9"))
        with pytest.raises(ValueError, match="column 'choice': .* same items"):
            collect_table(plans, (), ("template",), check=False)

    def test_other_items_are_paired_where_another_limit_was_allowed(self, plans):
        evaluated("limit", 3)(plans[0].rows[0])
        path = plans[0].rows[0].run.eval / "nano_problems.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
        table = collect_table(plans, (), ("evaluation.limit",), check=False)
        sft = next(d for d in table.differences if (d.after, d.before) == ("sft", "base"))
        assert sft.columns["problems"].clusters == 3


class TestRecorded:
    def test_stage_keeps_the_rows_that_it_and_those_before_it_were_made_of_and_no_others(self, tmp_path):
        (plan,) = plans_of(tmp_path, ["ppo"])
        kept = {stage.method: set(stage_conditions(plan, stage)) for stage in plan.stages}
        base = {"base.revision", "base.digest"}
        assert kept["sft"] == base | {"data.sft"}
        assert kept["preferences"] == kept["rm"] == base | {"data.sft", "data.preference_prompts"}
        assert kept["ppo"] == kept["rm"] | {"data.prompts", "data.validation"}

    def test_choice_keeps_the_prompts_that_it_was_measured_on(self, tmp_path):
        (plan,) = plans_of(tmp_path, ["best_of_n"])
        base = {"base.revision", "base.digest"}
        assert set(stage_conditions(plan, plan.last)) == base | {"data.sft", "data.preference_prompts", "data.measured"}

    def test_method_on_pairs_that_are_data_keeps_them_and_not_the_prompts_of_others(self, tmp_path):
        path = tmp_path / "pairs.jsonl"
        path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
        (plan,) = plans_of(tmp_path, ["dpo"], (0,), f"data.pairs={{path: {path}}}")
        assert set(stage_conditions(plan, plan.last)) == {"base.revision", "base.digest", "data.sft", "data.pairs"}

    def test_what_was_planned_is_what_is_recorded(self, plans):
        expected = recipe_conditions(plans, (0, 1))
        assert set(expected) == set(FIELDS) - {"made_from.on_policy_pairs"}
        assert check_conditions(expected, {"dpo": recorded_conditions(dpo(plans), (1, 0))}) == []

    def test_row_of_other_runs_that_does_not_say_what_it_was_made_of_is_refused(self, plans):
        entry = entry_of([plan for plan in plans if plan.method == "dpo"], "theirs")
        change_json(dpo(plans).run.provenance_path, lambda record: record.pop("conditions"))
        with pytest.raises(RequestError, match=r"theirs \(.*\) does not say of which base and data .*; train it again"):
            recorded_conditions(entry.first, (0, 1))

    def test_field_that_a_row_has_nothing_of_is_not_compared(self):
        assert check_conditions({"data.sft": {"rows": 5}, "adapter": None}, {"base": {"adapter": None}}) == []


class TestNames:
    @pytest.mark.parametrize("name", [*FIELDS, "base", "evaluation", "data"])
    def test_of_conditions_and_their_groups_are_known(self, name):
        check_names([name])

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [("evaluation.limits", "evaluation.limit"), ("templat", "template"), ("evaluatio", "evaluation")],
    )
    def test_unknown_one_gets_the_nearest(self, name, nearest):
        with pytest.raises(
            RequestError, match=rf"--allow {name}: there is no such condition \(did you mean '{nearest}'\?"
        ):
            check_names([name])

    def test_unknown_one_is_refused_even_where_nothing_deviates(self):
        with pytest.raises(RequestError, match="--allow colour"):
            check_conditions({}, {}, ["colour"])


def test_long_values_are_cut_where_people_read_them():
    with pytest.raises(RequestError) as refused:
        check_conditions({"data.sft": {"rows": list(range(100))}}, {"dpo": {"data.sft": "x"}})
    assert "…; train it on the same rows" in str(refused.value)


def test_data_of_the_hub_without_a_commit_are_told_with_the_one_they_are_taken_at():
    one, other = "1" * 40, "2" * 40
    sets = ["data.sft={path: a/b}", f"data.prompts={{path: c/d, revision: '{other}'}}"]
    recipe = load_recipe("nano", [*sets, "data.validation={path: e/f, revision: main}"])
    at = {"sft": {"revision": one}, "prompts": {"revision": other}, "validation": {"revision": one}, "pairs": None}
    conditions = {f"data.{name}": described for name, described in at.items()}
    conditions |= {"base.revision": one, "data.measured": {"path": "nano"}, "data.preference_prompts": {"digest": one}}
    sft, validation = moving_data(recipe, conditions)
    assert sft.startswith(f"data.sft: a/b has no fixed commit and is taken at {one}; set data.sft.revision to that")
    assert validation.startswith(f"data.validation: e/f has no fixed commit and is taken at {one}; set data.validation")

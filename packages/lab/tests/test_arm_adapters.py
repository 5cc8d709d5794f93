"""How a recipe says which weights train and how models are held: once for all methods, or in a method's section; what
of it makes another experiment; and that rows of one table have it in common."""

import json
from pathlib import Path

import pytest

from packages.lab.tests.finished_runs import SMALL, finish, read_once
from posttrain.core.errors import RequestError
from posttrain.lab import graph
from posttrain.lab.arms import Arm
from posttrain.lab.comparison import plan_comparison, refuse_unlike
from posttrain.lab.conditions import check_conditions, planned_adapter, recipe_conditions, recorded_conditions
from posttrain.lab.models import resolve_model
from posttrain.lab.plan import Plan
from posttrain.lab.recipe import load_recipe
from posttrain.trainers.model_settings import Adapter

NANO_BASE = resolve_model("nano")


@pytest.fixture(autouse=True)
def _base_is_read_once(monkeypatch):
    monkeypatch.setattr(graph, "resolve_model", lambda model, revision: NANO_BASE)
    read_once(monkeypatch)


def arm(name: str, *overrides: str) -> Arm:
    return load_recipe("nano", ("tuned={}", *overrides)).arm(name)


def plan(root: Path, name: str, *overrides: str) -> Plan:
    return graph.plan_training(load_recipe("nano", ("tuned={}", *SMALL, *overrides)), name, 0, root)


def hashes(root: Path, *overrides: str) -> dict[str, str]:
    return {stage.method: stage.identity.config_hash for stage in plan(root, "ppo", *overrides).stages}


class TestSaidForAllMethods:
    @pytest.mark.parametrize("name", ["sft", "rm", "dpo", "simpo", "orpo", "kto", "ppo", "grpo", "rloo"])
    def test_every_method_that_trains_has_it(self, name):
        assert arm(name, "adapter=lora").settings.adapter == Adapter()

    @pytest.mark.parametrize("name", ["preferences", "best_of_n"])
    def test_what_trains_nothing_has_none(self, name):
        assert not hasattr(arm(name, "adapter=lora").settings, "adapter")

    def test_a_section_of_settings_is_said_likewise(self):
        assert arm("dpo", "adapter.r=8", "adapter.target_modules=[q_proj]").settings.adapter == Adapter(
            r=8, target_modules=("q_proj",)
        )

    def test_a_methods_own_section_goes_before_it_and_counts_whole(self):
        said = ("adapter={r: 8, alpha: 8}", "sft.adapter=qlora", "dpo.adapter=full")
        assert arm("sft", *said).settings.adapter == Adapter(kind="qlora")
        assert arm("dpo", *said).settings.adapter is None
        assert arm("kto", *said).settings.adapter == Adapter(r=8, alpha=8)

    def test_so_does_a_variants(self):
        said = ("adapter=lora", "variants.whole={method: dpo, adapter: full}")
        assert arm("whole", *said).settings.adapter is None

    def test_the_rest_of_how_models_are_held_is_said_alike(self):
        held = ("precision=bf16", "attention=eager", "gradient_checkpointing=true", "liger=true")
        for name in ("sft", "ppo"):
            settings = arm(name, *held).settings
            assert (settings.precision, settings.attention) == ("bf16", "eager")
            assert settings.gradient_checkpointing
            assert settings.liger

    def test_the_reward_model_reads_with_its_one_attention(self):
        assert arm("rm", "attention=eager").settings.attention == "sdpa"
        with pytest.raises(RequestError, match="rm: 'attention'"):
            arm("rm", "rm.attention=eager")

    def test_another_word_is_refused(self):
        with pytest.raises(RequestError, match="'adapter' must be full, lora or qlora, or a section with kind"):
            load_recipe("nano", ("adapter=lorra",))


class TestOptimizer:
    def test_of_an_adapter_is_adamw_where_a_methods_default_is_muon(self):
        assert arm("sft").settings.optimizer == "muon"
        assert arm("sft", "adapter=lora").settings.optimizer == "adamw"

    def test_muon_said_for_an_adapter_is_refused(self):
        with pytest.raises(RequestError, match="sft: optimizer: muon is for whole weight matrices"):
            arm("sft", "adapter=lora", "sft.optimizer=muon")


class TestConfigHash:
    @pytest.mark.parametrize(
        "change", ["r=8", "alpha=16", "dropout=0.1", "target_modules=[q_proj, v_proj]", "kind=qlora"]
    )
    def test_each_part_of_an_adapter_makes_another_experiment(self, change, tmp_path):
        before = hashes(tmp_path, "adapter=lora", "sft.adapter.kind=lora")
        assert hashes(tmp_path, "adapter=lora", f"sft.adapter.{change}")["sft"] != before["sft"]

    def test_full_fine_tuning_is_what_it_was_before_there_were_adapters(self, tmp_path):
        assert hashes(tmp_path, "adapter=full") == hashes(tmp_path)
        assert "adapter" not in plan(tmp_path, "ppo").stages[0].identity.definition["settings"]

    def test_an_adapter_of_sft_makes_what_follows_another_experiment_too(self, tmp_path):
        whole, adapted = hashes(tmp_path), hashes(tmp_path, "sft.adapter=lora")
        assert all(adapted[method] != whole[method] for method in whole)

    def test_how_memory_is_saved_makes_none(self, tmp_path):
        held = ("attention=eager", "gradient_checkpointing=true", "liger=true")
        assert hashes(tmp_path, *held) == hashes(tmp_path)


class TestTrials:
    CHOSEN = (
        "tuned.dpo={{values: {{lr: 0.001}}, learns_from: offline pairs, start: sft, trials: 4, metric: gold{more}}}"
    )

    @pytest.mark.parametrize(
        ("tried", "adapter", "trials"),
        [("", "full", 4), ("", "lora", 0), (", adapter: lora", "lora", 4), (", adapter: lora", "full", 0)],
    )
    def test_of_other_weights_are_none_of_this(self, tried, adapter, trials):
        chosen = self.CHOSEN.format(more=f"{tried}, record: x.json")
        assert arm("dpo", chosen, f"dpo.adapter={adapter}").trials == trials


class TestRowsOfOneTable:
    """What is planned is what is recorded when the stages have run."""

    def made(self, root: Path, *overrides: str) -> Plan:
        made = plan(root, "dpo", *overrides)
        finish([made])
        for stage in made.stages:
            if (adapter := getattr(stage.settings, "adapter", None)) is not None:
                folder = stage.run.path / "adapter"
                folder.mkdir()
                said = {
                    "r": adapter.r,
                    "lora_alpha": adapter.alpha,
                    "lora_dropout": adapter.dropout,
                    "target_modules": [*adapter.target_modules],
                }
                (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **said}))
        return made

    def test_the_recorded_adapter_is_the_planned_one(self, tmp_path):
        made = self.made(tmp_path, "adapter=lora", "sft.adapter=full")
        dpo = recorded_conditions(made.rows[-1], [0])
        assert dpo["adapter"] == planned_adapter([made])
        assert dpo["adapter"]["kind"] == "lora"
        assert check_conditions(recipe_conditions([made], [0]), {"dpo": dpo}) == []

    @pytest.mark.parametrize(
        ("adapter", "shown"),
        [
            ("full", "null"),
            ("{r: 8}", '"r": 8'),
            ("{dropout: 0.1}", '"lora_dropout": 0.1'),
            ("{kind: qlora}", '"kind": "qlora"'),
        ],
    )
    def test_a_row_with_another_is_refused_or_marked(self, adapter, shown, tmp_path):
        expected = recipe_conditions([plan(tmp_path, "dpo", "adapter=lora")], [0])
        row = self.made(tmp_path, "adapter=lora", "sft.adapter=lora", f"dpo.adapter={adapter}").rows[-1]
        found = {"theirs": {"adapter": recorded_conditions(row, [0])["adapter"]}}
        with pytest.raises(RequestError, match=f"theirs cannot stand in this table: adapter is .*{shown}"):
            check_conditions(expected, found)
        (marked,) = check_conditions(expected, found, ["adapter"])
        assert marked.field == "adapter"

    def test_base_and_sft_are_what_rows_are_made_from(self, tmp_path):
        made = self.made(tmp_path, "adapter=lora", "sft.adapter=qlora")
        for row in made.rows[:2]:
            assert "adapter" not in recorded_conditions(row, [0])

    def test_rows_to_be_trained_with_different_ones_are_refused_before_they_are(self, tmp_path):
        recipe = load_recipe("nano", ("tuned={}", *SMALL, "sft.adapter=qlora", "dpo.adapter=lora"))
        plans = plan_comparison(recipe, "dpo,ppo", "0", tmp_path)
        with pytest.raises(RequestError, match='ppo cannot stand in this table: adapter is null.*"kind": "lora"'):
            refuse_unlike(plans, [], [])
        refuse_unlike(plans, [], ["adapter"])
        refuse_unlike(plan_comparison(recipe, "dpo", "0", tmp_path), [], [])

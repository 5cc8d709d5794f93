"""`posttrain plan`: memory, steps, tokens, hours and price of a recipe's stages, without weights or data."""

import json

import pytest

from posttrain.core.cli import run as command
from posttrain.core.errors import RequestError
from posttrain.lab.forecast import forecast, rows_of
from posttrain.lab.forecast_remedies import remedy
from posttrain.lab.gpus import Gpu, find_gpu
from posttrain.lab.graph import plan_training
from posttrain.lab.memory_model import activation_bytes, scoring_bytes
from posttrain.lab.model_shapes import ModelShape
from posttrain.lab.models import resolve_shape
from posttrain.lab.plan_command import forecast_recipe
from posttrain.lab.recipe import Recipe, load_recipe
from posttrain.lab.stage_walk import NeededStage, needed_stages

QWEN = resolve_shape("Qwen/Qwen2.5-0.5B")
L4 = find_gpu("l4")


@pytest.fixture(autouse=True)
def own_services(monkeypatch):
    monkeypatch.delenv("REWARD_URL", raising=False)


def recipe(*overrides: str) -> Recipe:
    return load_recipe("nano", overrides)


def stage_of(loaded: Recipe, arm: str, name: str | None = None) -> NeededStage:
    return next(stage for stage in needed_stages(loaded, [arm]) if stage.name == (name or arm))


def planned(loaded: Recipe, arm: str, shape: ModelShape = QWEN, gpu: Gpu = L4, rows: int | None = None):
    return forecast(loaded, stage_of(loaded, arm), shape, gpu, rows)


@pytest.mark.parametrize("arm", ["sft", "rm", "preferences", "dpo", "ppo", "best_of_n", "dpo-on-policy", "orpo-sft"])
@pytest.mark.parametrize("change", [[], ["ppo.from=dpo", "reward=verifier"]], ids=["as it is", "in a row"])
def test_stages_are_those_that_training_plans(tmp_path, arm, change):
    loaded = recipe(*change)
    planned_stages = [stage.method for stage in plan_training(loaded, arm, 0, tmp_path).stages]
    assert [stage.method for stage in needed_stages(loaded, [arm])] == planned_stages


def test_arms_share_their_stages_and_a_circle_is_told():
    assert [stage.name for stage in needed_stages(recipe(), ["dpo", "kto"])] == ["sft", "preferences", "dpo", "kto"]
    with pytest.raises(RequestError, match="'from' goes in a circle: ppo → dpo → ppo"):
        needed_stages(recipe("ppo.from=dpo", "dpo.from=ppo"), ["ppo"])


def test_steps_and_tokens_of_an_offline_stage_by_hand():
    """1,000 rows, a tenth held out: 900 examples, 29 batches of 32, twice; 100 tokens each."""
    loaded = recipe("sft.held_out=0.1", "sft.epochs=2", "sft.batch_size=32", "expected.tokens.sft=100")
    work = planned(loaded, "sft", rows=1000).work
    assert (work.steps, work.trained, work.generated) == (58, 58 * 32 * 100, 0)


def test_steps_and_tokens_of_an_online_stage_by_hand():
    """Ten steps of 4 · 8 completions of at most 50 tokens after prompts of 30; two minibatches a step."""
    sizes = ("steps=10", "prompts_per_step=4", "samples_per_prompt=8", "max_new_tokens=50", "minibatches=2", "epochs=1")
    loaded = recipe(*(f"grpo.{size}" for size in sizes), "expected.tokens.prompt=30")
    work = planned(loaded, "grpo").work
    assert (work.steps, work.trained, work.generated) == (20, 10 * 32 * 80, 10 * 32 * 50)


def test_steps_and_tokens_of_kto_by_hand():
    """1,000 pairs are 2,000 answers, 63 batches of 32, each of half a pair's 100 tokens."""
    loaded = recipe("kto.epochs=1", "kto.batch_size=32", "expected.tokens.pair=100")
    work = planned(loaded, "kto", rows=1000).work
    assert (work.steps, work.trained) == (63, 63 * 32 * 50)


MICRO = ("micro_batch_tokens=1024", "max_new_tokens=320")


@pytest.mark.parametrize(
    ("arm", "sizes", "tokens", "positions"),
    [
        ("ppo", (*MICRO, "samples_per_prompt=1"), 1024, 819),  # 320 of 400
        ("grpo", (*MICRO, "samples_per_prompt=8"), 1024, 910),  # two completions beside a prompt: 640 of 720
        ("grpo", ("micro_batch_tokens=100", "max_new_tokens=320"), 400, 320),  # one that exceeds the limit alone
    ],
)
def test_prompts_of_an_online_micro_batch_have_no_logits(arm, sizes, tokens, positions):
    loaded = recipe(*(f"{arm}.{size}" for size in sizes), "expected.tokens.prompt=80")
    found = planned(loaded, arm)
    assert found.how is not None
    assert found.memory["activations and logits"] == activation_bytes(QWEN, found.how, tokens, positions)


def test_prompts_of_pairs_are_counted_once_and_have_no_logits():
    """Four pairs of 256 tokens each side, 100 of them prompt: 100 + 2 · 156 a pair; KTO's answers have one each."""
    sizes = ("batch_size=32", "micro_batch_size=4", "max_length=256")
    known = "expected.tokens.pair_prompt=100"
    dpo = planned(recipe(*(f"dpo.{size}" for size in sizes), known), "dpo")
    kto = planned(recipe(*(f"kto.{size}" for size in sizes), known), "kto")
    assert dpo.how is not None
    training = activation_bytes(QWEN, dpo.how, 4 * 412, 4 * 312)
    assert dpo.memory["activations and logits"] == training
    assert kto.memory["activations and logits"] == activation_bytes(QWEN, dpo.how, 4 * 256, 4 * 156)


def test_held_out_rows_may_take_more_than_a_micro_batch():
    """As many at once as a GiB of logits holds, whatever the micro-batch is."""
    found = planned(recipe("dpo.micro_batch_size=1", "dpo.max_length=256", "dpo.gradient_checkpointing=true"), "dpo")
    assert found.how is not None
    assert found.memory["activations and logits"] == scoring_bytes(QWEN, found.how, 2**28 // 151_936)


def test_unknown_number_of_rows_leaves_memory_and_no_time():
    found = planned(recipe(), "sft", rows=None)
    assert found.work.steps is None
    assert found.work.seconds is None
    assert found.total > 0


def test_made_pairs_are_counted_from_their_prompts():
    """Best and worst of each prompt are one pair; a tenth of the prompts is held out."""
    loaded = recipe("data.preference_prompts.rows=1000", "on_policy.held_out=0.1", "on_policy.select=extremes")
    stages = {stage.name: stage for stage in needed_stages(loaded, ["dpo-on-policy"])}
    assert rows_of(loaded, stages["dpo-on-policy"], stages) == 900


def test_ppo_has_a_critic_a_reference_and_two_services_and_an_adapter_shares_the_frozen_weights():
    full = planned(recipe(), "ppo").memory
    assert full["reference model"] == full["policy service: weights"] == 4 * QWEN.parameters
    assert full["critic"] == 16 * QWEN.parameters, "weights, gradients and two moments; embeddings are tied"
    lora = planned(recipe("ppo.adapter=lora"), "ppo").memory
    assert lora["reference model"] == 0
    assert lora["critic"] == 16 * QWEN.lora_parameters(16, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
                                                            "up_proj", "down_proj"))  # fmt: skip


def test_the_policy_service_of_a_bf16_recipe_takes_half_and_the_reward_service_what_it_did():
    fp32, bf16 = (planned(recipe(f"precision={each}"), "ppo").memory for each in ("fp32", "bf16"))
    for part in ("policy service: weights", "policy service: KV cache"):
        assert 2 * bf16[part] == fp32[part]
    assert bf16["policy service: weights"] == 2 * QWEN.parameters
    assert bf16["reward service: weights"] == fp32["reward service: weights"]


def test_verifier_needs_no_reward_model_beside_it():
    parts = planned(recipe("reward=verifier"), "ppo").memory
    assert "reward service: weights" not in parts
    assert "policy service: weights" in parts


def test_vllm_takes_its_share_of_the_card():
    parts = planned(recipe("engine=vllm", "vllm.memory_share=0.3"), "grpo").memory
    assert parts["policy service (vllm.memory_share)"] == round(0.3 * L4.memory)


@pytest.mark.parametrize("arm", ["sft", "dpo", "rm", "ppo", "grpo"])
def test_remedy_makes_a_stage_fit_that_did_not(arm):
    section = "micro_batch_tokens=32768" if arm in ("ppo", "grpo") else "max_length=1024"
    loaded = recipe(f"{arm}.{section}")
    found = planned(loaded, arm)
    assert found.total > L4.memory
    changes = remedy(loaded, found, QWEN, L4)
    assert changes
    assert planned(recipe(f"{arm}.{section}", *changes), arm).total <= L4.memory


def test_card_that_nothing_fits_has_no_remedy():
    loaded, card = recipe(), Gpu("tiny", 0.5, 1, 1, 1)
    assert remedy(loaded, planned(loaded, "sft", gpu=card), QWEN, card) is None


def test_plan_command_prints_one_object_with_price_and_what_it_is(capsys):
    asked = ["plan", "gsm8k", "dpo", "--gpu", "a100-80", "--price", "2", "--json", "--set", "data.pairs.rows=100"]
    assert command([*asked, "--set", "data.sft.rows=100"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in found["stages"]] == ["sft", "dpo"]
    assert found["price"] == pytest.approx(2 * found["hours"])
    assert found["hours"] > 0
    assert found["fits"]
    assert found["hours_complete"]
    assert found["about"].startswith("An estimate.")
    assert sum(found["stages"][0]["memory_bytes"].values()) == found["stages"][0]["total_bytes"]


def test_page_for_people_says_what_does_not_fit_and_what_would(capsys):
    assert command(["plan", "gsm8k", "dpo", "--gpu", "t4", "--set", "dpo.max_length=3072"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "dpo does not fit: it would with --set dpo." in said
    assert "An estimate." in said


def test_recipe_s_price_counts_for_the_card_that_it_is_of_only():
    loaded = load_recipe("gsm8k", ["data.sft.rows=100"])
    assert forecast_recipe(loaded, ["sft"], "l4")["price"] is not None
    assert forecast_recipe(loaded, ["sft"], "h100")["price"] is None
    other = load_recipe("gsm8k", ["data.sft.rows=100", "price.machine=one L40S"])
    assert forecast_recipe(other, ["sft"], "l40s")["price"] is not None
    assert forecast_recipe(other, ["sft"], "l4")["price"] is None, "another card whose name begins so"


def test_model_whose_config_is_not_here_is_told_and_a_folder_s_is_enough(tmp_path):
    with pytest.raises(RequestError, match=r"config.json of model 'some/model' is not on this machine"):
        resolve_shape("some/model")
    (tmp_path / "config.json").write_text(json.dumps({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 10,
    }))  # fmt: skip
    assert resolve_shape(str(tmp_path)).linear_parameters == 4 * 64 + 3 * 128


def test_unknown_method_is_told(capsys):
    assert command(["plan", "gsm8k", "ppoo"]) == 2
    assert "unknown method 'ppoo'" in capsys.readouterr().err

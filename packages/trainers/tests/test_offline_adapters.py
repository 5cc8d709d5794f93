"""Adapters in the offline methods: base weights stay, adapter weights do not, the checkpoint is the trained model, and
a killed run ends as an undisturbed one."""

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Qwen2ForCausalLM,
    Qwen2PreTrainedModel,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

sys.path.insert(0, str(Path(__file__).parent))
from test_resume_offline import Killed, dying_after, metrics_of

from posttrain.core.errors import RequestError
from posttrain.core.hashing import digest_checkpoint
from posttrain.core.runs import RunDirectory, StageIdentity
from posttrain.data.sources import Source
from posttrain.trainers import sft, start_model, training_report
from posttrain.trainers.adapters import PREFIX, adapter_digest, lora_update
from posttrain.trainers.model_settings import ModelSettings
from posttrain.trainers.models import load_policy
from posttrain.trainers.registry import get_method
from posttrain.trainers.resumable_trainer import TRAINED, newest_checkpoint
from posttrain.trainers.stage import StageInputs, run_stage
from posttrain.trainers.start_model import load_options, ready_to_train

pytestmark = pytest.mark.long

METHODS = ("sft", "rm", "dpo", "simpo", "orpo", "kto")
QUICK = {
    "max_length": 96, "batch_size": 8, "epochs": 1, "log_every": 2, "eval_every": 4, "save_every": 3, "held_out": 0.25,
    "lr": 3e-3, "adapter": {"r": 4, "alpha": 8},
}  # fmt: skip
SCALE = 2.0
IDS = torch.randint(0, 264, (2, 30), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def run_method(tmp_path, tiny_checkpoint, conversations, pairs, jsonl):
    """(method, folder, dies after, settings) -> the run directory of a stage."""

    def run(method, name="run", dies_after=None, **changes):
        described = get_method(method)
        data = jsonl("rows.jsonl", conversations if method == "sft" else pairs[:48])
        settings = described.settings(**{**QUICK, **changes})
        identity = StageIdentity(method, described.version, {}, 0)
        inputs = StageInputs(RunDirectory(tmp_path / name), 0, tiny_checkpoint, source=Source(path=data), threads=1)
        with pytest.MonkeyPatch.context() as patch:
            if dies_after is not None:
                patch.setattr(training_report.Reporter, "on_step_begin", dying_after(dies_after))
                with pytest.raises(Killed):
                    run_stage(method, settings, inputs, identity)
            else:
                run_stage(method, settings, inputs, identity)
        return inputs.run

    return run


def weights(folder, name="model.safetensors"):
    return safetensors.torch.load_file(folder / name)


def auto(method):
    return AutoModelForSequenceClassification if method == "rm" else AutoModelForCausalLM


@pytest.mark.parametrize("method", METHODS)
def test_base_weights_stay_adapter_weights_change_and_the_checkpoint_is_both(method, run_method, tiny_checkpoint):
    from peft import PeftModel

    run = run_method(method)
    base, merged, added = (
        weights(tiny_checkpoint),
        weights(run.checkpoint),
        weights(run.path / "adapter", "adapter_model.safetensors"),
    )
    adapted = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in added if ".lora_" in name}
    assert len(adapted) == 14
    for module in adapted:
        low, high = (added[f"{PREFIX}{module}.lora_{half}.weight"] for half in "AB")
        assert high.abs().max() > 0
        taken_off = merged[f"{module}.weight"] - lora_update(low, high, SCALE)
        assert (taken_off - base[f"{module}.weight"]).abs().max() < 1e-5
    others = set(base) - {f"{module}.weight" for module in adapted}
    assert all(torch.equal(merged[name], base[name]) for name in others)
    whole = auto(method).from_pretrained(run.checkpoint).eval()
    kinds = {"num_labels": 1, "pad_token_id": whole.config.pad_token_id} if method == "rm" else {}
    beside = auto(method).from_pretrained(tiny_checkpoint, **kinds)
    beside = PeftModel.from_pretrained(beside, run.path / "adapter").eval()
    with torch.no_grad():
        apart = whole(IDS).logits - beside(IDS).logits
    assert apart.abs().max() < 1e-5


def test_the_reward_models_head_trains_whole_beside_its_adapter(run_method):
    run = run_method("rm")
    added = weights(run.path / "adapter", "adapter_model.safetensors")
    assert torch.equal(added[f"{PREFIX}score.weight"], weights(run.checkpoint)["score.weight"])
    again = run_method("rm", "again", lr=1e-9)
    assert not torch.allclose(weights(again.checkpoint)["score.weight"], added[f"{PREFIX}score.weight"], atol=1e-4)


def test_the_summary_says_which_adapter_on_which_base(run_method, tiny_checkpoint):
    run = run_method("sft")
    said = run.provenance()["summary"]["adapter"]
    assert said["sha256"] == adapter_digest(run.path / "adapter")
    assert said["base_sha256"] == digest_checkpoint(tiny_checkpoint)
    total = sum(tensor.numel() for tensor in weights(tiny_checkpoint).values())
    assert said["share"] == pytest.approx(said["parameters"] / total)
    other = run_method("sft", "other", lr=1e-3)
    assert other.provenance()["summary"]["adapter"]["sha256"] != said["sha256"]
    config = json.loads((run.path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)


def test_full_fine_tuning_writes_no_adapter(run_method):
    run = run_method("sft", adapter="full")
    assert not (run.path / "adapter").exists()
    assert "adapter" not in run.provenance()["summary"]


@pytest.mark.parametrize(("method", "dies_after"), [("sft", 4), ("rm", 4), ("dpo", 4), ("kto", 7)])
def test_a_killed_run_resumes_to_the_same_bits(method, dies_after, run_method):
    """With dropout, whose generators are part of it."""
    more = {"adapter": {"r": 4, "alpha": 8, "dropout": 0.3}}
    whole = run_method(method, "whole", **more)
    broken = run_method(method, "broken", dies_after=dies_after, **more)
    state = newest_checkpoint(broken.state)
    assert (state / TRAINED).exists()
    assert not (state / "model.safetensors").exists()
    resumed = run_method(method, "broken", **more)
    assert digest_checkpoint(resumed.checkpoint) == digest_checkpoint(whole.checkpoint)
    assert adapter_digest(resumed.path / "adapter") == adapter_digest(whole.path / "adapter")
    assert metrics_of(resumed) == metrics_of(whole)


@pytest.mark.parametrize("method", ["sft", "dpo", "rm"])
def test_activations_computed_again_change_nothing(method, run_method, monkeypatch):
    calls, forward = [], Qwen2MLP.forward

    def counted(module, inputs):
        calls.append(torch.is_grad_enabled())
        return forward(module, inputs)

    monkeypatch.setattr(Qwen2MLP, "forward", counted)
    kept = metrics_of(run_method(method, "kept"))
    once = sum(calls)
    calls.clear()
    again = metrics_of(run_method(method, "again", gradient_checkpointing=True))
    assert sum(calls) > 1.5 * once
    assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in kept], abs=1e-5)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_eager_attention_gives_the_same_losses(method, run_method):
    fast, eager = (metrics_of(run_method(method, attention, attention=attention)) for attention in ("sdpa", "eager"))
    assert [row["loss"] for row in eager] == pytest.approx([row["loss"] for row in fast], abs=1e-3)


@pytest.mark.parametrize("method", ["sft", "rm", "dpo"])
def test_in_bf16_the_frozen_weights_are_bf16_and_what_trains_is_not(method, run_method, tiny_checkpoint):
    run = run_method(method, precision="bf16")
    base, merged = weights(tiny_checkpoint), weights(run.checkpoint)
    assert torch.equal(merged["model.norm.weight"], base["model.norm.weight"].bfloat16().float())
    assert torch.equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"].bfloat16().float())
    added = weights(run.path / "adapter", "adapter_model.safetensors")
    assert {tensor.dtype for tensor in added.values()} == {torch.float32}
    assert added[f"{PREFIX}model.layers.0.mlp.up_proj.lora_B.weight"].abs().max() > 0


def test_rotary_frequencies_stay_fp32_in_bf16(tiny_checkpoint):
    model = load_policy(tiny_checkpoint)
    before = model.model.rotary_emb.inv_freq.clone()
    ready_to_train(model, ModelSettings(adapter="lora", precision="bf16"), seed=0)
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16


class TestWhatThisMachineHasNot:
    @pytest.fixture(autouse=True)
    def _without(self, monkeypatch):
        monkeypatch.setattr(start_model, "find_spec", lambda name: None)

    @pytest.mark.parametrize("method", ["sft", "rm", "dpo"])
    def test_bitsandbytes_is_asked_for_before_anything_is_loaded(self, method, run_method, monkeypatch):
        def loaded(*_, **__):
            raise AssertionError("loaded")

        monkeypatch.setattr(Qwen2PreTrainedModel, "from_pretrained", loaded)
        with pytest.raises(RequestError, match=r"adapter: qlora needs bitsandbytes.*\[gpu\].*, or use adapter: lora"):
            run_method(method, adapter="qlora")

    def test_liger_is_asked_for(self):
        with pytest.raises(RequestError, match="liger: true needs liger_kernel, which is not installed"):
            load_options(ModelSettings(liger=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_kernels_for_gpus_are_refused_without_one(monkeypatch):
    monkeypatch.setattr(start_model, "find_spec", lambda name: object())
    with pytest.raises(RequestError, match="liger: true needs a GPU"):
        load_options(ModelSettings(liger=True))
    with pytest.raises(RequestError, match="flash_attention_2 needs a GPU and the package flash-attn"):
        load_options(ModelSettings(attention="flash_attention_2"))


class TestFourBits:
    """With bitsandbytes itself, where it is installed: it computes in 4 bits on CPUs too."""

    @pytest.fixture(autouse=True)
    def _bitsandbytes(self):
        self.bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs posttrain-trainers[gpu]")

    @pytest.mark.parametrize("method", ["sft", "rm", "dpo"])
    def test_the_checkpoint_is_the_dequantised_base_with_the_adapter(self, method, run_method, tiny_checkpoint):
        run = run_method(method, adapter={"kind": "qlora", "r": 4, "alpha": 8})
        options = load_options(ModelSettings(adapter="qlora"))
        base = Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, quantization_config=options["quantization"])
        originals, merged = weights(tiny_checkpoint), weights(run.checkpoint)
        added = weights(run.path / "adapter", "adapter_model.safetensors")
        name = "model.layers.1.mlp.down_proj"
        weight = base.get_submodule(name).weight
        dequantised = self.bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float()
        update = lora_update(*(added[f"{PREFIX}{name}.lora_{half}.weight"] for half in "AB"), SCALE)
        assert update.abs().max() > 0
        assert (merged[f"{name}.weight"] - update - dequantised).abs().max() < 1e-5
        assert (merged[f"{name}.weight"] - update - originals[f"{name}.weight"]).abs().max() > 1e-3
        assert "quantization_config" not in json.loads((run.checkpoint / "config.json").read_text())
        assert {tensor.dtype for tensor in added.values()} == {torch.float32}

    def test_the_checkpoint_loses_what_the_trained_model_lost(self, run_method, monkeypatch):
        """Held-out loss, measured on the model in training and again on what was saved."""
        measure, asked = sft.held_out_loss, []

        def noted(model, *more):
            asked.append(more)
            return measure(model, *more)

        monkeypatch.setattr(sft, "held_out_loss", noted)
        run = run_method("sft", adapter={"kind": "qlora", "r": 4, "alpha": 8})
        again = measure(load_policy(run.checkpoint), *asked[-1])["held_out_loss"]
        assert run.provenance()["summary"]["held_out_loss"] == pytest.approx(again, abs=1e-5)

    def test_a_killed_run_resumes_to_the_same_bits(self, run_method):
        more = {"adapter": {"kind": "qlora", "r": 4, "alpha": 8}}
        whole = run_method("sft", "whole", **more)
        run_method("sft", "broken", dies_after=4, **more)
        assert digest_checkpoint(run_method("sft", "broken", **more).checkpoint) == digest_checkpoint(whole.checkpoint)

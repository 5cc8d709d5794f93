"""LoRA in the online loop, against the real policy service: what trains, what is pushed, what is saved and resumed."""

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).parent))
from online_fakes import Interrupted, interrupt, rows_without_times, tiny_inputs, tiny_model

from posttrain.core.errors import RequestError
from posttrain.trainers import grpo, ppo, rloo
from posttrain.trainers.forward import completion_logprobs
from posttrain.trainers.models import load_policy, save_checkpoint
from posttrain.trainers.online import OnlineLoop
from posttrain.trainers.padded_rows import PaddedRows

pytest.importorskip("posttrain.rollout", reason="needs the policy service (posttrain-rollout)")
from policy_in_process import ServedPolicy, served

pytestmark = pytest.mark.long

ADAPTER = {"r": 4, "alpha": 8}
METHODS = {"ppo": (ppo.Settings, ppo.PPO), "grpo": (grpo.Settings, grpo.GRPO), "rloo": (rloo.Settings, rloo.RLOO)}


def settings_of(method="ppo", **changes):
    values = {"steps": 2, "minibatches": 2, "max_new_tokens": 8, "micro_batch_tokens": 200, "lr": 1e-2}
    values |= {"prompts_per_step": 4, "adapter": ADAPTER, "old_logprobs": "sampled"}
    if method != "ppo":
        values |= {"samples_per_prompt": 3}
    return METHODS[method][0](**{**values, **changes})


def run(folder, method="ppo", name="run", policy=None, inputs=None, **changes):
    """A loop that has trained."""
    settings = settings_of(method, **changes)
    loop = OnlineLoop(METHODS[method][1](settings), settings, inputs or tiny_inputs(folder, name, policy))
    loop.summarised = loop.train()
    return loop


@pytest.fixture
def policy(tmp_path):
    with served(tiny_inputs(tmp_path, policy=object()).start) as client:
        yield client


def rows_of(loop):
    return [row for row in rows_without_times(loop.inputs.run) if "reward/mean" in row]


def plain_names(module):
    """Parameters under the names that they had without an adapter; those of the adapter apart."""
    frozen, trained = {}, {}
    for name, parameter in module.named_parameters():
        (trained if parameter.requires_grad else frozen)[name.replace(".base_layer.", ".")] = parameter.detach()
    return frozen, trained


@pytest.mark.parametrize("method", METHODS)
def test_the_adapter_learns_and_the_base_stays_and_the_service_samples_from_both(tmp_path, policy, method):
    loop = run(tmp_path, method, policy=policy)
    start = load_policy(loop.inputs.start)
    base = dict(start.named_parameters())
    frozen, trained = plain_names(loop.learners.policy)
    assert set(frozen) == set(base)
    assert all(torch.equal(frozen[name], base[name]) for name in base)
    assert {name.split(".")[-3] for name in trained} == {"lora_A", "lora_B"}
    assert all(bool(tensor.any()) for name, tensor in trained.items() if "lora_B" in name)  # they began at zero
    # Every push is the adapter and nothing else: one at the start, one a step.
    assert len(policy.pushed) == 3
    assert all(name.startswith("base_model.model.") and ".lora_" in name for push in policy.pushed for name in push)
    # The engine's log-probabilities are the trainer's after the push as before it.
    assert max(row["engine/mismatch_max"] for row in rows_of(loop)) < 1e-4
    assert rows_of(loop)[0]["engine/mismatch_max"] != rows_of(loop)[1]["engine/mismatch_max"]


def test_ppos_critic_learns_through_an_adapter_of_its_own_on_the_policys_weights(tmp_path, policy):
    loop = run(tmp_path, policy=policy)
    critic = loop.learners.extra["values"]
    base = {f"body.{name.removeprefix('model.')}": p for name, p in load_policy(loop.inputs.start).named_parameters()}
    frozen, trained = plain_names(critic)
    assert all(torch.equal(frozen[name], base[name]) for name in base)
    of_policy, adapter_of_policy = plain_names(loop.learners.policy)
    for name in base:
        assert frozen[name].data_ptr() == of_policy[name.replace("body.", "model.")].data_ptr()
    assert {"head.modules_to_save.default.weight", "head.modules_to_save.default.bias"} < set(trained)
    assert all(bool(tensor.any()) for name, tensor in trained.items() if "lora_A" not in name)
    own = "layers.0.self_attn.q_proj.lora_A.default.weight"
    assert not torch.equal(trained[f"body.{own}"], adapter_of_policy[f"model.{own}"])
    assert max(abs(row["values/mean"]) for row in rows_of(loop)[1:]) > 0


def test_the_reference_is_the_policy_with_its_adapter_switched_off(tmp_path, policy):
    loop = run(tmp_path, policy=policy)
    rows = PaddedRows().rows([[5, 6, 7], [8, 9]], [[1, 2], [3]], [0, 1])
    with torch.inference_mode():
        reference, _ = completion_logprobs(loop.learners.reference, rows)
        expected, _ = completion_logprobs(load_policy(loop.inputs.start).eval(), rows)
        trained, _ = completion_logprobs(loop.learners.policy, rows)
    assert torch.allclose(reference, expected, atol=1e-5)
    assert not torch.allclose(trained, expected, atol=1e-3)
    assert rows_of(loop)[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert rows_of(loop)[1]["kl"] != pytest.approx(0, abs=1e-4)


def test_another_reference_is_a_model_of_its_own(tmp_path, policy):
    save_checkpoint(*tiny_model(seed=5), tmp_path / "other")
    loop = run(tmp_path, inputs=tiny_inputs(tmp_path, policy=policy, reference=tmp_path / "other"), steps=1)
    assert rows_of(loop)[0]["kl"] > 0.01
    assert not any(parameter.requires_grad for parameter in loop.learners.reference.parameters())


def test_the_checkpoint_is_the_merged_model_and_the_adapter_stands_beside_it(tmp_path, policy):
    from peft import PeftModel

    loop = run(tmp_path, policy=policy)
    folder = loop.inputs.run.path
    merged = load_policy(folder / "checkpoint").eval()
    with_adapter = PeftModel.from_pretrained(load_policy(loop.inputs.start), str(folder / "adapter")).eval()
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.inference_mode():
        assert torch.allclose(merged(ids).logits, with_adapter(input_ids=ids).logits, atol=1e-5)
        assert torch.allclose(merged(ids).logits, loop.learners.policy(ids).logits, atol=1e-5)
        assert not torch.allclose(merged(ids).logits, load_policy(loop.inputs.start)(ids).logits, atol=1e-3)
    assert loop.summarised["adapter"]["parameters"] == sum(
        parameter.numel() for parameter in plain_names(loop.learners.policy)[1].values()
    )


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_killed_run_ends_with_the_bits_of_a_calm_one_and_its_state_holds_no_frozen_weight(tmp_path, policy, method):
    changes = {"steps": 3, "save_every": 1}
    calm = run(tmp_path, method, "calm", policy, **changes)
    with served(calm.inputs.start) as client:
        interrupt(client, request=3)
        with pytest.raises(Interrupted):
            run(tmp_path, method, "killed", client, **changes)
    (state,) = (tmp_path / "killed" / "state").glob("step-*")
    saved = [name for file in state.glob("*.safetensors") for name in safetensors.torch.load_file(file)]
    assert saved
    assert all(".lora_" in name or name.startswith("head.") for name in saved)
    with served(calm.inputs.start) as client:
        resumed = run(tmp_path, method, "killed", client, **changes)
    for part in ("checkpoint/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (calm.inputs.run.path / part).read_bytes() == (resumed.inputs.run.path / part).read_bytes()
    assert rows_without_times(calm.inputs.run) == rows_without_times(resumed.inputs.run)


def test_a_restarted_service_gets_the_adapter_again(tmp_path, policy):
    calm = run(tmp_path, "grpo", "calm", policy)

    class Shaken(ServedPolicy):
        asked = 0

        def complete(self, *arguments, **options):
            self.asked += 1
            if self.asked == 2:  # the step's adapter is there, and lost before it is used
                self.start()
            return super().complete(*arguments, **options)

    client = Shaken(calm.inputs.start)
    shaken = run(tmp_path, "grpo", "shaken", client)
    client.app.state.policy.close()
    assert shaken.summarised["repeated_pushes"] == 1
    assert rows_without_times(calm.inputs.run) == rows_without_times(shaken.inputs.run)


def test_a_service_that_started_with_another_checkpoint_gets_full_weights(tmp_path, capsys):
    save_checkpoint(*tiny_model(seed=5), tmp_path / "other")
    with served(tmp_path / "other") as client:
        loop = run(tmp_path, "grpo", policy=client)
    assert "full weights instead of the adapter" in capsys.readouterr().err
    assert all(".lora_" not in name for push in client.pushed for name in push)
    assert max(row["engine/mismatch_max"] for row in rows_of(loop)) < 1e-4


def test_so_does_one_that_comes_back_with_another_checkpoint(tmp_path, policy, capsys):
    save_checkpoint(*tiny_model(seed=5), tmp_path / "other")

    class Moved(ServedPolicy):
        asked = 0

        def complete(self, *arguments, **options):
            self.asked += 1
            if self.asked == 2:  # the step's adapter is there, and lost with what it was for
                self.checkpoint = tmp_path / "other"
                self.start()
            return super().complete(*arguments, **options)

    client = Moved(policy.checkpoint)
    loop = run(tmp_path, "grpo", policy=client)
    client.app.state.policy.close()
    assert [any(".lora_" in name for name in push) for push in client.pushed] == [True, True, False, False]
    assert capsys.readouterr().err.count("full weights instead of the adapter") == 1
    assert max(row["engine/mismatch_max"] for row in rows_of(loop)) < 1e-4


def test_in_bf16_the_frozen_weights_are_bf16_and_what_trains_is_not(tmp_path, policy):
    loop = run(tmp_path, policy=policy, precision="bf16", old_logprobs="auto")
    for module in (loop.learners.policy, loop.learners.extra["values"]):
        frozen, trained = plain_names(module)
        of_base = {tensor.dtype for name, tensor in frozen.items() if "original_module" not in name}
        assert of_base == {torch.bfloat16}
        assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
        # Angles of rotary positions in bf16 would be other positions.
        assert {buffer.dtype for name, buffer in module.named_buffers() if "inv_freq" in name} == {torch.float32}
    assert max(row["engine/mismatch_mean"] for row in rows_of(loop)) < 0.05
    assert all(row["old_logprobs/recomputed"] == 1 for row in rows_of(loop))


def test_recomputed_activations_change_nothing_but_rounding(tmp_path, policy):
    plain = run(tmp_path, "ppo", "plain", policy)
    with served(plain.inputs.start) as client:
        again = run(tmp_path, "ppo", "again", client, gradient_checkpointing=True)
    one, other = (
        safetensors.torch.load_file(loop.inputs.run.path / "adapter" / "adapter_model.safetensors")
        for loop in (plain, again)
    )
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


def test_eager_attention_pads_its_rows_and_says_the_same(tmp_path, policy):
    loop = run(tmp_path, "grpo", policy=policy, attention="eager")
    assert isinstance(loop.learners.layout, PaddedRows)
    assert max(row["engine/mismatch_max"] for row in rows_of(loop)) < 1e-4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which it may be had")
@pytest.mark.parametrize("asked", [{"attention": "flash_attention_2"}, {"liger": True}])
def test_what_needs_a_gpu_is_refused_in_a_line_without_one(tmp_path, policy, asked):
    with pytest.raises(RequestError, match=next(iter(asked))) as refused:
        run(tmp_path, "grpo", policy=policy, **asked)
    assert "\n" not in str(refused.value)
    assert policy.pushed == []


def test_an_adapter_of_four_bit_weights_is_refused_before_anything_is_loaded():
    from posttrain.core.config import validate

    with pytest.raises(RequestError, match="qlora") as refused:
        validate(ppo.Settings, {"adapter": "qlora"}, "ppo")
    assert "lora" in str(refused.value)


def test_what_is_pushed_is_what_peft_and_vllm_read(tmp_path, policy):
    """A folder of the pushed file and the configuration in its metadata, as stock_vllm makes it, is PEFT's own form."""
    from peft import PeftModel

    loop = run(tmp_path, "grpo", policy=policy)
    file = tmp_path / "adapter_model.safetensors"
    loop.learners.write_adapter(file)
    with safetensors.safe_open(file, framework="pt") as opened:
        config = opened.metadata()["adapter_config.json"]
    assert json.loads(config)["peft_type"] == "LORA"
    (tmp_path / "adapter_config.json").write_text(config)
    read = PeftModel.from_pretrained(load_policy(loop.inputs.start), str(tmp_path)).eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        assert torch.allclose(read(input_ids=ids).logits, loop.learners.policy(ids).logits, atol=1e-5)

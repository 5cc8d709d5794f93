"""PPO on the loop, with services in this process: what must hold on the first minibatch, at step 0 and at the end."""

import json
import sys
from pathlib import Path

import pytest
import safetensors
import torch

sys.path.insert(0, str(Path(__file__).parent))
from online_fakes import rows_without_times, tiny_inputs, tiny_settings

from posttrain.trainers import ppo
from posttrain.trainers.batch import Batch, Minibatch
from posttrain.trainers.online import OnlineLoop
from posttrain.trainers.phases import Phases


def started(folder, **changes):
    """A loop whose first rollout is sampled, looked back on and credited."""
    settings = tiny_settings(**changes)
    loop = OnlineLoop(ppo.PPO(settings), settings, tiny_inputs(folder))
    groups, _ = loop.sample(Phases())
    batch = loop.look_back(groups)
    return loop, batch, loop.credit(batch)


def two_tokens(**credit):
    """One completion of two tokens, old log-probabilities −1 and −2, values 0."""
    mask = torch.ones(1, 2, dtype=torch.bool)
    logprobs = torch.tensor([[-1.0, -2.0]])
    return Batch(
        prompt_ids=[[1]],
        completion_ids=[[2, 3]],
        mask=mask,
        sampled_logprobs=logprobs,
        rewards=torch.tensor([1.0]),
        groups=torch.tensor([0]),
        finished=torch.tensor([True]),
        logprobs=logprobs,
        ref_logprobs=torch.tensor([[-1.5, -1.0]]),
        outputs={"values": torch.zeros(1, 2)},
        credit=credit,
    )


@pytest.mark.parametrize("old_logprobs", ["sampled", "recomputed"])
def test_ratio_is_one_on_first_minibatch(tmp_path, old_logprobs):
    loop, batch, _ = started(tmp_path, old_logprobs=old_logprobs, samples_per_prompt=2)
    assert torch.equal(batch.logprobs, batch.sampled_logprobs) == (old_logprobs == "sampled")
    rows = batch.select([2, 0])
    minibatch = loop.look_now(rows, tokens=int(rows.mask.sum()), sequences=2)
    ratio = (minibatch.logprobs - rows.logprobs).exp()[rows.mask]
    assert torch.allclose(ratio, torch.ones_like(ratio), atol=1e-4)
    _, parts = loop.method.loss(minibatch)
    assert float(parts["clip_fraction"]) == 0


def test_kl_is_zero_at_step_0_and_not_afterwards(tmp_path):
    inputs = tiny_inputs(tmp_path)
    ppo.train(tiny_settings(), inputs)
    first, *_, last = rows_without_times(inputs.run)
    assert first["kl"] == 0
    assert first["kl/k3"] == 0
    assert last["kl/k3"] > 1e-4


def test_credit_by_hand():
    # β = .1: rewards −.1 · .5 = −.05 and −.1 · (−1) + 1 = 1.1; V = 0, γ = λ = 1: A = (1.05, 1.1), returns alike
    method = ppo.PPO(ppo.Settings(kl_coef=0.1, lam=1.0, whiten_advantages=False))
    credit, metrics = method.credit(two_tokens())
    assert torch.allclose(credit["advantages"], torch.tensor([[1.05, 1.1]]))
    assert torch.allclose(credit["returns"], torch.tensor([[1.05, 1.1]]))
    assert metrics["reward/penalised"] == pytest.approx(1.05)


def test_advantages_are_white_when_asked():
    credit, _ = ppo.PPO(ppo.Settings(kl_coef=0.1, lam=1.0)).credit(two_tokens())
    assert torch.allclose(credit["advantages"], torch.tensor([[-1.0, 1.0]]), atol=1e-3)


def test_loss_by_hand():
    # ρ = (1, 2), A = (1, 1), ε = .2: −(1 + 1.2) / 2 = −1.1;  V = (.1, .4), V_old = 0, R = (0, 1), ε_V = .2:
    # ½ · (.01 + max(.36, .64)) / 2 = .1625;  entropy (1, 3), c₂ = .1: −.2
    rows = two_tokens(advantages=torch.ones(1, 2), returns=torch.tensor([[0.0, 1.0]]))
    now = torch.tensor([[-1.0, -2.0 + 0.6931472]])
    minibatch = Minibatch(rows, now, torch.tensor([[1.0, 3.0]]), {"values": torch.tensor([[0.1, 0.4]])}, 2, 1)
    loss, parts = ppo.PPO(ppo.Settings(entropy_coef=0.1)).loss(minibatch)
    assert float(parts["loss/policy"]) == pytest.approx(-1.1)
    assert float(parts["loss/value"]) == pytest.approx(0.1625)
    assert float(loss) == pytest.approx(-1.1 + 0.1625 - 0.2)
    assert float(parts["clip_fraction"]) == 0.5


@pytest.mark.parametrize("entropy_coef", [0.0, 0.01])
def test_gradients_do_not_depend_on_the_split_into_micro_batches(tmp_path, entropy_coef):
    loop, batch, _ = started(tmp_path, entropy_coef=entropy_coef, kl_coef=0.3, truncation="penalty")
    batch.credit["advantages"] = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0)) * batch.mask
    batch.credit["returns"] = batch.credit["advantages"] + 1
    modules = {"policy": loop.learners.policy, **loop.learners.extra}
    gradients = {}
    for split in (1, 2, 4):
        for rows in torch.arange(4).tensor_split(split):
            part = batch.select(rows.tolist())
            loss, _ = loop.method.loss(loop.look_now(part, tokens=int(batch.mask.sum()), sequences=4))
            loss.backward()
        gradients[split] = [p.grad.clone() for m in modules.values() for p in m.parameters() if p.grad is not None]
        for module in modules.values():
            module.zero_grad()
    assert max(float(g.abs().max()) for g in gradients[1]) > 1e-3
    for split in (2, 4):
        for whole, parts in zip(gradients[1], gradients[split], strict=True):
            assert torch.allclose(whole, parts, atol=1e-6)


def test_micro_batch_tokens_do_not_change_what_is_learnt(tmp_path):
    weights = []
    for name, tokens in (("whole", 10_000), ("split", 1)):
        inputs = tiny_inputs(tmp_path, name)
        ppo.train(tiny_settings(steps=2, micro_batch_tokens=tokens), inputs)
        weights.append(safetensors.torch.load_file(inputs.run.checkpoint / "model.safetensors"))
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-4)


def test_value_head_never_reaches_the_checkpoint(tmp_path):
    inputs = tiny_inputs(tmp_path)
    ppo.train(tiny_settings(steps=1), inputs)
    before = safetensors.torch.load_file(inputs.start / "model.safetensors")
    after = safetensors.torch.load_file(inputs.run.checkpoint / "model.safetensors")
    assert before.keys() == after.keys()
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    names = {file.name for file in inputs.run.checkpoint.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert json.loads((inputs.run.checkpoint / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]


def test_policy_and_critic_both_learn_and_the_reference_does_not(tmp_path):
    loop, batch, _ = started(tmp_path, truncation="penalty", truncation_reward=-1.0)
    before = {
        name: [p.clone() for p in module.parameters()]
        for name, module in {"policy": loop.learners.policy, "values": loop.learners.extra["values"]}.items()
    }
    reference = [p.clone() for p in loop.learners.reference.parameters()]
    loop.update(batch)
    for name, module in {"policy": loop.learners.policy, "values": loop.learners.extra["values"]}.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], module.parameters(), strict=True)), name
    assert all(torch.equal(a, b) for a, b in zip(reference, loop.learners.reference.parameters(), strict=True))


def test_an_update_makes_what_was_rewarded_likelier_and_the_rest_less_likely(tmp_path):
    settings = tiny_settings(kl_coef=0.0, prompts_per_step=8, minibatches=1, epochs=4, lr=1e-3, truncation="penalty")
    loop = OnlineLoop(ppo.PPO(settings), settings, tiny_inputs(tmp_path))
    groups, _ = loop.sample(Phases())
    batch = loop.look_back(groups)
    batch.rewards[:] = torch.tensor([1.0, -1.0]).repeat(4)
    loop.credit(batch)
    loop.update(batch)
    change = loop.look_now(batch, 1, 1).logprobs.detach().sum(dim=1) - batch.logprobs.sum(dim=1)
    assert (change[::2] > 0).all()
    assert (change[1::2] < 0).all()


def test_adaptive_coefficient_follows_the_kl_and_is_logged(tmp_path):
    inputs = tiny_inputs(tmp_path)
    ppo.train(tiny_settings(kl_controller="adaptive", kl_target=100.0), inputs)
    coefficients = [row["kl_coef"] for row in rows_without_times(inputs.run)]
    assert coefficients == pytest.approx([0.1 * 0.98**step for step in range(4)])

"""Micro: what an update does besides HTTP: log-probabilities, advantages, losses, batches. Nano sizes, one thread."""

import pytest
import torch

from benchmarks.workloads import random_prompts
from posttrain.data import nano
from posttrain.trainers.advantages import gae, token_rewards
from posttrain.trainers.clipped import clipped_policy_loss, clipped_value_loss
from posttrain.trainers.forward import Layout, completion_logprobs
from posttrain.trainers.masked import masked_mean, whiten
from posttrain.trainers.models import load_policy
from posttrain.trainers.packed_attention import read_packed
from posttrain.trainers.packed_rows import PackedRows
from posttrain.trainers.padded_rows import PaddedRows
from posttrain.trainers.ranking_loss import bradley_terry_loss
from posttrain.trainers.shared_prompt import prompt_batch

ROWS, TIME = 256, 64
LAYOUTS: dict[str, Layout] = {"padded": PaddedRows(), "packed": PackedRows()}


@pytest.fixture(scope="module")
def rollout():
    """What 256 completions of up to 64 tokens leave: values, log-probabilities and the mask of their tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, TIME + 1, (ROWS, 1), generator=generator)
    mask = torch.arange(TIME) < lengths
    return {name: torch.randn(ROWS, TIME, generator=generator) for name in ("values", "logprobs", "old")} | {
        "mask": mask
    }


@pytest.fixture(scope="module")
def sequences():
    """256 prompts of 40 ids, and completions of 8 to 64."""
    lengths = torch.randint(8, TIME + 1, (ROWS,), generator=torch.Generator().manual_seed(0)).tolist()
    completions = [ids[:n] for ids, n in zip(random_prompts(1024, ROWS, TIME, seed=1), lengths, strict=True)]
    return random_prompts(1024, ROWS, 40), completions


@pytest.mark.benchmark(group="training")
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "with_gradient"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probability_pass(measure, sequences, layout, gradient):
    """64 rows through the nano model: log-probability and entropy of each completion token, and back."""
    model = load_policy(nano.BASE).eval()
    assert layout == "padded" or read_packed(model)
    prompts, completions = (ids[:64] for ids in sequences)

    def passed():
        rows = LAYOUTS[layout].rows(prompts, completions, range(64))
        with torch.set_grad_enabled(gradient):
            logprobs, _ = completion_logprobs(model, rows, with_entropy=True)
        if gradient:
            logprobs.sum().backward()
            model.zero_grad()

    measure(passed, work=sum(map(len, (*prompts, *completions))), unit="tokens", rounds=9)


@pytest.mark.benchmark(group="training")
def test_gae(measure, rollout):
    """Rewards to whitened advantages, 256 × 64."""

    def credit():
        log_ratio = rollout["logprobs"] - rollout["old"]
        rewards = token_rewards(torch.ones(ROWS), log_ratio, rollout["mask"], kl_coef=0.1)
        advantages, _ = gae(rewards, rollout["values"], rollout["mask"], gamma=1.0, lam=0.99)
        return whiten(advantages, rollout["mask"])

    measure(credit, work=ROWS * TIME, unit="tokens", calls=20)


@pytest.mark.benchmark(group="training")
def test_clipped_losses(measure, rollout):
    """Both losses of PPO with their gradients, 256 × 64."""
    advantages, returns = rollout["values"], rollout["old"]
    logprobs, values = (rollout[name].clone().requires_grad_() for name in ("logprobs", "values"))

    def losses():
        policy, _ = clipped_policy_loss(logprobs, rollout["old"], advantages, 0.2, 0.2)
        value, _ = clipped_value_loss(values, rollout["values"], returns, 0.2)
        (masked_mean(policy, rollout["mask"]) + masked_mean(value, rollout["mask"])).backward()

    measure(losses, work=ROWS * TIME, unit="tokens", calls=40)


@pytest.mark.benchmark(group="training")
def test_bradley_terry_loss(measure):
    """The reward model's loss over 65,536 pairs with its gradient."""
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (torch.randn(1 << 16, generator=generator).requires_grad_() for _ in range(2))
    measure(lambda: bradley_terry_loss(chosen, rejected).mean().backward(), work=1 << 16, unit="pairs", calls=20)


@pytest.mark.benchmark(group="batching")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_micro_batches(measure, sequences, layout):
    """256 sequences, split into micro-batches of 2,048 tokens and laid out."""
    prompts, completions = sequences

    def lay_out():
        for part in LAYOUTS[layout].split(prompts, completions, range(ROWS), 2048):
            LAYOUTS[layout].rows([prompts[row] for row in part], [completions[row] for row in part], part)

    measure(lay_out, work=sum(map(len, (*prompts, *completions))), unit="tokens", calls=5)


@pytest.mark.benchmark(group="batching")
def test_shared_prompt_rows(measure, sequences):
    """32 prompts with 8 answers each as rows of a tree of attention."""
    prompts, completions = sequences
    examples = [(prompts[i], completions[8 * i : 8 * i + 8]) for i in range(32)]
    tokens = sum(len(prompt) + sum(map(len, answers)) for prompt, answers in examples)
    measure(lambda: prompt_batch(examples, pad_token_id=0), work=tokens, unit="tokens", calls=6)

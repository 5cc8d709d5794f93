"""What is measured on a GPU: a step of each training method, full and LoRA, rollouts by batch, reward scoring.

Each job is a function to call, and what one call does by definition. Training runs in bf16 autocast over fp32 weights,
as the trainers' `precision: bf16` does, with AdamW; PPO by the trainers' own losses, layouts and critic. Neither TRL
nor a service is needed. Jobs know nothing of clocks or devices' limits.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen2Config

from benchmarks.gpu.shapes import decode_bytes, forward_flops, head_parameters, layer_parameters, random_model
from benchmarks.workloads import random_prompts


@dataclass(frozen=True)
class Job:
    """`call` does `work` units, which need `flops` operations and `moved` bytes of weights and caches at least."""

    name: str
    call: Callable[[], object]
    work: int
    unit: str
    flops: float
    moved: float
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """How much a job does at once. The defaults fit 24 GB."""

    sequences: int = 16
    """Sequences of a training step."""
    prompt: int = 256
    completion: int = 256
    micro_batch: int = 4
    """Sequences on the device at once in training."""
    batches: tuple[int, ...] = (1, 8, 32, 64, 128, 256)
    """Rollout batches."""
    new: int = 128
    """Tokens of a rollout."""
    answers: int = 256
    """Answers that are scored."""

    @property
    def length(self) -> int:
        return self.prompt + self.completion


SMALL = Sizes(sequences=4, prompt=8, completion=8, micro_batch=2, batches=(1, 2), new=4, answers=4)


def with_lora(model: Any) -> Any:
    """Adapters of rank 16 on every matrix of the layers (Hu et al. 2022); all else is frozen."""
    from peft import LoraConfig, get_peft_model

    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=modules))


def _optimizer(*modules: torch.nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-5)


def _training_factor(lora: bool) -> int:
    # Frozen weights need no gradient of their own, only the activations': forward and one backward product of two.
    return 2 if lora else 3


@contextmanager
def sft(config: Qwen2Config, sizes: Sizes, device: str, lora: bool) -> Iterator[Job]:
    """A step of supervised fine-tuning on full rows; the second half of each is the answer."""
    model = random_model(config, device)
    model = with_lora(model) if lora else model
    optimizer = _optimizer(model)
    rows = torch.tensor(random_prompts(config.vocab_size, sizes.sequences, sizes.length), device=device)

    def step() -> None:
        for ids in rows.split(sizes.micro_batch):
            with torch.autocast(device, torch.bfloat16):
                keep = torch.arange(sizes.prompt - 1, sizes.length - 1, device=device)
                logits = model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
            loss = cross_entropy(logits.float().flatten(0, 1), ids[:, sizes.prompt :].flatten(), reduction="sum")
            (loss / (sizes.sequences * sizes.completion)).backward()
        optimizer.step()
        optimizer.zero_grad()

    flops = _training_factor(lora) * forward_flops(
        config, sizes.sequences, sizes.length, sizes.sequences * sizes.completion
    )
    yield _training_job("sft", step, sizes, flops, config, lora)


@contextmanager
def ppo(config: Qwen2Config, sizes: Sizes, device: str, lora: bool) -> Iterator[Job]:
    """PPO's work on a rollout: log-probabilities of policy and reference and values, credit, one epoch of updates."""
    from posttrain.trainers.advantages import gae, token_rewards
    from posttrain.trainers.clipped import clipped_policy_loss, clipped_value_loss
    from posttrain.trainers.critic import Critic
    from posttrain.trainers.forward import Rows, completion_logprobs, completion_outputs
    from posttrain.trainers.kl import k1
    from posttrain.trainers.masked import masked_sum, whiten
    from posttrain.trainers.padded_rows import PaddedRows

    policy: Any = random_model(config, device)
    critic = Critic(policy)
    reference: Any = None if lora else random_model(config, device).requires_grad_(False)
    if lora:
        policy, critic.body = with_lora(policy), with_lora(critic.body)
    optimizer = _optimizer(policy, critic.to(device))
    prompts = random_prompts(config.vocab_size, sizes.sequences, sizes.prompt)
    completions = random_prompts(config.vocab_size, sizes.sequences, sizes.completion, seed=1)
    layout = PaddedRows()
    starts = range(0, sizes.sequences, sizes.micro_batch)
    parts = [slice(start, start + sizes.micro_batch) for start in starts]

    def rows(part: slice) -> Rows:
        return layout.rows(prompts[part], completions[part], list(range(sizes.sequences))[part], device)

    def reference_logprobs(batch: Rows) -> torch.Tensor:
        if reference is not None:
            return completion_logprobs(reference, batch)[0]
        with policy.disable_adapter():
            return completion_logprobs(policy, batch)[0]

    def step() -> None:
        looked = []
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            for part in parts:
                batch = rows(part)
                old, _ = completion_logprobs(policy, batch, with_entropy=True)
                looked.append((old, reference_logprobs(batch), completion_outputs(critic, batch)))
        old, ref, values = (torch.cat(tensors).float() for tensors in zip(*looked, strict=True))
        mask = torch.ones_like(old, dtype=torch.bool)
        rewards = token_rewards(torch.ones(len(old), device=device), k1(old, ref), mask, kl_coef=0.1)
        advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.99)
        advantages = whiten(advantages, mask)
        for part in parts:
            batch = rows(part)
            with torch.autocast(device, torch.bfloat16):
                logprobs, _ = completion_logprobs(policy, batch, with_entropy=True)
                now = completion_outputs(critic, batch)
            policy_loss, _ = clipped_policy_loss(logprobs, old[part], advantages[part], 0.2, 0.2)
            value_loss, _ = clipped_value_loss(now, values[part], returns[part], 0.2)
            (masked_sum(policy_loss + value_loss, batch.mask) / mask.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()

    scored = sizes.sequences * sizes.completion
    with_head = forward_flops(config, sizes.sequences, sizes.length, scored)
    body = forward_flops(config, sizes.sequences, sizes.length, 0)
    # Looking back: policy, reference, critic. Learning: policy and critic.
    flops = 2 * with_head + body + _training_factor(lora) * (with_head + body)
    yield _training_job("ppo", step, sizes, flops, config, lora)


def _training_job(
    method: str, step: Callable[[], None], sizes: Sizes, flops: float, config: Qwen2Config, lora: bool
) -> Job:
    weights = 4 * (layer_parameters(config) + head_parameters(config))
    return Job(
        f"{method} {'LoRA' if lora else 'full'}",
        step,
        sizes.sequences * sizes.length,
        "tokens",
        flops,
        # Forward and backward read the weights once a micro-batch; a lower bound, activations not counted.
        2.0 * weights * (sizes.sequences // sizes.micro_batch),
        {"sequences": sizes.sequences, "length": sizes.length, "micro_batch": sizes.micro_batch, "dtype": "bf16 mixed"},
    )


METHODS: dict[str, Callable[..., Any]] = {"sft": sft, "ppo": ppo}
"""Training methods, each measured full and with LoRA; a further method is one more function here."""


@contextmanager
def rollout(config: Qwen2Config, sizes: Sizes, device: str, batch: int) -> Iterator[Job]:
    """Completions of one batch of prompts by our engine, in bf16 on a GPU as checkpoints are loaded there."""
    from posttrain.rollout.sampling import Sampling
    from posttrain.rollout.torch_engine import TorchEngine

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    engine = TorchEngine(random_model(config, device, dtype), eos_ids=(), max_batch=batch)
    prompts = random_prompts(config.vocab_size, batch, sizes.prompt)
    sampling = Sampling(max_tokens=sizes.new, ignore_eos=True)
    length = sizes.prompt + sizes.new
    yield Job(
        f"rollout, batch {batch}",
        lambda: engine.generate(prompts, sampling),
        batch * sizes.new,
        "tokens",
        forward_flops(config, batch, length, batch * sizes.new),
        decode_bytes(config, batch, sizes.prompt, length, dtype.itemsize),
        {"batch": batch, "prompt": sizes.prompt, "new": sizes.new, "dtype": str(dtype).removeprefix("torch.")},
    )


@contextmanager
def reward(config: Qwen2Config, sizes: Sizes, device: str) -> Iterator[Job]:
    """Answers of one length scored by a reward model of this shape, as the reward service loads and runs it."""
    from transformers import Qwen2ForSequenceClassification

    from posttrain.data import nano
    from posttrain.data.chat import load_tokenizer
    from posttrain.reward_model.scorer import RewardModel

    tokenizer = load_tokenizer(nano.BASE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reward"
        torch.manual_seed(0)
        as_classifier = config.to_diff_dict() | {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
        Qwen2ForSequenceClassification(Qwen2Config(**as_classifier)).save_pretrained(path)
        tokenizer.save_pretrained(path)
        model = RewardModel(str(path), device=device)
    answers = random_prompts(config.vocab_size, sizes.answers, sizes.length)
    yield Job(
        "reward scoring",
        lambda: model.score(answers),
        sizes.answers,
        "answers",
        forward_flops(config, sizes.answers, sizes.length, 0),
        4.0 * layer_parameters(config),
        {"answers": sizes.answers, "length": sizes.length, "dtype": "float32"},
    )

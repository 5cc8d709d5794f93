"""TRL's GRPO and RLOO trainers as an oracle: their loss and gradient on a given rollout, and ours on the same.

Both sides read the same checkpoint and move their weights by the same noise, so that the reference, which stays, has a
KL; get the same completions, log-probabilities of sampling and rewards, and look back on them; and move their weights
once more, so that ratios are not one.
"""

from dataclasses import dataclass

import datasets
import torch
from online_fakes import tiny_inputs

from posttrain.core.clients import Completion
from posttrain.data.chat import load_tokenizer
from posttrain.trainers.forward import completion_logprobs
from posttrain.trainers.models import load_policy
from posttrain.trainers.online import OnlineLoop
from posttrain.trainers.online_method import Group
from posttrain.trainers.padded_rows import PaddedRows
from posttrain.trainers.rollouts import RenderedPrompt

PROMPTS = ["What is 1 + 1?", "Say something long, please.", "Why?"]
SAMPLES = 4
LONGEST = 9


@dataclass
class Rollout:
    """`[prompt][choice]`: ids, log-probabilities of sampling, and rewards."""

    prompt_ids: list
    completion_ids: list
    logprobs: list
    rewards: list


def make_rollout(checkpoint, engine_error=0.0):
    """Random completions of one to nine tokens, and what an engine that is off by random errors says of them."""
    generator = torch.Generator().manual_seed(0)
    tokenizer, policy = load_tokenizer(checkpoint), load_policy(checkpoint).eval()
    move(policy, seed=1)
    prompt_ids = [tokenizer(text)["input_ids"] for text in PROMPTS]
    completion_ids = []
    for _ in PROMPTS:
        lengths = torch.randint(1, LONGEST + 1, (SAMPLES,), generator=generator).tolist()
        completion_ids.append([torch.randint(20, 900, (n,), generator=generator).tolist() for n in lengths])
    logprobs = []
    for prompt, choices in zip(prompt_ids, completion_ids, strict=True):
        rows = PaddedRows().rows([prompt] * SAMPLES, choices, [0] * SAMPLES)
        with torch.no_grad():
            exact, _ = completion_logprobs(policy, rows)
        noisy = exact + engine_error * torch.randn(exact.shape, generator=generator)
        logprobs.append([row[: len(ids)].tolist() for row, ids in zip(noisy, choices, strict=True)])
    rewards = torch.randn(len(PROMPTS), SAMPLES, generator=generator)
    return Rollout(prompt_ids, completion_ids, logprobs, rewards.tolist())


class _Engine:
    """Where TRL expects vLLM."""

    def __init__(self, rollout):
        self.rollout = rollout

    def sync_weights(self):
        pass

    def generate(self, prompts, images, num_generations, profiler):
        seen = dict.fromkeys(map(tuple, prompts), 0)
        ids, logprobs = [], []
        for prompt in prompts:
            place, choice = self.rollout.prompt_ids.index(prompt), seen[tuple(prompt)]
            seen[tuple(prompt)] += 1
            ids.append(self.rollout.completion_ids[place][choice])
            logprobs.append([[x] for x in self.rollout.logprobs[place][choice]])
        return prompts, ids, logprobs, [[[token] for token in row] for row in ids]


def move(model, seed):
    """Adds noise to the parameters; the same to the same, by name."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def of_trl(trainer_class, config_class, checkpoint, rollout, folder, **config):
    """TRL's loss and gradients by parameter."""
    known = {
        tuple(ids): reward
        for choices, rewards in zip(rollout.completion_ids, rollout.rewards, strict=True)
        for ids, reward in zip(choices, rewards, strict=True)
    }

    def reward(completion_ids, **_):
        return [known[tuple(ids)] for ids in completion_ids]

    trainer = trainer_class(
        model=str(checkpoint),
        args=config_class(
            output_dir=str(folder),
            model_init_kwargs={"dtype": "float32"},
            num_generations=SAMPLES,
            per_device_train_batch_size=len(PROMPTS) * SAMPLES,  # one minibatch: all of the rollout
            gradient_accumulation_steps=1,
            max_completion_length=LONGEST,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to="none",
            **config,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": text} for text in PROMPTS]),
        processing_class=load_tokenizer(checkpoint),
        reward_funcs=[reward],
    )
    trainer.vllm_generation, trainer._last_loaded_step, trainer.use_vllm = _Engine(rollout), -1, True
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    move(trainer.model, seed=1)
    inputs = trainer._prepare_inputs([{"prompt": text} for text in PROMPTS for _ in range(SAMPLES)])
    move(trainer.model, seed=2)
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), gradients(trainer.model)


def of_ours(method, settings, rollout, folder, micro_batches=None):
    """Our loop's loss and gradients by parameter; `micro_batches` splits the rows as it says."""
    loop = OnlineLoop(method, settings, tiny_inputs(folder, "ours"))
    groups = [
        Group(
            RenderedPrompt({"id": str(i), "prompt": [], "reference": None, "kind": ""}, prompt),
            [Completion(c, p, "", "stop") for c, p in zip(choices, logprobs, strict=True)],
            torch.tensor(rewards),
            {},
        )
        for i, (prompt, choices, logprobs, rewards) in enumerate(
            zip(rollout.prompt_ids, rollout.completion_ids, rollout.logprobs, rollout.rewards, strict=True)
        )
    ]
    move(loop.learners.plain_policy(), seed=1)
    batch = loop.look_back(groups)
    loop.credit(batch)
    move(loop.learners.plain_policy(), seed=2)
    if micro_batches:
        loop.micro_batches = lambda rows: [
            part.tolist() for part in torch.arange(len(rows)).tensor_split(micro_batches)
        ]
    losses = []
    of_method = loop.method.loss
    loop.method.loss = lambda minibatch: losses.append(of_method(minibatch)) or losses[-1]
    loop.accumulate(batch)
    models = {"": loop.learners.plain_policy(), **{f"{name}.": m for name, m in loop.learners.extra.items()}}
    found = {prefix + name: g for prefix, model in models.items() for name, g in gradients(model).items()}
    return sum(loss.item() for loss, _ in losses), found

"""Pre-trains the nano lab's base checkpoint from generator and seed: `python -m posttrain.trainers.nano_base`.

Takes nothing but settings; gives a Hugging Face folder with weights, tokenizer, model card and the recorded losses of
the first steps. One thread, fp32, a plain loop over packed batches: the same machine gives the same bits, another one
the same losses within a small tolerance. Nothing is resumed: it takes minutes.
"""

import argparse
import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from posttrain.core.config import Settings
from posttrain.core.files import atomic_directory
from posttrain.core.metrics import Progress
from posttrain.core.seeds import derive_seed
from posttrain.data.nano import BASE, GENERATOR_VERSION
from posttrain.data.nano.pretraining import documents
from posttrain.data.nano.tokenizer import EOS, PAD, corpus_texts, save_tokenizer, train_tokenizer
from posttrain.trainers.optimizers import build_optimizer

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

RECORDED = 20
"""How many first losses are recorded beside the weights."""


class Pretraining(Settings):
    """How the base is made. The defaults made the shipped checkpoint."""

    seed: int = 0
    """Of the documents and of the initial weights."""
    steps: int = 1_400
    """Updates, of `rows` x `length` tokens each."""
    rows: int = 8
    """Packed rows in a batch."""
    length: int = 256
    """Tokens in a row; documents follow one another and may cross rows."""
    muon_lr: float = 0.02
    """Peak rate of Muon, on the layers' matrices."""
    lr: float = 5e-3
    """Peak rate of AdamW, on embeddings, norms and biases."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW."""
    warmup: int = 20
    """Updates of linear warm-up; after it the rate falls linearly to zero."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm."""
    context: int = 1_024
    """Maximum length that the checkpoint declares, in tokens; beyond `length` it extrapolates."""


def build_model(settings: Pretraining, tokenizer: Tokenizer) -> "Qwen2ForCausalLM":
    """Qwen2 of 0.92M parameters, initialised from the seed alone."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    eos, pad = (tokenizer.get_vocab()[token] for token in (EOS, PAD))
    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
        dtype="float32",
    )
    torch.manual_seed(derive_seed("nano", "init", settings.seed))
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = [eos, pad]
    model.generation_config.pad_token_id = pad
    return model


def batches(settings: Pretraining, tokenizer: Tokenizer) -> Iterator[torch.Tensor]:
    """Endless batches of ids [rows, length + 1], the last column for targets: documents with padding tokens between."""
    separator = tokenizer.get_vocab()[PAD]
    stream = documents(settings.seed)
    size = settings.rows * settings.length
    buffer: list[int] = []
    while True:
        while len(buffer) <= size:
            for encoding in tokenizer.encode_batch(list(islice(stream, 64)), add_special_tokens=False):
                buffer += [*encoding.ids, separator]
        rows = torch.tensor(buffer[: size + 1])
        yield torch.stack([rows[i : i + settings.length + 1] for i in range(0, size, settings.length)])
        del buffer[:size]


def pretrain(
    settings: Pretraining, tokenizer: Tokenizer, stop_after: int | None = None
) -> tuple["Qwen2ForCausalLM", list[float]]:
    """Train on one thread; returns the model and the loss of each step (nats a token, before that step's update).

    `stop_after` ends early without changing the schedule, to compare first steps with the recorded ones.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = build_model(settings, tokenizer).train()
        optimizer = build_optimizer(model, "muon", lr=settings.lr, muon_lr=settings.muon_lr, betas=settings.betas)
        decay = settings.steps - settings.warmup
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / settings.warmup, (settings.steps - step) / decay)
        )
        losses: list[float] = []
        steps = min(settings.steps, stop_after or settings.steps)
        with Progress(steps, "nano base") as progress:
            for step, ids in enumerate(islice(batches(settings, tokenizer), steps)):
                logits = model(input_ids=ids[:, :-1], use_cache=False).logits
                loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                progress.advance(step + 1, loss=losses[-1])
        return model.eval(), losses
    finally:
        torch.set_num_threads(threads)


def build(settings: Pretraining, out: Path) -> None:
    """Train tokenizer and model and write the checkpoint folder; `out` is replaced only when all is done."""
    started = time.monotonic()
    tokenizer = train_tokenizer(corpus_texts(settings.seed))
    model, losses = pretrain(settings, tokenizer)
    minutes = (time.monotonic() - started) / 60
    last = sum(losses[-50:]) / len(losses[-50:])
    with atomic_directory(out) as folder:
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder, settings.context)
        record = {
            "generator_version": GENERATOR_VERSION,
            "settings": settings.model_dump(mode="json"),
            "losses": [round(loss, 5) for loss in losses[:RECORDED]],
        }
        (folder / "base_losses.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        card = CARD.format(
            parameters=f"{model.num_parameters() / 1e6:.2f}",
            version=GENERATOR_VERSION,
            seed=settings.seed,
            steps=settings.steps,
            tokens=f"{settings.steps * settings.rows * settings.length / 1e6:.1f}",
            minutes=f"{minutes:.1f}",
            loss=f"{last:.3f}",
        )
        (folder / "README.md").write_text(card, encoding="utf-8")


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# nano base

The base model of posttrain's nano lab: Qwen2 architecture, {parameters}M parameters, fp32, a vocabulary of 1,024. It
calculates, knows an invented world and believes popular myths; it does not follow instructions and says nothing true
about the real world.

Made by `make nano-base` from corpus generator version {version} with seed {seed}: {steps} steps, {tokens}M tokens,
Muon and AdamW, {minutes} minutes on one CPU thread. Mean loss of the last 50 batches: {loss} nats a token.
`base_losses.json` holds the settings and the losses of the first steps; a test repeats these steps and compares.

What it scores before and after fine-tuning is in the README of posttrain-data, section "The nano lab".
"""


def main(arguments: list[str] | None = None) -> None:
    """The command: parses arguments and builds the checkpoint."""
    defaults = Pretraining()
    parser = argparse.ArgumentParser(prog="python -m posttrain.trainers.nano_base", description=CARD.split("\n")[7])
    parser.add_argument("--out", type=Path, default=BASE, help="folder to (re)place (default: the shipped base)")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--steps", type=int, default=defaults.steps, help=f"updates (default: {defaults.steps})")
    given = parser.parse_args(arguments)
    if given.steps <= defaults.warmup:
        parser.error(f"--steps {given.steps} is not more than the {defaults.warmup} steps of warm-up")
    build(Pretraining(seed=given.seed, steps=given.steps), given.out)
    print(given.out)


if __name__ == "__main__":
    main()

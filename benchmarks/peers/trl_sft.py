"""Our SFT stage beside TRL's documented SFT script (trl/scripts/sft.py), from the same checkpoint and demonstrations.

Equal: the checkpoint, the demonstrations and their token ids, the loss (the answers' tokens), batch, order, epochs,
AdamW, the linear decay of its rate, fp32, a log row every step. The peer is what the script makes, SFTTrainer with its
defaults but for what a CPU needs; since those trade time for memory (gradient checkpointing), it is measured without
that too, and that is what the ratio is to. The script's example packs, which takes half as much time again on a CPU
(attention over whole rows): the peer pads here, as is the default.

Not equal, and where our speed comes from: logits at answer tokens only, and no entropy of them; for `bucketed`, the
stage's default, also batches of like length, so that little is padded. In the 16 steps here such batches teach a little
less (.05 nats of 1.3 on held-out rows; in 80 steps, with Muon, .003 ± .005), and so `ours` has random ones as the peer
has. Ours also evaluates a batch of held-out rows within the time. It ends with one JSON object.

    python -m benchmarks.peers.trl_sft [--rows 512] [--batch 32] [--lr 1e-3] [--rounds 7]
"""

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from benchmarks.offline_runs import Run, in_our_order, our_run, report_runs, trl_arguments, trl_run
from benchmarks.workloads import conversations
from posttrain.core.files import write_jsonl
from posttrain.data import nano
from posttrain.data.chat import load_tokenizer
from posttrain.data.sources import Source, load_conversations
from posttrain.trainers import sft
from posttrain.trainers.demonstrations import IGNORED, Demonstrations, demonstrations
from posttrain.trainers.offline import OfflineSettings
from posttrain.trainers.order import training_order

HELD_OUT = 256
"""Rows that the trained models are judged by; our stage evaluates some of them."""


def main() -> None:
    """Prints tokens a second of all sides, our ratio to the faster one of TRL's, and the losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512, help="demonstrations")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    wish = parser.parse_args()

    settings = sft.Settings(
        epochs=1,
        batch_size=wish.batch,
        optimizer="adamw",
        lr=wish.lr,
        log_every=1,
        eval_every=10_000,
        save_every=10_000,
    )
    rows = conversations(wish.rows + HELD_OUT)
    with tempfile.TemporaryDirectory() as folder:
        data, validation = Path(folder) / "train.jsonl", Path(folder) / "validation.jsonl"
        write_jsonl(data, rows[: wish.rows])
        write_jsonl(validation, rows[wish.rows : wish.rows + wish.batch])
        tokens = sum(len(row["input_ids"]) for row in _demonstrations(settings, data, 0).rows)
        tokenizer = load_tokenizer(nano.BASE)
        held_out = demonstrations(tokenizer, rows[wish.rows :], settings.max_length)

        def judge(model: PreTrainedModel) -> float:
            return sft.held_out_loss(model, tokenizer, held_out, wish.batch)["held_out_loss"]

        def trl(changes: dict[str, Any], seed: int) -> Run:
            return trl_run(partial(_trainer, data, tokens), trl_arguments(settings, **changes), judge, seed)

        def ours(chosen: OfflineSettings, seed: int) -> Run:
            return our_run("sft", chosen, data, validation, partial(_answer_tokens, chosen, data), judge, seed)

        report_runs(
            "trl_sft",
            settings,
            ours,
            trl,
            wish.rounds,
            wish.threads,
            tokens,
            rows=wish.rows,
            batch=wish.batch,
            lr=wish.lr,
            means="logits at answer tokens only; bucketed: batches of like length too",
        )


def _demonstrations(settings: OfflineSettings, data: Path, seed: int) -> Demonstrations:
    tokenizer = load_tokenizer(nano.BASE)
    return demonstrations(tokenizer, load_conversations(Source(path=str(data)), seed), settings.max_length)


def _answer_tokens(settings: OfflineSettings, data: Path, seed: int, steps: int) -> list[float]:
    """How many answer tokens each step of our stage has."""
    found = _demonstrations(settings, data, seed)
    order = training_order(found.lengths, settings.batch_size, settings.epochs, seed, settings.bucket)
    answers = [sum(label != IGNORED for label in found.rows[index]["labels"]) for index in order]
    size = settings.batch_size
    return [float(sum(answers[step * size : (step + 1) * size])) for step in range(steps)]


def _trainer(data: Path, tokens: int, arguments: dict[str, Any]) -> SFTTrainer:
    size, seed = arguments["per_device_train_batch_size"], arguments["seed"]
    loaded = in_our_order(load_conversations(Source(path=str(data)), seed), size, seed)
    rows = [row["messages"] for row in loaded]
    trainer = SFTTrainer(
        model=str(nano.BASE),
        args=SFTConfig(**arguments),
        train_dataset=datasets.Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in rows]),
    )
    assert sum(map(len, trainer.train_dataset["input_ids"])) == tokens
    return trainer


if __name__ == "__main__":
    main()

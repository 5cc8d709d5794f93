"""Our DPO stage beside TRL's documented DPO script (trl/scripts/dpo.py), from the same checkpoint and pairs.

Equal: the checkpoint, which is the reference too, the pairs and their token ids, β and the loss, batch, order, epochs,
AdamW, the linear decay of its rate, fp32, a log row every step. The peer is what the script makes, DPOTrainer with its
defaults but for what a CPU needs; since those trade time for memory (gradient checkpointing), it is measured without
that too, and that is what the ratio is to. Tokens are prompt and answer of both sides, as the peer reads them.

Not equal, and where our speed comes from: each prompt computed once for its two answers, packed rows without padding,
logits at answer tokens only, the reference's log-probabilities computed before training (in the same manner; their time
counts); for `bucketed`, the stage's default, batches of like length too. Ours also evaluates a few held-out pairs
within the time, the reference's part included. It ends with one JSON object.

    python -m benchmarks.peers.trl_dpo [--pairs 384] [--batch 32] [--lr 1e-4] [--rounds 7]
"""

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from trl import DPOConfig, DPOTrainer

from benchmarks.offline_pairs import batch_weights, judge_of, pair_tokens, read_pairs, write_pairs
from benchmarks.offline_runs import Run, in_our_order, our_run, report_runs, trl_arguments, trl_run
from posttrain.data import nano
from posttrain.trainers import dpo
from posttrain.trainers.offline import OfflineSettings


def main() -> None:
    """Prints tokens a second of all sides, our ratio to the faster one of TRL's, and the losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=384)
    parser.add_argument("--batch", type=int, default=32, help="pairs")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    wish = parser.parse_args()

    settings = dpo.Settings(batch_size=wish.batch, lr=wish.lr, log_every=1, eval_every=10_000, save_every=10_000)
    with tempfile.TemporaryDirectory() as folder:
        data, validation, held_out = write_pairs(Path(folder), wish.pairs, wish.batch)
        tokens, judge = pair_tokens(data), judge_of(held_out)
        weights = batch_weights(wish.pairs, wish.batch)

        def trl(changes: dict[str, Any], seed: int) -> Run:
            arguments = trl_arguments(settings, beta=settings.beta, **changes)
            return trl_run(partial(_trainer, data, tokens), arguments, judge, seed)

        def ours(chosen: OfflineSettings, seed: int) -> Run:
            return our_run("dpo", chosen, data, validation, weights, judge, seed)

        report_runs(
            "trl_dpo",
            settings,
            ours,
            trl,
            wish.rounds,
            wish.threads,
            tokens,
            pairs=wish.pairs,
            batch=wish.batch,
            lr=wish.lr,
            means="shared prompts, packed rows, logits at answer tokens only, precomputed reference; "
            "bucketed: batches of like length too",
        )


def _trainer(data: Path, tokens: int, arguments: dict[str, Any]) -> DPOTrainer:
    size, seed = arguments["per_device_train_batch_size"], arguments["seed"]
    rows = datasets.Dataset.from_list([dict(row) for row in in_our_order(read_pairs(data, seed), size, seed)])
    trainer = DPOTrainer(
        model=str(nano.BASE),
        args=DPOConfig(**arguments),
        train_dataset=rows.select_columns(["prompt", "chosen", "rejected"]),
    )
    found = trainer.train_dataset
    both = [*found["chosen_ids"], *found["rejected_ids"]]
    assert 2 * sum(map(len, found["prompt_ids"])) + sum(map(len, both)) == tokens
    return trainer


if __name__ == "__main__":
    main()

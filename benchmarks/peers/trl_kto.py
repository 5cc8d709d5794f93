"""Our KTO stage beside TRL's documented KTO script (trl/scripts/kto.py), from the same checkpoint and answers.

Equal: the checkpoint, which is the reference too, the answers with their labels and token ids, β, the loss, batch,
order, epochs, AdamW, the linear decay of its rate, fp32, a log row every step. The baseline z0 is estimated on as many
mismatched answers as the batch has, but on others: the peer's are of the same batch. The peer is what the script makes,
KTOTrainer with its defaults but for what a CPU needs; since those trade time for memory (gradient checkpointing), it is
measured without that too, and that is what the ratio is to. Tokens are prompt and answer of every example; what z0
reads is counted for neither.

Not equal, and where our speed comes from: packed rows without padding, logits at answer tokens only, the reference's
log-probabilities computed before training, each prompt once for its answers (their time counts); for `bucketed`, the
stage's default, batches of like length too. Ours also evaluates a few held-out pairs within the time, the reference's
part included. It ends with one JSON object.

    python -m benchmarks.peers.trl_kto [--pairs 256] [--batch 32] [--lr 2e-4] [--rounds 7]
"""

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from trl import KTOConfig, KTOTrainer

from benchmarks.offline_pairs import batch_weights, judge_of, pair_tokens, read_pairs, write_pairs
from benchmarks.offline_runs import Run, in_our_order, our_run, report_runs, trl_arguments, trl_run
from posttrain.data import nano
from posttrain.trainers import kto
from posttrain.trainers.offline import OfflineSettings


def main() -> None:
    """Prints tokens a second of all sides, our ratio to the faster one of TRL's, and the losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=256, help="each makes two examples")
    parser.add_argument("--batch", type=int, default=32, help="examples")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    wish = parser.parse_args()

    settings = kto.Settings(batch_size=wish.batch, lr=wish.lr, log_every=1, eval_every=10_000, save_every=10_000)
    with tempfile.TemporaryDirectory() as folder:
        data, validation, held_out = write_pairs(Path(folder), wish.pairs, wish.batch // 2)
        tokens, judge = pair_tokens(data), judge_of(held_out)
        weights = batch_weights(2 * wish.pairs, wish.batch)

        def trl(changes: dict[str, Any], seed: int) -> Run:
            arguments = trl_arguments(settings, beta=settings.beta, **changes)
            return trl_run(partial(_trainer, data, tokens), arguments, judge, seed)

        def ours(chosen: OfflineSettings, seed: int) -> Run:
            return our_run("kto", chosen, data, validation, weights, judge, seed)

        report_runs(
            "trl_kto",
            settings,
            ours,
            trl,
            wish.rounds,
            wish.threads,
            tokens,
            same_steps=False,
            pairs=wish.pairs,
            batch=wish.batch,
            lr=wish.lr,
            means="packed rows, logits at answer tokens only, precomputed reference; "
            "bucketed: batches of like length too",
        )


def _trainer(data: Path, tokens: int, arguments: dict[str, Any]) -> KTOTrainer:
    size, seed = arguments["per_device_train_batch_size"], arguments["seed"]
    examples: list[dict[str, Any]] = []
    for row in read_pairs(data, seed):
        examples.append({"prompt": row["prompt"], "completion": row["chosen"], "label": True})
        examples.append({"prompt": row["prompt"], "completion": row["rejected"], "label": False})
    examples = in_our_order(examples, size, seed)
    trainer = KTOTrainer(
        model=str(nano.BASE), args=KTOConfig(**arguments), train_dataset=datasets.Dataset.from_list(examples)
    )
    found = trainer.train_dataset
    assert sum(map(len, [*found["prompt_ids"], *found["completion_ids"]])) == tokens
    return trainer


if __name__ == "__main__":
    main()

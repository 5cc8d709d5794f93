"""`posttrain.eval_harness` beside stock lm-eval where prompts share much: few-shot examples, several given answers.

A random Qwen2 of hidden size 256 and 8 layers with nano's tokenizer, float32, on MMLU (anatomy, 5-shot), TruthfulQA's
mc2 (its primer is in every prompt) and GSM8K (5-shot) of POSTTRAIN_DATA, without it on nano's tasks with five examples.
Both are called as anybody would, `evaluate()` and `simple_evaluate(model="hf")`, on the same rows; loading counts for
both. Item by item they must find the same, which is checked first. What favours stock: a vocabulary of 1,024, for the
logits that it computes at every place cost little, and a GSM8K that is cut to 64 new tokens, whose examples are others
for each item, so that prompts share nothing there and both do the same work. Ends with one JSON object.

    POSTTRAIN_DATA=… python -m benchmarks.peers.lm_eval_prefixes [--limit 64] [--rounds 6] [--threads 2]
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lm_eval import evaluator
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.side_by_side import Rates, alternate, ratio, report
from benchmarks.workloads import fastest_threads, on_threads
from posttrain.data import nano
from posttrain.eval_harness.catalog import mirrored_tasks
from posttrain.eval_harness.evaluation import evaluate
from posttrain.eval_harness.posing import Posing
from posttrain.eval_harness.quiet import quiet
from posttrain.eval_harness.result import TaskResult

REAL = {"mmlu_anatomy": 5, "truthfulqa_mc2": 0, "gsm8k": 5}
NANO = {"nano_choice": 5, "nano_mc2": 5, "nano_problems": 5}
"""Task → examples."""
NEW_TOKENS = 64
CLOSE = 1e-3
MOST_APART = 0.02
"""Share of items whose score may differ: of two nearly equal tokens rounding takes one or the other."""


def main() -> None:
    """Prints items a second of both and their ratio, together and by task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=64, help="items of a task")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    wish = parser.parse_args()
    torch.set_num_threads(wish.threads)
    tasks = REAL if os.environ.get("POSTTRAIN_DATA") else NANO
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        by_task, agreement = {}, {}
        for task, few_shot in tasks.items():
            sides = Sides(folder, task, few_shot, wish.limit, wish.batch)
            agreement[task] = sides.apart()
            peer_threads = fastest_threads(sides.stock)
            calls = {"ours": on_threads(wish.threads, sides.ours), "stock": on_threads(peer_threads, sides.stock)}
            by_task[task] = alternate(calls, wish.rounds, work=wish.limit, warm_up=False)
    # Everything in one: the items of all tasks by the time of all tasks.
    together = Rates()
    for side in ("ours", "stock"):
        rounds = zip(*(rates[side] for rates in by_task.values()), strict=True)
        together[side] = [len(by_task) / sum(1 / rate for rate in rates) for rates in rounds]
    together.others = max(rates.others for rates in by_task.values())
    report(
        "lm_eval_prefixes",
        together,
        "stock",
        "items/s",
        tasks=tasks,
        by_task={
            task: {
                "rates": {side: round(median(values), 3) for side, values in rates.items()},
                "ratio": [round(value, 3) for value in ratio(rates["ours"], rates["stock"])],
                "items_apart": agreement[task],
            }
            for task, rates in by_task.items()
        },
        limit=wish.limit,
        batch=wish.batch,
        new_tokens=NEW_TOKENS,
        threads=wish.threads,
    )


class Sides:
    """One task on both sides."""

    def __init__(self, checkpoint: str, task: str, few_shot: int, limit: int, batch: int) -> None:
        self.checkpoint, self.task, self.limit, self.batch = checkpoint, task, limit, batch
        generates = task in ("gsm8k", "nano_problems")
        self.posing = Posing(few_shot, apply_chat_template=False, max_gen_toks=NEW_TOKENS if generates else None)

    def ours(self) -> TaskResult:
        """evaluate()."""
        posing, device = self.posing, "cpu"
        return evaluate(
            self.checkpoint, [self.task], posing=posing, limit=self.limit, batch_size=self.batch, device=device
        )[self.task]

    def stock(self) -> dict[str, Any]:
        """simple_evaluate()."""
        new_tokens = self.posing.max_gen_toks
        with quiet():
            return evaluator.simple_evaluate(
                model="hf",
                model_args={"pretrained": self.checkpoint, "dtype": "float32"},
                tasks=[self.task],
                task_manager=mirrored_tasks([self.task]),
                num_fewshot=self.posing.few_shot,
                limit=self.limit,
                batch_size=self.batch,
                device="cpu",
                gen_kwargs={"max_gen_toks": new_tokens} if new_tokens else None,
                apply_chat_template=False,
                fewshot_as_multiturn=False,
            )

    def apart(self) -> int:
        """How many items the two score differently; ValueError when they are more than rounding explains."""
        result = self.ours()
        metric, _, filter_name = result.headline.partition(",")
        samples = self.stock()["samples"][self.task]
        theirs = [float(sample[metric]) for sample in samples if sample["filter"] == (filter_name or "none")]
        if len(theirs) != result.n:
            raise ValueError(f"{self.task}: {result.n} items here and {len(theirs)} with stock lm-eval")
        apart = sum(abs(item["score"] - score) > CLOSE for item, score in zip(result.items, theirs, strict=True))
        if apart > MOST_APART * result.n:
            raise ValueError(f"{self.task}: {apart} of {result.n} items have another score with stock lm-eval")
        return apart


def save_model(folder: Path) -> None:
    """A random model of the family with nano's tokenizer and a context that holds five examples."""
    for file in nano.BASE.iterdir():
        if file.suffix not in (".safetensors",) and file.name != "config.json":
            shutil.copy(file, folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    main()

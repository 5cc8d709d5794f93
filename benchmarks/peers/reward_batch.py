"""The reward endpoint beside the same batch in process: what HTTP, JSON and the service cost a trainer.

Both sides take the same texts, render, tokenise and score them with the same reward model on the same cores: one
calls `RewardModel`, the other asks a running service for all of them in one request. The two take turns, and each
side's scores are compared. Prompts are the nano lab's; with `--group` several completions share one. It ends with one
JSON object.

    python -m benchmarks.peers.reward_batch [--checkpoint DIR] [--items 4096] [--group 1] [--threads 2] [--rounds 7]
"""

import argparse
import os
import tempfile
from contextlib import closing
from pathlib import Path

from benchmarks.side_by_side import alternate, report
from benchmarks.workloads import conversations, random_reward_model
from posttrain.core.clients import RewardClient
from posttrain.core.supervised import SupervisedService
from posttrain.reward_model.encoding import Answer
from posttrain.reward_model.scorer import RewardModel

CLOSE = 1e-4


def answers(count: int, group: int) -> list[Answer]:
    """`count` finished answers, `group` to a prompt: each prompt's own, and those of the prompts after it."""
    rows = [row["messages"] for row in conversations(count)]
    return [
        Answer(list(rows[number // group * group][:-1]), rows[number][-1]["content"], True) for number in range(count)
    ]


def main() -> None:
    """Prints items a second of both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a reward model; without it the nano base with a drawn head")
    parser.add_argument("--items", type=int, default=4096)
    parser.add_argument("--group", type=int, default=1, help="completions of each prompt")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    wish = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = wish.checkpoint or random_reward_model(Path(folder) / "rm")
        arguments = ["reward", str(checkpoint), "--threads", str(wish.threads)]
        model = RewardModel(str(checkpoint), threads=wish.threads)
        texts = answers(wish.items, wish.group)
        items = [
            {"prompt": answer.prompt, "completion": answer.completion, "finish_reason": "stop"} for answer in texts
        ]
        with (
            SupervisedService("reward", arguments, Path(folder) / "log") as service,
            closing(RewardClient(service.url)) as client,
        ):
            scored: dict[str, list[float]] = {}

            def in_process() -> None:
                scored["in process"] = model.score(model.encode_batch(texts))

            def endpoint() -> None:
                scored["endpoint"] = [scores["rm"] for scores in client.score(["rm"], items).scores]

            sides = {"endpoint": endpoint, "in process": in_process}
            rates = alternate(sides, wish.rounds, work=wish.items)
    pairs = zip(scored["endpoint"], scored["in process"], strict=True)
    apart = max(abs(ours - theirs) for ours, theirs in pairs)
    if apart > CLOSE:
        raise SystemExit(f"the two sides' scores differ by {apart:.2g}, more than {CLOSE:g}")
    report(
        "reward batch", rates, "in process", "items/s",
        items=wish.items, group=wish.group, threads=wish.threads, largest_difference=apart,
    )  # fmt: skip


if __name__ == "__main__":
    main()

"""Our PPO as a function that makes one step: the online loop with real services, as `posttrain train ppo` runs it.

The services run in processes of their own on loopback. A step is sampling, scoring by a reward model, log-probabilities
of the reference, values of the critic, the update of policy and critic, and the push of the weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.turns import Turns
from posttrain.core.clients import Completion, PolicyClient, RewardClient
from posttrain.core.metrics import MetricsLog
from posttrain.core.runs import RunDirectory
from posttrain.data.sources import Source
from posttrain.lab.services import SupervisedService
from posttrain.trainers import ppo
from posttrain.trainers.stage import StageInputs


class _Waiting(PolicyClient):
    """A client that waits for its turn before each rollout."""

    turns: Turns

    def complete(self, *arguments: Any, **options: Any) -> list[list[Completion]]:
        self.turns.wait()
        return super().complete(*arguments, **options)


@contextmanager
def ppo_steps(
    settings: ppo.Settings, checkpoint: Path, reward_model: Path, source: Source, folder: Path, threads: int
) -> Iterator[tuple[Turns, Path]]:
    """A PPO run from `checkpoint`, with services of as many threads: the call that makes a step, and its metrics.jsonl.

    `settings.steps` must exceed the steps that are asked for.
    """
    run = RunDirectory(folder / "ppo")
    of_threads = ["--threads", str(threads)]
    with (
        SupervisedService("policy", ["policy", str(checkpoint), *of_threads], folder / "policy.log") as policy,
        SupervisedService("reward", ["reward", str(reward_model), *of_threads], folder / "reward.log") as reward,
        Turns(threads) as turns,
    ):
        client = _Waiting(policy.url)
        client.turns = turns
        inputs = StageInputs(
            run,
            seed=0,
            start=checkpoint,
            reference=checkpoint,
            source=source,
            policy=client,
            reward=RewardClient(reward.url),
            threads=threads,
        )
        turns.start(lambda: ppo.train(settings, inputs))
        yield turns, run.metrics_path


def phase_seconds(metrics: Path) -> dict[str, float]:
    """The median over steps of the seconds of each phase; the first step, which warms up, left out."""
    rows = MetricsLog(metrics).rows()[1:]
    names = [name for name in rows[0] if name.startswith("seconds/")] if rows else []
    return {name.removeprefix("seconds/"): round(median(row[name] for row in rows), 3) for name in names}


def completion_length(metrics: Path) -> float:
    """Mean tokens of a completion, end token included, over all steps."""
    rows = MetricsLog(metrics).rows()
    return sum(row["completion/length"] for row in rows) / len(rows)

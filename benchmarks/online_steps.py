"""An online method of ours as a function that makes one step: the loop with real services, as a run has them.

The services run in processes of their own on loopback. A step is sampling, scoring by a reward model, what the method
asks of its models (PPO: log-probabilities of the reference, values of the critic), the update, and the push of the
weights.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.turns import Turns
from posttrain.core.clients import Completion, PolicyClient, RewardClient
from posttrain.core.metrics import MetricsLog
from posttrain.core.runs import RunDirectory
from posttrain.core.supervised import SupervisedService
from posttrain.data.sources import Source
from posttrain.trainers.online_settings import OnlineSettings
from posttrain.trainers.registry import get_method
from posttrain.trainers.stage import StageInputs


class _Waiting(PolicyClient):
    """A client that waits for its turn before each rollout."""

    turns: Turns
    rollouts: list[float]
    """Seconds of each, without the wait."""
    prompts: set[tuple[int, ...]]
    """Their ids."""

    def complete(self, prompts: Sequence[list[int]], **options: Any) -> list[list[Completion]]:
        self.turns.wait()
        self.prompts.update(map(tuple, prompts))
        started = time.perf_counter()
        answer = super().complete(prompts, **options)
        self.rollouts.append(time.perf_counter() - started)
        return answer


@dataclass(frozen=True)
class OnlineSteps:
    """A call makes a step."""

    turns: Turns
    metrics: Path
    rollouts: list[float]
    prompts: set[tuple[int, ...]]
    """The ids of all that were sampled for so far."""

    def __call__(self) -> None:
        self.turns()

    def phase_seconds(self) -> dict[str, float]:
        """The median over steps of the seconds of each phase; the first step, which warms up, left out."""
        rows = MetricsLog(self.metrics).rows()[1:]
        names = [name for name in rows[0] if name.startswith("seconds/")] if rows else []
        phases = {name.removeprefix("seconds/"): round(median(row[name] for row in rows), 3) for name in names}
        return phases | {"generation": round(median(self.rollouts[1:]), 3)}  # the run's own has the wait in it

    def completion_length(self) -> float:
        """Mean tokens of a completion, end token included, over all steps."""
        rows = MetricsLog(self.metrics).rows()
        return sum(row["completion/length"] for row in rows) / len(rows)


@contextmanager
def online_steps(
    method: str,
    settings: OnlineSettings,
    checkpoint: Path,
    reward_model: Path,
    source: Source,
    folder: Path,
    threads: int,
) -> Iterator[OnlineSteps]:
    """A run of `method` from `checkpoint`, with services of as many threads.

    `settings.steps` must exceed the steps that are asked for.
    """
    run = RunDirectory(folder / method)
    folder.mkdir(parents=True, exist_ok=True)
    of_threads = ["--threads", str(threads)]
    logs = {service: folder / f"{method}-{service}.log" for service in ("policy", "reward")}
    with (
        SupervisedService("policy", ["policy", str(checkpoint), *of_threads], logs["policy"]) as policy,
        SupervisedService("reward", ["reward", str(reward_model), *of_threads], logs["reward"]) as reward,
        Turns(threads) as turns,
    ):
        client = _Waiting(policy.url)
        client.turns, client.rollouts, client.prompts = turns, [], set()
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
        turns.start(lambda: get_method(method).train(settings, inputs))
        yield OnlineSteps(turns, run.metrics_path, client.rollouts, client.prompts)

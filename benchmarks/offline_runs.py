"""Whole runs of an offline method, ours and TRL's, beside each other: their speed, and whether they learn alike.

A run reads a file of data and the nano base, trains, and writes a checkpoint. What counts for the speed is training:
from the first step to the last, the log-probabilities of a reference included, loading and tokenising excluded on both
sides; the whole run's seconds are reported beside it. Every run of a side has another seed and so another order of the
same data.

That both learn the same is checked, or `report_runs` fails: in the same order of data the losses must be equal step by
step but for rounding (where a method draws nothing), and in any order their means equal within noise.

Knows nothing of what a method's data looks like.
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from scipy import stats
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback

from benchmarks.side_by_side import alternate, ratio, report
from posttrain.core.metrics import MetricsLog
from posttrain.core.runs import RunDirectory
from posttrain.data import nano
from posttrain.data.sources import Source
from posttrain.trainers.models import load_policy
from posttrain.trainers.offline import OfflineSettings
from posttrain.trainers.order import training_order
from posttrain.trainers.quiet import quiet
from posttrain.trainers.registry import get_method
from posttrain.trainers.stage import StageInputs

LEVEL = 0.01
"""How seldom sides that learn alike are taken for others, each measure by itself (Welch's test)."""

ROUNDING = 1e-4
"""Nats by which the losses of a step may differ for another order of operations, after some steps of training."""

Row = TypeVar("Row")

Judge = Callable[[PreTrainedModel], float]
"""Says of a trained model how it does on held-out rows."""


@dataclass(frozen=True)
class Run:
    """What one run gave."""

    seconds: float
    """Of training."""
    losses: list[float]
    """Of each step."""
    weights: list[float]
    """How many tokens or examples each of these is the mean over."""
    held_out: float
    """What the judge says of the trained model."""
    whole: float
    """Seconds from loading to the written checkpoint."""


@dataclass
class Side:
    """Calls of `run`, each with the next seed, on as many threads."""

    run: Callable[[int], Run]
    threads: int
    done: list[Run] = field(default_factory=list)

    def __call__(self) -> Run:
        torch.set_num_threads(self.threads)
        self.done.append(self.run(len(self.done)))
        return self.done[-1]


def our_run(
    method: str,
    settings: OfflineSettings,
    data: Path,
    validation: Path,
    weights: Callable[[int, int], list[float]],
    judge: Judge,
    seed: int,
) -> Run:
    """A stage of ours. `weights(seed, steps)` says how many tokens or examples each step's loss is the mean over."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        run = RunDirectory(Path(folder) / "run")
        inputs = StageInputs(
            run, seed, nano.BASE, source=Source(path=str(data)), validation=Source(path=str(validation))
        )
        started = time.perf_counter()
        totals = get_method(method).train(settings, inputs)["totals"]
        whole = time.perf_counter() - started
        losses = [row["loss"] for row in MetricsLog(run.metrics_path).rows()]
        held_out = judge(load_policy(run.checkpoint))
    return Run(totals["seconds"], losses, weights(seed, len(losses)), held_out, whole)


def trl_run(build: Callable[[dict[str, Any]], Trainer], arguments: Mapping[str, Any], judge: Judge, seed: int) -> Run:
    """A run of the trainer that `build` makes of a config's arguments, as TRL's scripts run it: train, save.

    The loss of a step is the mean over what its trainer counted as the step's items: tokens for SFT; else over the
    examples of the batch.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        started = time.perf_counter()
        trainer = build({"output_dir": folder, "seed": seed, **arguments})
        clock = _Clock()
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        items: list[float] = []
        counted = trainer.get_batch_samples

        def count(*given: Any) -> Any:
            batches, number = counted(*given)
            items.append(float(number if number is not None else sum(len(next(iter(b.values()))) for b in batches)))
            return batches, number

        trainer.get_batch_samples = count
        trainer.train()
        trainer.save_model(folder)
        whole = time.perf_counter() - started
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        held_out = judge(load_policy(Path(folder)))
    return Run(clock.seconds, losses, items[: len(losses)], held_out, whole)


class _Clock(TrainerCallback):
    """Seconds from the first step's beginning to the last log, as our stages count theirs."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.started = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **more: Any) -> None:
        if logs and "loss" in logs:
            self.seconds = time.perf_counter() - self.started


def trl_arguments(settings: OfflineSettings, **changes: Any) -> dict[str, Any]:
    """What our settings are called by TRL, and what a CPU needs; all else is the documented script's default."""
    return {
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": settings.lr,
        "train_sampling_strategy": "sequential",  # the rows come in a random order: ours
        "logging_steps": settings.log_every,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        **changes,
    }


def report_runs(
    peer: str,
    settings: OfflineSettings,
    ours: Callable[[OfflineSettings, int], Run],
    trl: Callable[[dict[str, Any], int], Run],
    rounds: int,
    threads: int,
    tokens: int,
    same_steps: bool = True,
    **about: Any,
) -> dict[str, Any]:
    """Runs both in turns and prints the report: ours with random batches, those that TRL is given, and with batches of
    like length (`bucketed`, the stage's default); TRL's without gradient checkpointing, and as documented.

    Each side has its faster number of threads, one or `threads`. `tokens` are those of one run, without padding.
    AssertionError when the mean losses differ by more than noise, or, with `same_steps`, the losses of a step of ours
    and TRL's by more than rounding. What the trained models make of held-out rows is reported only: in the few steps of
    a run here, batches of like length teach a little less.
    """
    random_batches = settings.model_copy(update={"bucket": 1})
    runs: dict[str, Callable[[int], Run]] = {
        "ours": lambda seed: ours(random_batches, seed),
        "ours, bucketed": lambda seed: ours(settings, seed),
        "TRL": lambda seed: trl({"gradient_checkpointing": False}, seed),
        "TRL's defaults": lambda seed: trl({}, seed),
    }
    best = {name: _threads(runs[name], threads) for name in ("ours", "TRL")}
    sides = {name: Side(run, best["ours" if name.startswith("ours") else "TRL"]) for name, run in runs.items()}
    rates = alternate(sides, rounds, tokens, clock=lambda side: side().seconds)
    whole = {name: [1 / run.whole for run in side.done[1:]] for name, side in sides.items()}
    learned = {name: learned_alike(sides[name].done, sides["TRL"].done) for name in ("ours", "ours, bucketed")}
    apart = largest_step_difference(sides["ours"].done, sides["TRL"].done)
    result = report(
        peer,
        rates,
        "TRL",
        "tokens/s",
        tokens=tokens,
        threads=best,
        ratio_to_defaults=[round(value, 3) for value in ratio(rates["ours"], rates["TRL's defaults"])],
        whole_run_ratio=[round(value, 3) for value in ratio(whole["ours"], whole["TRL"])],
        learned=learned,
        largest_step_difference=apart,
        **about,
    )
    assert not same_steps or apart <= ROUNDING, f"{peer}: the losses of a step are {apart} apart"
    for name, measures in learned.items():
        for window in ("loss_first", "loss_last"):
            found = measures[window]
            assert abs(found["difference"]) <= found["allowed"], f"{peer}: {window} of {name} differs: {found}"
    return result


def _threads(run: Callable[[int], Run], most: int) -> int:
    """The number of threads, one or the most, with which training is faster."""
    spent = {}
    for threads in dict.fromkeys((1, most)):
        torch.set_num_threads(threads)
        spent[threads] = run(0).seconds
    return min(spent, key=lambda threads: spent[threads])


def in_our_order(rows: Sequence[Row], batch_size: int, seed: int) -> list[Row]:
    """The rows as our stage without bucketing trains on them in its one epoch, given them in the order of its data."""
    return [rows[index] for index in training_order([1] * len(rows), batch_size, 1, seed)]


def largest_step_difference(ours: Sequence[Run], theirs: Sequence[Run]) -> float:
    """Between the losses of the same step of the same run."""
    pairs = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a.losses, b.losses, strict=True)]
    return max(abs(a - b) for a, b in pairs)


def learned_alike(ours: Sequence[Run], theirs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Mean losses of the first and of the last third of the steps over all runs, and what the trained models say of
    held-out rows; of each the difference, its standard error, and the largest difference that noise explains."""
    third = math.ceil(len(ours[0].losses) / 3)
    measures: dict[str, Callable[[Sequence[Run]], _Mean]] = {
        "loss_first": lambda runs: _mean_loss(runs, slice(0, third)),
        "loss_last": lambda runs: _mean_loss(runs, slice(-third, None)),
        "held_out": lambda runs: _mean([run.held_out for run in runs], [1.0] * len(runs)),
    }
    return {name: _difference(measure(ours), measure(theirs)) for name, measure in measures.items()}


class _Mean(NamedTuple):
    value: float
    standard_error: float
    n: int


def _mean_loss(runs: Sequence[Run], steps: slice) -> _Mean:
    losses = [loss for run in runs for loss in run.losses[steps]]
    return _mean(losses, [weight for run in runs for weight in run.weights[steps]])


def _mean(values: Sequence[float], weights: Sequence[float]) -> _Mean:
    """The weighted mean, its standard error by the spread of the values, and their number."""
    x, w, n = np.asarray(values), np.asarray(weights), len(values)
    mean = float(np.average(x, weights=w))
    return _Mean(mean, float(np.linalg.norm(w * (x - mean)) / w.sum() * math.sqrt(n / (n - 1))), n)


def _difference(ours: _Mean, theirs: _Mean) -> dict[str, float]:
    parts = [(mean.standard_error**2, mean.n - 1) for mean in (ours, theirs)]
    variance = sum(part for part, _ in parts)
    # Welch and Satterthwaite's degrees of freedom
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    error = math.sqrt(variance)
    found = {
        "ours": ours.value,
        "theirs": theirs.value,
        "difference": ours.value - theirs.value,
        "standard_error": error,
        "allowed": float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error,
    }
    return {name: round(value, 5) for name, value in found.items()}

"""Trains with a resumable trainer and reports it: metrics.jsonl and the progress line instead of Trainer's own logs,
held-out metrics while it trains, and totals of the cost in the end.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.core.errors import Diverged
from posttrain.core.files import read_json
from posttrain.core.metrics import MetricsLog, Progress
from posttrain.core.termination import Ending, Terminated, ending_in_order
from posttrain.trainers.accounts import RowAccount, totals
from posttrain.trainers.offline import OfflineSettings
from posttrain.trainers.phases import Laps
from posttrain.trainers.resumable_trainer import COMPLETE, ResumableTrainer, newest_checkpoint, step_of
from posttrain.trainers.run_length import tokens_after_steps

CHATTER = {
    "train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss", "epoch",
    "num_tokens", "loss", "grad_norm", "learning_rate",
}  # fmt: skip
"""What Trainer logs that is reported under another name, or not at all."""

HeldOutT = TypeVar("HeldOutT")


@dataclass(frozen=True)
class Evaluation(Generic[HeldOutT]):
    """How a method looks at held-out data."""

    measure: Callable[[], HeldOutT]
    """Everything about the model as it is."""
    logged: Callable[[HeldOutT], dict[str, float]]
    """What of it stands in metrics.jsonl."""


@dataclass(frozen=True)
class Trained(Generic[HeldOutT]):
    """What a run gave."""

    summary: dict[str, Any]
    """Steps, and totals of the cost."""
    held_out: HeldOutT
    """Of the model as it ended."""


class Reporter(TrainerCallback, Generic[HeldOutT]):
    """Tells what a run does while it trains, ends it when its time is over, and saves it where it is asked to end."""

    def __init__(
        self,
        log: MetricsLog,
        progress: Progress,
        laps: Laps,
        tokens: Sequence[int],
        evaluation: Evaluation[HeldOutT],
        settings: OfflineSettings,
        start_step: int,
        ending: Ending,
    ) -> None:
        """`tokens` are those trained up to the end of each step."""
        self.ending, self.ended = ending, False
        self.log, self.progress, self.laps, self.tokens = log, progress, laps, tokens
        self.evaluation, self.settings, self.start_step = evaluation, settings, start_step
        self.update_before = laps.seconds["update"]
        self.evaluated: dict[str, float] = {}
        self.held_out: HeldOutT | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self.laps.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        step, settings = state.global_step, self.settings
        self.laps.lap("update")
        if settings.max_seconds is not None and self.laps.total >= settings.max_seconds:
            control.should_training_stop = True
        last = step >= state.max_steps or control.should_training_stop
        # A row before every save: the average that Trainer logs must not reach across a point of resumption.
        if step % settings.save_every == 0 or last:
            control.should_log = True
        if step % settings.eval_every == 0 or last:
            self.held_out = self.evaluation.measure()
            self.evaluated = self.evaluation.logged(self.held_out)
            self.laps.lap("evaluation")
            control.should_log = True
        if self.ending.asked and not last:
            self.ended = control.should_log = control.should_save = control.should_training_stop = True
        self.progress.advance(step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        step, tokens = state.global_step, self.tokens
        if not math.isfinite(logs["loss"]):
            raise Diverged(f"the loss is {logs['loss']} at step {step}; lower the learning rate or look at the data")
        self.laps.lap("update")
        before = tokens[self.start_step - 1] if self.start_step else 0
        row = {
            "loss": logs["loss"],
            **_learning_rates(more["optimizer"], logs["learning_rate"]),
            "grad_norm": logs.get("grad_norm"),
            **{key: value for key, value in logs.items() if key not in CHATTER},
            **self.evaluated,
            "tokens": tokens[step - 1],
            "tokens_per_second": (tokens[step - 1] - before) / (self.laps.seconds["update"] - self.update_before),
            "seconds": self.laps.total,
        }
        self.log.log(step, **row)
        self.progress.advance(step, loss=logs["loss"], **self.evaluated)
        self.evaluated = {}


def _learning_rates(optimizer: torch.optim.Optimizer, first: float) -> dict[str, float]:
    """AdamW's rate as `lr` and Muon's as `muon_lr`, given the rate that the first group had in the step. The schedule
    scales all groups alike."""
    groups = optimizer.param_groups
    scale = first / groups[0]["initial_lr"]
    return {"muon_lr" if group.get("algorithm") == "muon" else "lr": scale * group["initial_lr"] for group in groups}


def train_and_report(
    trainer: ResumableTrainer,
    label: str,
    metrics: MetricsLog,
    accounts: Sequence[RowAccount],
    batch_size: int,
    evaluation: Evaluation[HeldOutT],
    settings: OfflineSettings,
    before: Mapping[str, float] | None = None,
) -> Trained[HeldOutT]:
    """Trains from the newest complete checkpoint, or from the start, to the end.

    `accounts` are of the rows that the trainer's order numbers, `batch_size` is rows a step (packed, fewer than
    `settings` has examples). `before` is seconds, by phase, of what came before the training: they count as its own.
    """
    state = Path(trainer.args.output_dir)
    checkpoint = newest_checkpoint(state)
    start = step_of(checkpoint)
    metrics.truncate(start)
    tokens = tokens_after_steps([row.tokens for row in accounts], trainer.order, batch_size)
    laps, trainer.max_seconds = trainer.laps, settings.max_seconds
    laps.seconds.update({**(read_json(checkpoint / COMPLETE) if checkpoint else {}), **(before or {})})
    trainer.remove_callback(PrinterCallback)
    with Progress(len(tokens), label) as progress, ending_in_order() as ending:
        reporter = Reporter(metrics, progress, laps, tokens, evaluation, settings, start, ending)
        trainer.add_callback(reporter)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if reporter.ended:
            raise Terminated
    held_out = reporter.held_out
    if held_out is None:  # resumed behind the last step
        laps.start()
        held_out = evaluation.measure()
        laps.lap("evaluation")
    steps = trainer.state.global_step
    counts = {
        **totals(accounts, trainer.order[: steps * batch_size]),
        "optimizer_steps": steps,
        "tokens_generated": 0,
        **laps.logged,
    }
    return Trained({"steps": steps, "totals": counts}, held_out)

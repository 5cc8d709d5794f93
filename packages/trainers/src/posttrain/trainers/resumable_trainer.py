"""The Trainer of transformers in a fixed order of data, with checkpoints that count only when they are complete.

What every offline method trains with, as a mixin before TRL's trainer. Knows no method: losses are TRL's or the method
file's.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import Trainer

from posttrain.core.files import atomic_write_json, disk_errors
from posttrain.trainers.phases import Laps

COMPLETE = "seconds.json"
"""A file written last into a Trainer checkpoint: the seconds of training up to it, by phase. A folder without it is
what a crash left."""


TRAINED = "trained.safetensors"
"""What a Trainer checkpoint holds of a model that is frozen in part."""


class FixedOrder(Sampler[int]):
    """Yields a list of indices as it is."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


class ResumableTrainer(Trainer):
    """Mixin before a TRL trainer: set `order` after construction, then `train(resume_from_checkpoint=…)`."""

    order: Sequence[int]
    max_seconds: float | None = None
    """When set, learning rates after the first step reach 0 with these seconds, or with the last step where that comes
    first."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for parameter in self._trained().values():
            # TRL makes adapters over 4-bit weights bf16, which would round small steps away.
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        self.laps = Laps()

    def _get_train_sampler(self, train_dataset: Any = None) -> FixedOrder:
        return FixedOrder(self.order)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        scheduler: Any = super().create_scheduler(num_training_steps, optimizer)
        if self.max_seconds is not None:
            scheduler.lr_lambdas = [self._in_time(rate, self.max_seconds) for rate in scheduler.lr_lambdas]
        return scheduler

    def _in_time(self, rate: Callable[[int], float], max_seconds: float) -> Callable[[int], float]:
        return lambda step: min(rate(step), max(0.0, 1 - self.laps.elapsed / max_seconds))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        trained = self._trained()
        if len(trained) == sum(1 for _ in self.model.parameters()):
            super()._save(output_dir, state_dict)
            return
        # Frozen weights are the start checkpoint's: a state holds what trains.
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in trained.items()}
        safetensors.torch.save_file(tensors, Path(output_dir) / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        file = Path(resume_from_checkpoint) / TRAINED
        if not file.exists():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        kept = safetensors.torch.load_file(file)
        with torch.no_grad():
            for name, parameter in self._trained().items():
                parameter.copy_(kept[name])

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.laps.lap("update")
        # TRL's own adds a model card to each; the exported checkpoint is written elsewhere.
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with disk_errors(folder):
            Trainer._save_checkpoint(self, model, trial)
        self.laps.lap("save")
        atomic_write_json(folder / COMPLETE, self.laps.seconds)


class TokenisedTrainer(ResumableTrainer):
    """The same for data that come tokenised, with the reference's log-probabilities where those are needed: TRL must
    prepare nothing.

    A step's loss is the mean over its examples, however it is split: `compute_loss` gets the number of all of them as
    `num_items_in_batch`, and gives its micro-batch's share. A short last one must not weigh its examples more.
    """

    loss_is_scaled_for_ga = True  # each micro-batch gives its share of the step's mean

    def examples_in(self, batch: Any) -> int:
        """Examples of a micro-batch."""
        raise NotImplementedError

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The micro-batches of a step and their number of examples."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(map(self.examples_in, batches))

    def _prepare_dataset(self, dataset: Dataset, *more: Any, **options: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *more: Any, **options: Any) -> Dataset:
        return dataset


def newest_checkpoint(state: Path) -> Path | None:
    """The complete checkpoint of the highest step below `state`; incomplete ones are removed."""
    found: dict[int, Path] = {}
    for folder in state.glob("checkpoint-*"):
        if (folder / COMPLETE).exists():
            found[int(folder.name.removeprefix("checkpoint-"))] = folder
        else:
            shutil.rmtree(folder)
    return found[max(found)] if found else None


def step_of(checkpoint: Path | None) -> int:
    """The step that a checkpoint was made after, 0 for none."""
    return int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0

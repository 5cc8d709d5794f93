"""The state of an online run on disk: everything that a killed run needs to end as if it had not been killed.

What is trained of policy and extra modules (an adapter without its base), Accelerate's optimiser and generators;
`Position` adds where the loop stands and the method's own state. Each save is a folder of its own that appears whole;
only the newest is kept.
"""

import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from torch import nn

from posttrain.core.errors import WorkError
from posttrain.core.files import atomic_directory
from posttrain.trainers.online_method import OnlineMethod


class Position:
    """Where the loop stands; in the form that Accelerate saves."""

    def __init__(self, method: OnlineMethod) -> None:
        self.step = 0
        """Updates done; the weights in training are the policy's version of this number."""
        self.cursor = 0
        """Prompts taken so far."""
        self.engine_agrees = False
        """Whether the engine's log-probabilities of the last step were the trainer's."""
        self._method = method

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and the method's state."""
        return {
            "step": self.step,
            "cursor": self.cursor,
            "engine_agrees": self.engine_agrees,
            "method": self._method.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        self.step, self.cursor, self.engine_agrees = state["step"], state["cursor"], state["engine_agrees"]
        self._method.load_state_dict(state["method"])


def save_only_what_is_trained(accelerator: Accelerator) -> None:
    """From here on `accelerator` saves and loads the parameters of its models that take gradients, and no others: what
    is frozen is in the start checkpoint."""

    def save(models: list[nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        for number, model in enumerate(models):
            tensors = {name: p.detach().cpu().contiguous() for name, p in _trained(model).items()}
            safetensors.torch.save_file(tensors, _file(folder, number))
        weights.clear()  # which Accelerate would write whole

    def load(models: list[nn.Module], folder: str) -> None:
        for number, model in enumerate(models):
            _load(_trained(model), _file(folder, number))
        models.clear()

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _file(folder: str, number: int) -> Path:
    return Path(folder) / f"trained_{number}.safetensors"


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def _load(trained: dict[str, nn.Parameter], file: Path) -> None:
    if not file.is_file():
        raise WorkError(f"the run's state lacks {file}; start the run anew (--fresh)")
    saved = safetensors.torch.load_file(file)
    if saved.keys() != trained.keys():
        other = sorted(saved.keys() ^ trained.keys())[0]
        raise WorkError(f"{file} is of a model with other trained weights ({other}); start the run anew (--fresh)")
    for name, tensor in saved.items():
        trained[name].copy_(tensor)


def save_state(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Saves all that was prepared or registered with `accelerator` as `folder/step-N`, and drops older saves; files in
    `folder` are somebody else's."""
    newest = folder / f"step-{step:06d}"
    with atomic_directory(newest) as new:
        accelerator.save_state(str(new), safe_serialization=True)
    for old in folder.iterdir():
        if old != newest and old.is_dir():
            shutil.rmtree(old)


def load_state(accelerator: Accelerator, folder: Path) -> bool:
    """Loads the newest save, if there is one; says whether."""
    saves = sorted(folder.glob("step-*")) if folder.is_dir() else []
    if saves:
        accelerator.load_state(str(saves[-1]))
    return bool(saves)

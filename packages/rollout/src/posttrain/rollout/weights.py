"""Weights from a safetensors file into a running model: checked completely before anything changes.

Names, shapes, kinds and finiteness are checked; the first wrong one is named. Tied weights may be left out. A PEFT
adapter is merged into the base weights (`adapter.py`), so what a version means is always full weights.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from posttrain.core.errors import RequestError
from posttrain.rollout.adapter import CONFIG, merge_adapter


def expected_shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    """The model's own parameter and persistent buffer names with their shapes, tied ones included."""
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Names of parameters that an earlier name has already, each with that name."""
    first: dict[int, str] = {}
    tied = {}
    # By identity, not by storage: a model that only tells its shapes has none.
    for name, tensor in model.state_dict(keep_vars=True).items():
        known = first.setdefault(id(tensor), name)
        if known != name:
            tied[name] = known
    return tied


def read_weights(
    path: Path, model: PreTrainedModel, base: Callable[[], Mapping[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """A full set of weights for `model` from a file that holds it, or an adapter for the weights that `base` gives.

    RequestError names the first thing that does not fit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            if (config := (file.metadata() or {}).get(CONFIG)) is not None:
                tensors = merge_adapter(file, config, base(), tied_names(model))
            else:
                tensors = _full_weights(file, model)
    except SafetensorError as error:
        raise RequestError(f"the body is not a safetensors file: {error}") from None
    _check_values(tensors, tied_names(model))
    return tensors


def _full_weights(file: safe_open, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    names = set(file.keys())
    _check_names(names, model)
    shapes = expected_shapes(model)
    for name in shapes:
        if name in names and (found := tuple(file.get_slice(name).get_shape())) != tuple(shapes[name]):
            raise RequestError(f"'{name}' has shape {list(found)}, the model's is {list(shapes[name])}")
    # Another file must not appear under the tensors later, so they are copied out of the map.
    return {name: file.get_tensor(name).clone() for name in shapes if name in names}


def _check_names(names: set[str], model: PreTrainedModel) -> None:
    expected, tied = expected_shapes(model), tied_names(model)
    for name in expected:
        if name not in names and name not in tied:
            raise RequestError(f"'{name}' is missing; send full weights under the model's own parameter names")
    for name in sorted(names):
        if name not in expected:
            raise RequestError(f"'{name}' is no parameter of this model")


def _check_values(tensors: Mapping[str, torch.Tensor], tied: Mapping[str, str]) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise RequestError(f"'{name}' holds {str(tensor.dtype).removeprefix('torch.')}, not floating point numbers")
        if not bool(torch.isfinite(tensor).all()):
            raise RequestError(f"'{name}' holds a value that is not finite")
        if name in tied and tied[name] in tensors and not torch.equal(tensor, tensors[tied[name]]):
            raise RequestError(f"'{name}' differs from '{tied[name]}', and this model ties them")


@torch.no_grad()
def load_weights(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies checked tensors into the model's own, in place, in its dtype and on its device."""
    state = model.state_dict()
    for name, tensor in tensors.items():
        state[name].copy_(tensor)

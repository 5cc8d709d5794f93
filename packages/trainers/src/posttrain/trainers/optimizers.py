"""Optimisers of every stage: AdamW, or Muon on the layers' matrices with AdamW on all else.

Takes a model (or its named parameters) and gives one `torch.optim.Optimizer`, so that Trainer, Accelerate, schedulers
and checkpoints see a single object whichever was chosen. Holds no schedule and clips no gradient.

Why Muon at all: at the nano scale it learns arithmetic from a quarter of the tokens that AdamW alone needs
(Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; torch has it from 2.9 on as `torch.optim.Muon`).
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import torch
from torch import nn

NamedParameters = Iterable[tuple[str, nn.Parameter]]

LAYER = re.compile(r"(^|\.)(layers|h|blocks)\.\d+\.")
"""A parameter inside a numbered transformer block. Embeddings, heads and final norms lie outside of it."""


def split_parameters(
    parameters: nn.Module | NamedParameters,
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Sort trainable parameters into (matrices of layers, other matrices, vectors), each once and in their order.

    Other matrices are embeddings and heads; vectors are norms and biases.
    """
    named = parameters.named_parameters() if isinstance(parameters, nn.Module) else parameters
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    seen: set[int] = set()
    for name, parameter in named:
        if not parameter.requires_grad or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif parameter.ndim == 2 and LAYER.search(name):
            matrices.append(parameter)
        else:
            others.append(parameter)
    return matrices, others, vectors


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW` behind one optimiser's interface.

    Every parameter group carries `algorithm` ("muon" or "adamw") beside that algorithm's own settings, so a scheduler
    that scales `group["lr"]` scales both rates alike. The two inner optimisers share this object's groups and state:
    what `state_dict()` gives is everything, and `load_state_dict` restores it bit for bit.
    """

    def __init__(self, muon_groups: list[dict[str, Any]], adamw_groups: list[dict[str, Any]]) -> None:
        """Groups as the two optimisers take them: {"params": [...], "lr": ..., ...}.

        Raises ValueError when there is no group, or when a Muon parameter is not a matrix.
        """
        inner: list[torch.optim.Optimizer] = []
        if muon_groups:
            inner.append(torch.optim.Muon([{**group, "algorithm": "muon"} for group in muon_groups]))
        if adamw_groups:
            inner.append(torch.optim.AdamW([{**group, "algorithm": "adamw"} for group in adamw_groups]))
        super().__init__([group for optimizer in inner for group in optimizer.param_groups], {})
        self._link()

    def _link(self) -> None:
        """Make inner optimisers that work on this object's own groups and state.

        `load_state_dict`, copying and unpickling replace both, so this runs again after them.
        """
        kinds: dict[str, type[torch.optim.Optimizer]] = {"muon": torch.optim.Muon, "adamw": torch.optim.AdamW}
        self._inner: list[torch.optim.Optimizer] = []
        for name, kind in kinds.items():
            groups = [group for group in self.param_groups if group["algorithm"] == name]
            if groups:
                optimizer = kind([{"params": groups[0]["params"]}])
                optimizer.param_groups = groups
                optimizer.state = self.state
                self._inner.append(optimizer)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._link()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; it must say its `algorithm` and hold all of that algorithm's settings."""
        if param_group.get("algorithm") not in ("muon", "adamw"):
            raise ValueError(f"group['algorithm'] is {param_group.get('algorithm')!r}; say 'muon' or 'adamw'")
        super().add_param_group(param_group)
        if hasattr(self, "_inner"):
            self._link()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; the closure, if any, is evaluated once, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self._inner:
            optimizer.step()
        return loss


def build_optimizer(
    parameters: nn.Module | NamedParameters,
    name: Literal["adamw", "muon"] = "adamw",
    *,
    lr: float = 1e-3,
    muon_lr: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Build the optimiser of a stage over all trainable parameters.

    "adamw": AdamW with `lr` on everything. "muon": Muon with `muon_lr` (momentum .95, Nesterov) on the matrices of the
    layers and AdamW with `lr` on embeddings, heads, norms and biases. `weight_decay` is decoupled and spares norms and
    biases, as is usual. Raises ValueError for another name or when nothing is trainable.
    """
    if name not in ("adamw", "muon"):
        raise ValueError(f"optimizer is {name!r}; choose 'adamw' or 'muon'")
    matrices, others, vectors = split_parameters(parameters)
    if not (matrices or others or vectors):
        raise ValueError("no parameter requires a gradient: nothing to optimise")
    muon_groups: list[dict[str, Any]] = []
    if name == "adamw":
        others = matrices + others
    elif matrices:
        muon_groups.append({"params": matrices, "lr": muon_lr, "weight_decay": weight_decay})
    adamw_groups: list[dict[str, Any]] = [
        {"params": chosen, "lr": lr, "betas": betas, "weight_decay": decay}
        for chosen, decay in ((others, weight_decay), (vectors, 0.0))
        if chosen
    ]
    if name == "adamw":
        return cast(torch.optim.Optimizer, torch.optim.AdamW(adamw_groups))
    return MuonAdamW(muon_groups, adamw_groups)

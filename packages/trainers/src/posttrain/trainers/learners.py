"""The models of an online run and their one optimiser, on Accelerate: policy, the method's extra modules, reference.

Knows how to load, step, export and hand out weights; knows nothing of rollouts, rewards or losses. With an adapter
(`adapters.py`) the frozen weights are there once: the reference is the policy with its adapter switched off, and the
extra modules' transformers share them.
"""

import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from posttrain.core.errors import Diverged, RequestError
from posttrain.core.seeds import derive_seed
from posttrain.data.chat import load_tokenizer
from posttrain.trainers.activation_checkpointing import recompute_activations
from posttrain.trainers.adapters import adapter_bytes, add_adapter, merged_state, without_adapter
from posttrain.trainers.models import load_policy, write_weights
from posttrain.trainers.online_method import REF_LOGPROBS, OnlineMethod
from posttrain.trainers.online_settings import OnlineSettings
from posttrain.trainers.packed_attention import layout_for, read_packed
from posttrain.trainers.padded_rows import PaddedRows
from posttrain.trainers.stage import StageInputs
from posttrain.trainers.start_model import load_options, ready_to_train
from posttrain.trainers.state import save_only_what_is_trained


class Learners:
    """Everything with parameters. Dropout stays off: old and new log-probabilities must be of the same function."""

    def __init__(self, method: OnlineMethod, settings: OnlineSettings, inputs: StageInputs) -> None:
        self._settings = settings
        # Accelerate has one state a process, and an earlier stage of this process may have had another precision.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(mixed_precision="no" if settings.precision == "fp32" else settings.precision)
        if self.accelerator.num_processes > 1:
            raise RequestError(
                f"online methods train in one process, not in {self.accelerator.num_processes}, each of which would "
                "sample and push for itself: start one without a launcher"
            )
        self.device = self.accelerator.device
        save_only_what_is_trained(self.accelerator)
        self.tokenizer = load_tokenizer(inputs.start)
        policy, packed = self._load(inputs.start)
        extra = method.extra_modules(policy)
        ready_to_train(policy, settings, inputs.seed)
        if settings.adapter:
            for name, module in extra.items():
                add_adapter(module.module, settings.adapter, derive_seed(inputs.seed, name), module.new_modules)
        modules = {"policy": policy, **{name: module.module for name, module in extra.items()}}
        self._peak_lrs = [settings.lr, *(module.lr for module in extra.values())]
        groups = [
            {"params": [p for p in module.parameters() if p.requires_grad], "lr": lr}
            for module, lr in zip(modules.values(), self._peak_lrs, strict=True)
        ]
        optimizer = torch.optim.AdamW(groups, betas=settings.betas, weight_decay=0.0, fused=True)
        *prepared, self._optimizer = self.accelerator.prepare(*modules.values(), optimizer)
        self._modules = {name: module.eval() for name, module in zip(modules, prepared, strict=True)}
        self.policy = self._modules["policy"]
        self.extra = {name: self._modules[name] for name in extra}
        self.reference: Any = None
        if REF_LOGPROBS in method.needs:
            if inputs.reference is None:
                raise RequestError("the method needs a reference checkpoint to measure KL from; give one")
            if settings.adapter and inputs.reference.resolve() == inputs.start.resolve():
                self.reference = _AdapterOff(self.policy)
            else:
                reference, reads_packed = self._load(inputs.reference)
                packed = packed and reads_packed
                self.reference = reference.requires_grad_(False).to(self.device)
        if settings.gradient_checkpointing:
            for module in self._modules.values():
                recompute_activations(module)
        self.layout = layout_for(packed) if settings.attention == "sdpa" else PaddedRows()

    def _load(self, checkpoint: Path) -> tuple[Any, bool]:
        """A checkpoint's model as the settings say, and whether it reads packed rows; in fp32, but frozen weights under
        an adapter in the run's precision."""
        policy = load_policy(checkpoint, **load_options(self._settings)).eval()
        packed = self._settings.attention == "sdpa" and read_packed(policy)  # of which bf16 would say too little
        if self._settings.adapter and self._settings.precision == "bf16":
            for parameter in policy.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        return policy, packed

    def set_learning_rates(self, step: int) -> float:
        """Sets all rates for a step, a pure function of its number; returns the policy's."""
        settings = self._settings
        warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
        done = step / max(settings.share_of(settings.steps) - 1, 1)
        factor = warm * (1 - done * (1 - settings.final_lr_fraction))
        for group, peak in zip(self._optimizer.param_groups, self._peak_lrs, strict=True):
            group["lr"] = peak * factor
        return self._peak_lrs[0] * factor

    def step(self) -> dict[str, float]:
        """Clips each module's gradient by itself, steps, clears the gradients; returns the norms before clipping.

        Diverged, before anything has changed, when a gradient is not finite.
        """
        norms = {}
        for name, module in self._modules.items():
            norm = self.accelerator.clip_grad_norm_(module.parameters(), self._settings.max_grad_norm)
            norms[f"grad_norm/{name}"] = float(norm)
        broken = [name for name, norm in norms.items() if not math.isfinite(norm)]
        if broken:
            raise Diverged(
                f"{', '.join(broken)} is not finite; lower lr (or critic_lr) or max_grad_norm, then start again"
            )
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norms

    def plain_policy(self) -> Any:
        """The policy as transformers made it, without Accelerate's wrappers."""
        return self.accelerator.unwrap_model(self.policy)

    def write_full(self, file: Path, dtype: torch.dtype) -> None:
        """Writes the policy's weights, merged where there is an adapter, under the start's own names as one safetensors
        file; tied ones once."""
        named = self.plain_policy().named_parameters()
        if self._settings.adapter:
            once = {id(tensor): (name, tensor) for name, tensor in reversed(merged_state(self.policy).items())}
            named = iter(once.values())
        write_weights(named, file, dtype)

    def write_adapter(self, file: Path) -> None:
        """Writes the adapter alone, in fp32 whatever the base has: it is small, and what is added to it exact."""
        file.write_bytes(adapter_bytes(self.plain_policy()))


class _AdapterOff:
    """The model that training started from, as the policy without its adapter: no second set of weights."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    def __call__(self, **inputs: Any) -> Any:
        with without_adapter(self._policy):
            return self._policy(**inputs)

"""Settings of how a model is held while it trains: adapter, precision, attention, memory. Every training method has
them, and a recipe may say them once for all.

What they do is adapters.py's (which weights train) and start_model.py's (how the start checkpoint is loaded).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from posttrain.core.config import Settings
from posttrain.trainers.run_length import RunLength

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The matrices of a block of Llama, Qwen2, Mistral and their like."""


class Adapter(Settings):
    """A low-rank adapter beside frozen weights (Hu et al. 2021): W + alpha / r · B A. r 16 and alpha 32 are
    the reference lab's."""

    kind: Literal["lora", "qlora"] = "lora"
    """`qlora`: the frozen weights are held in 4 bits, NF4 with double quantisation (Dettmers et al. 2023), by
    bitsandbytes."""
    r: int = Field(16, ge=1)
    """Rank."""
    alpha: int = Field(32, ge=1)
    """The update is scaled by alpha / r."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Of the adapter's input while training (QLoRA's .05 for models of 13B and less)."""
    target_modules: tuple[str, ...] = Field(LINEAR_LAYERS, min_length=1)
    """Names of the linear modules that get one: all of a block, as QLoRA found necessary to equal full fine-tuning."""


def read_adapter(value: Any) -> Any:
    """What a recipe says of an adapter, as `Adapter | None` takes it: `full`, `lora` or `qlora` for a whole section.

    ValueError for another word.
    """
    if not isinstance(value, str):
        return value
    if value == "full":
        return None
    if value in ("lora", "qlora"):
        return {"kind": value}
    raise ValueError("must be full, lora or qlora, or a section with kind, r, alpha, dropout, target_modules")


class ModelSettings(RunLength):
    """How the model is held. None of it is a method's mathematics."""

    OPERATIONAL: ClassVar[frozenset[str]] = frozenset({"attention", "gradient_checkpointing", "liger"})

    adapter: Adapter | None = None
    """`lora` or `qlora`, or a section of its settings; `full` (None) trains all weights."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: mixed precision. Weights that train stay fp32; under an adapter the frozen ones are held in bf16. Slower
    than fp32 on a CPU without AMX."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """transformers' attention. Rows without padding, which share their prompts, are read with `sdpa` only; the others
    pad."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    liger: bool = False
    """Liger's Triton kernels (Hsu et al. 2024) for norms, rotary positions and MLPs; on a GPU only."""

    @field_validator("adapter", mode="before")
    @classmethod
    def _adapter_in_a_word(cls, value: Any) -> Any:
        return read_adapter(value)

    def definition(self) -> dict[str, Any]:
        """All that changes the result. Full fine-tuning says nothing of adapters: its hashes are older than they."""
        found = super().definition()
        if self.adapter is None:
            del found["adapter"]
        return found


def asks_adapter(said: Mapping[str, Any]) -> bool:
    """Whether settings that are not validated yet ask for an adapter."""
    return said.get("adapter") not in (None, "full")

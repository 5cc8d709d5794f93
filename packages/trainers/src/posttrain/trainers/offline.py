"""Settings that all offline methods share: how to optimise, how much at a time, how often to look."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from posttrain.trainers.model_settings import ModelSettings, asks_adapter


class OfflineSettings(ModelSettings):
    """An optimiser over fixed data, a few passes of it. Defaults are those of the nano lab."""

    OPERATIONAL: ClassVar[frozenset[str]] = ModelSettings.OPERATIONAL | {"eval_every", "log_every", "save_every"}

    epochs: int = Field(2, ge=1)
    """Passes over the training data."""
    batch_size: int = Field(32, ge=1)
    """Examples a step (a pair or a ranking is one example)."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Examples on the device at once, None for the whole batch; must divide batch_size. The loss does not depend on
    it."""
    bucket: int = Field(8, ge=1)
    """Batches sorted by length together, to pad less; 1 for none."""
    max_length: int = Field(256, ge=8)
    """Longest sequence in tokens, prompt included."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon on the matrices of the layers, AdamW on everything else (posttrain.trainers.optimizers). With an
    adapter `adamw` unless said otherwise, and nothing else: a low-rank factor is no weight matrix to orthogonalise."""
    lr: float = Field(5e-4, gt=0)
    """Peak learning rate of AdamW; it decays linearly to 0."""
    muon_lr: float = Field(0.01, gt=0)
    """Peak learning rate of Muon."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, norms and biases excepted."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Share of the steps with a rising learning rate."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    held_out: float = Field(0.02, gt=0, lt=1)
    """Share of the training data held out when no validation data is given."""
    eval_every: int = Field(100, ge=1)
    """Steps between evaluations on the held-out data; one more follows the last step."""
    log_every: int = Field(10, ge=1)
    """Steps between rows of metrics.jsonl."""
    save_every: int = Field(100, ge=1)
    """Steps between points that a killed run resumes from."""

    @property
    def unread(self) -> frozenset[str]:
        """Fields that the others leave without effect."""
        return frozenset() if self.optimizer == "muon" else frozenset({"muon_lr"})

    @model_validator(mode="before")
    @classmethod
    def _adapters_take_adamw(cls, said: Any) -> Any:
        if isinstance(said, dict) and asks_adapter(said) and "optimizer" not in said:
            return {**said, "optimizer": "adamw"}
        return said

    @model_validator(mode="after")
    def _no_muon_on_adapters(self) -> Self:
        if self.adapter is not None and self.optimizer == "muon":
            raise ValueError("optimizer: muon is for whole weight matrices, not an adapter's factors; use adamw")
        return self

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} must divide batch_size {self.batch_size}")
        return self

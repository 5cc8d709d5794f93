"""What is planned for one arm and seed: its stages in the order they run, and the rows of its table. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.core.config import Settings
from posttrain.core.runs import RunDirectory, StageIdentity
from posttrain.data.sources import Source
from posttrain.lab.arms import Arm, PairsKind
from posttrain.lab.models import BaseModel
from posttrain.lab.recipe import Recipe

BASE, REFERENCE = "base", "sft"
"""Rows that every table has."""


@dataclass(frozen=True)
class Stage:
    """One node: a method with its settings, where it starts, its data, and its directory."""

    method: str
    settings: Settings
    identity: StageIdentity
    run: RunDirectory
    start: Path
    reference: Path | None = None
    source: Source | None = None
    validation: Source | None = None
    samples: bool = False
    """Whether it samples from the policy service, which must then hold the checkpoint in `start`."""
    reward_sources: tuple[str, ...] = ()
    """The reward sources it asks for; none: it needs no reward service."""
    data: tuple[str, ...] = ()
    """Fields of the recipe's `data` that it reads itself."""

    @property
    def trains_adapter(self) -> bool:
        """Whether it trains an adapter, which a policy service merges into what it was started with."""
        return getattr(self.settings, "adapter", None) is not None


@dataclass(frozen=True)
class Row:
    """What stands in a line of the table: a checkpoint, or (`choice`) the best of several samples of one."""

    name: str
    identity: StageIdentity
    run: RunDirectory
    checkpoint: Path
    """Its weights; a choice's are those that it samples from."""
    arm: Arm | None = None
    """None for the base, and for a row that joins from other runs."""
    before: tuple[RunDirectory, ...] = ()
    """For a row that joins from other runs: the stages that it needed and its own, in order."""

    @property
    def choice(self) -> bool:
        """Whether it is a choice among samples and no checkpoint of its own."""
        return self.arm is not None and self.arm.described.makes == "choice"


@dataclass(frozen=True)
class Plan:
    """All stages in the order they run, and the rows of the table."""

    recipe: Recipe
    method: str
    seed: int
    base: BaseModel
    rows: tuple[Row, ...]
    stages: tuple[Stage, ...]
    last: Stage
    """The stage that was asked for."""
    reward_model: Path | None = None
    """The checkpoint of the recipe's own reward model, where the plan has one."""
    reward_identity: str | None = None
    """What identifies the learned reward: that model's fingerprint, or the digest that a running service gives."""
    gold_identity: str | None = None
    """The version or digest of the gold source."""
    judges: Mapping[str, str | None] = field(default_factory=dict)
    """What identifies each of the recipe's judges, as for the learned reward and the gold source."""
    pairs: Mapping[PairsKind, StageIdentity] = field(default_factory=dict)
    """By kind of pairs the stage that makes them, where the plan has one."""
    external_rewards: Mapping[str, str] = field(default_factory=dict)
    """The sources of the running reward service that is used instead of an own one; empty without one."""

    def needed(self, identity: StageIdentity) -> list[Stage]:
        """The stages of an identity and its ancestors, in the order in which they run."""
        wanted, queue = set(), [identity]
        while queue:
            one = queue.pop()
            wanted.add(one.fingerprint)
            queue += one.parents
        return [stage for stage in self.stages if stage.identity.fingerprint in wanted]

    @property
    def reference(self) -> Row:
        """What KL is measured from: the SFT policy."""
        return next(row for row in self.rows if row.name == REFERENCE)

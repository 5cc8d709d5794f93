"""What a row cost: its own stage, and everything that had to be done before it, as provenance recorded it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.lab.recipe import Price

COUNTS = ("prompts_seen", "tokens_trained", "tokens_generated", "optimizer_steps")


@dataclass(frozen=True)
class RowCost:
    """Means over seeds. Tokens are without padding."""

    prompts_seen: float
    tokens_trained: float
    tokens_generated: float
    optimizer_steps: float
    seconds: float
    """Wall time of the row's own stage."""
    phases: dict[str, float]
    """Seconds by phase of the row's own stage, where it measures them."""
    peak_memory_bytes: float
    """Of the process tree; the largest of the seeds."""
    machine_hours: float
    """Core-hours, or GPU-hours where a GPU did the work, of the row's own stage."""
    all_machine_hours: float
    """The same of its own stage and of all that it needed: what the row would cost by itself."""
    on_gpu: bool
    price: float | None
    """Of the wall time of its own stage and all that it needed, where the recipe has a price for an hour."""
    resumed: bool
    """Whether a run was killed and resumed: what it cost then counts from the last start and is a lower bound."""
    any_resumed: bool = False
    """Whether that happened to it or to a stage before it."""


def row_cost(chains: Sequence[Sequence[dict[str, Any]]], price: Price | None) -> RowCost | None:
    """The cost of a row from the provenances of its stages, by seed, each in order with its own stage last.

    None where there is no stage (the base).
    """
    chains = [chain for chain in chains if chain]
    if not chains:
        return None
    own = [chain[-1] for chain in chains]
    totals = [record["summary"].get("totals", {}) for record in own]
    phases = sorted({key for total in totals for key in total if key.startswith("seconds/")})
    wall = [sum(record["cost"]["wall_seconds"] for record in chain) for chain in chains]
    return RowCost(
        **{name: _mean([total.get(name, 0) for total in totals]) for name in COUNTS},
        seconds=_mean([record["cost"]["wall_seconds"] for record in own]),
        phases={key.removeprefix("seconds/"): _mean([total.get(key, 0.0) for total in totals]) for key in phases},
        peak_memory_bytes=max(record["cost"]["peak_memory_bytes"] for record in own),
        machine_hours=_mean([_machine_hours(record) for record in own]),
        all_machine_hours=_mean([sum(map(_machine_hours, chain)) for chain in chains]),
        on_gpu=any("gpu_hours" in record["cost"] for record in own),
        price=_mean(wall) / 3600 * price.per_hour if price else None,
        resumed=any(record.get("resumed", False) for record in own),
        any_resumed=any(record.get("resumed", False) for chain in chains for record in chain),
    )


def _machine_hours(record: dict[str, Any]) -> float:
    cost = record["cost"]
    return float(cost.get("gpu_hours", cost["core_seconds"] / 3600))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

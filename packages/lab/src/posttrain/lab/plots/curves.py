"""Curves from what runs logged while they trained: one a row, the mean over its seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Log = Sequence[Mapping[str, Any]]
"""The rows of a metrics.jsonl."""


@dataclass(frozen=True)
class Curve:
    """Points in order. With several seeds x and y are their means, and `low` and `high` the extremes of y."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def step_curve(logs: Sequence[Log], x: str, y: str) -> Curve | None:
    """`y` against `x` at the steps where every seed has both: no jump where a seed ended earlier. None without any."""
    return _mean([{row["step"]: point for row in log if (point := _point(row, x, y))} for log in logs])


def place_curve(logs: Sequence[Log], x: str, y: str) -> Curve | None:
    """The same, the first measurement of each seed taken with the first, the last shared one with the last.

    For what is measured every so many steps and at the end, where seeds end at different steps.
    """
    return _mean([dict(enumerate(point for row in log if (point := _point(row, x, y)))) for log in logs])


def _point(row: Mapping[str, Any], x: str, y: str) -> tuple[float, float] | None:
    values = row.get(x), row.get(y)
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return values  # type: ignore[return-value]


def _mean(seeds: Sequence[Mapping[int, tuple[float, float]]]) -> Curve | None:
    shared = sorted(set.intersection(*(set(points) for points in seeds))) if seeds else []
    if not shared:
        return None
    xs = [[points[key][0] for points in seeds] for key in shared]
    ys = [[points[key][1] for points in seeds] for key in shared]
    return Curve(
        tuple(sum(values) / len(values) for values in xs),
        tuple(sum(values) / len(values) for values in ys),
        tuple(map(min, ys)),
        tuple(map(max, ys)),
    )

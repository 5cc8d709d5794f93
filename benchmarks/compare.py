"""Whether a benchmark has become slower than a stored one: a pure function of two records' `benchmarks`.

Compared are times in units of the calibration kernel, so that another load on the machine changes both. A slow-down
counts when it exceeds what the measured noise of both records allows, and is large enough to matter at all.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

STANDARD_ERRORS = 4.0
"""How many standard errors a slow-down must exceed: some thirty benchmarks are looked at each time, and the noise is
known from a few runs only."""
SMALLEST = 0.10
"""A slow-down below this share is never reported: another layout of the same code in memory can make as much."""

Verdict = Literal["same", "slower", "faster", "new", "gone", "changed"]


@dataclass(frozen=True)
class Comparison:
    """One benchmark in both records. `slowdown` is new over old time, 1 for none; `allowed` is where noise ends."""

    name: str
    verdict: Verdict
    slowdown: float = 1.0
    allowed: float = 1.0


def compare(baseline: Mapping[str, Any], now: Mapping[str, Any]) -> list[Comparison]:
    """Each benchmark of either record, in the baseline's order and then the new ones.

    `changed`: it does another amount of work, or on other threads, than the baseline's, so times say nothing.
    """
    typical = median(entry["noise"] for entry in baseline.values()) if baseline else 0.0
    comparisons = []
    for name, old in baseline.items():
        new = now.get(name)
        if new is None:
            comparisons.append(Comparison(name, "gone"))
        elif any(old[key] != new[key] for key in ("unit", "work", "threads")):
            comparisons.append(Comparison(name, "changed"))
        else:
            comparisons.append(_compare(name, old, new, typical))
    return comparisons + [Comparison(name, "new") for name in now if name not in baseline]


def _compare(name: str, old: Mapping[str, Any], new: Mapping[str, Any], typical: float) -> Comparison:
    slowdown = median(new["relative"]) / median(old["relative"])
    # A busier machine is noisier than the baseline's was, and a few runs can agree by chance.
    noise = max(old["noise"], new["noise"], typical)
    error = noise * math.sqrt(1 / len(old["relative"]) + 1 / len(new["relative"]))
    allowed = max(1 + SMALLEST, math.exp(STANDARD_ERRORS * error))
    verdict: Verdict = "slower" if slowdown > allowed else "faster" if slowdown < 1 / allowed else "same"
    return Comparison(name, verdict, slowdown, allowed)

"""Single numbers as the cells of a table and as JSON have them."""

import math
from typing import Any

from posttrain.core.statistics import Estimate

NOTHING = "—"

Cells = list[list[str]]
"""A table, its head first."""


def shown(estimate: Estimate, beside: str, bound: bool = False) -> str:
    """A value; `beside` joins it and its standard error, which an upper bound does not have."""
    return f"≤ {estimate.value:.3f}" if bound else f"{estimate.value:.3f}{beside}{estimate.standard_error:.3f}"


def shown_p(p: float) -> str:
    """Three decimals, and two more beside .05, so that .0496 does not read as .050."""
    if math.isnan(p):
        return NOTHING
    if p < 0.001:
        return "< .001"
    return "1" if p >= 0.9995 else f"{p:.{5 if abs(p - 0.05) < 0.001 else 3}f}".removeprefix("0")


def plain(estimate: Estimate) -> dict[str, Any]:
    """As JSON."""
    return {"value": estimate.value, "standard_error": estimate.standard_error, "n": estimate.n}

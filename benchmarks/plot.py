"""The history of benchmarks as a picture: how each relative time and each ratio to a peer went, run by run.

Takes the lines of history.jsonl of one kind of machine and writes a PNG; small multiples, because thirty lines in one
panel say nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.core.errors import RequestError

COLUMNS = 5


def plot_history(lines: Sequence[Mapping[str, Any]], slug: str, out: Path) -> Path:
    """One panel a benchmark (relative time, first run = 1) and a ratio to a peer. RequestError without a line of it."""
    from matplotlib.figure import Figure

    mine = [line for line in lines if line["machine"] == slug]
    if not mine:
        known = ", ".join(sorted({line["machine"] for line in lines})) or "none"
        raise RequestError(f"the history has no run of machine '{slug}' (it has {known}); run make bench first")
    panels: list[tuple[str, str, list[tuple[int, float]]]] = []
    for key, what in (("ratios", "ratio"), ("relative", "time, first run = 1")):
        for name in dict.fromkeys(name for line in mine for name in line[key]):
            points = [(number, line[key][name]) for number, line in enumerate(mine) if name in line[key]]
            first = points[0][1] if key == "relative" else 1.0
            panels.append((name, what, [(number, value / first) for number, value in points]))
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, 2.2 * rows + 0.6), layout="constrained")
    figure.suptitle(f"{slug}: {len(mine)} runs, {mine[0]['when'][:10]} to {mine[-1]['when'][:10]}")
    for place, (name, what, points) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1)
        axes.axhline(1.0, color="grey", linewidth=0.5)
        axes.set_title(name, fontsize=7)
        axes.set_ylabel(what, fontsize=6)
        axes.set_ylim(0, 1.15 * max(1.0, *(value for _, value in points)))
        axes.set_xlim(-0.5, len(mine) - 0.5)
        axes.set_xticks(range(len(mine)), [(line["commit"] or "?")[:7] for line in mine], rotation=60, fontsize=5)
        axes.tick_params(axis="y", labelsize=6)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    return out

"""What the pictures have in common: size, type, caption, legend, and how one becomes a file."""

import io
import textwrap
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from posttrain.core.files import atomic_write_bytes
from posttrain.lab.plots.styles import Style
from posttrain.lab.table import Table

DPI = 100
WIDTH = 12.0
"""Inches: 1,200 pixels, what a README shows at full size."""
Z95 = 1.96
"""Standard errors to either side of a 95 % interval."""

CAPTION_CHARACTERS = 180
INK, FAINT = "#333333", "#dddddd"


def new_figure(height: float) -> Figure:
    """An empty figure of the common width; `height` in inches."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(w_pad=0.08, h_pad=0.08)  # type: ignore[call-arg]
    return figure


def tidy(axes: Axes, title: str, xlabel: str, ylabel: str = "") -> None:
    """Title, labels and a quiet frame."""
    axes.set_title(title, fontsize=10.5, color=INK)
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=INK)
    axes.tick_params(labelsize=8.5, color=FAINT, labelcolor=INK)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)


def add_caption(figure: Figure, sentences: Sequence[str]) -> None:
    """The lines under a figure that say what is drawn, of how many."""
    text = textwrap.fill(" ".join(sentences), CAPTION_CHARACTERS, break_long_words=False)
    figure.supxlabel(text, x=0.006, ha="left", fontsize=8.5, color=INK)


def add_legend(figure: Figure, styles: Mapping[str, Style], shown: Collection[str], lines: Collection[str]) -> None:
    """Right of the panels the rows of `shown` in the order of `styles`; those of `lines` with their line."""
    handles = [
        Line2D(
            [], [], color=style.color, marker=style.marker, markersize=6, linewidth=1.4,
            markerfacecolor=style.face, markeredgecolor=style.color,
            linestyle=style.line if name in lines else "none", label=name,
        )
        for name, style in styles.items()
        if name in shown
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside right upper", fontsize=9, frameon=False, handlelength=3)


def seeds_in_words(table: Table, shown: Sequence[str]) -> str:
    """`3 seeds (0, 1, 2)`, and which rows of `shown` have others; the base has none."""
    seeds = {row.name: row.seeds for row in table.rows if row.seeds and row.name in shown}
    if not seeds:
        return "no seed"
    most, _ = Counter(seeds.values()).most_common(1)[0]
    words = f"{len(most)} seed{'s' if len(most) > 1 else ''} ({', '.join(map(str, most))})"
    others = [f"{name} {', '.join(map(str, own))}" for name, own in seeds.items() if own != most]
    return f"{words}; other seeds: {'; '.join(others)}" if others else words


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure as PNG, whole or not at all; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    atomic_write_bytes(path, buffer.getvalue())
    return path

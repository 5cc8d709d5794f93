"""Picture 3: the course of training, offline and online methods apart, for they have nothing in common to show.

Offline: how often the implicit reward prefers the better answer of a held-out pair, over tokens trained. Online: the
gold and the learned reward of what was sampled, over steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from posttrain.core.metrics import MetricsLog
from posttrain.lab.arms import LEARNED
from posttrain.lab.collect import Entry
from posttrain.lab.plots.canvas import add_caption, add_legend, new_figure, seeds_in_words, tidy
from posttrain.lab.plots.curves import Curve, Log, place_curve, step_curve
from posttrain.lab.plots.styles import Style
from posttrain.lab.table import Table

CHANCE = 0.5
MARKED = 12
"""A line of more points has a marker at its end only."""


@dataclass(frozen=True)
class TrainingPanel:
    """One quantity over training, by row."""

    key: str
    curves: Mapping[str, Curve]


@dataclass(frozen=True)
class Quantity:
    """What a panel shows of a run's log."""

    title: str
    xlabel: str
    ylabel: str
    x: str
    y: str
    curve: Callable[[Sequence[Log], str, str], Curve | None]


QUANTITIES = {
    "offline": Quantity(
        "Offline: implicit reward", "tokens trained, without padding", "accuracy on held-out pairs",
        "tokens", "held_out_accuracy", place_curve,
    ),
    "gold": Quantity(
        "Online: gold reward", "step", "gold reward, mean of the samples", "step", "gold/mean", step_curve
    ),
    "learned": Quantity(
        "Online: learned reward", "step", "learned reward, mean of the samples",
        "step", f"score/{LEARNED}/mean", step_curve,
    ),
}  # fmt: skip


def training_panels(entries: Sequence[Entry]) -> list[TrainingPanel]:
    """The panels that have a curve."""
    logs = {entry.name: [MetricsLog(row.run.metrics_path).rows() for row, _ in entry.runs] for entry in entries}
    return panels_of_logs(logs)


def panels_of_logs(logs: Mapping[str, Sequence[Log]]) -> list[TrainingPanel]:
    """The same from each row's logs, one a seed. Online are rows that logged a reward while they learnt from it."""
    panels = []
    for key, quantity in QUANTITIES.items():
        learns = "held_out_accuracy" if key == "offline" else "reward/mean"
        curves = {
            name: curve
            for name, of_row in logs.items()
            if all(any(learns in row for row in log) for log in of_row)
            and (curve := quantity.curve(of_row, quantity.x, quantity.y))
        }
        if curves:
            panels.append(TrainingPanel(key, curves))
    return panels


def draw_training(panels: Sequence[TrainingPanel], table: Table, styles: Mapping[str, Style]) -> Figure | None:
    """The picture; None without a panel."""
    if not panels:
        return None
    shown = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    figure = new_figure(max(5.4, 1.2 + 0.22 * len(shown)))
    for place, panel in enumerate(panels):
        _draw_panel(figure.add_subplot(1, len(panels), place + 1), panel, styles)
    add_legend(figure, styles, shown, lines=shown)
    sentences = [f"{seeds_in_words(table, shown)}."]
    if any(curve.low != curve.high for panel in panels for curve in panel.curves.values()):
        sentences += ["Lines: means over seeds; bands: lowest to highest seed."]
    if any(panel.key == "offline" for panel in panels):
        sentences += ["Dotted: chance."]
    if any(panel.key != "offline" for panel in panels):
        sentences += ["Online rewards are of each step's samples on training prompts, raw scores of the source."]
    add_caption(figure, [*sentences, "Axes need not begin at 0."])
    return figure


def _draw_panel(axes: Axes, panel: TrainingPanel, styles: Mapping[str, Style]) -> None:
    quantity = QUANTITIES[panel.key]
    tidy(axes, quantity.title, quantity.xlabel, quantity.ylabel)
    for name, curve in panel.curves.items():
        style = styles[name]
        axes.fill_between(curve.x, curve.low, curve.high, color=style.color, alpha=0.08, linewidth=0, zorder=1)
        axes.plot(
            curve.x, curve.y, color=style.color, linestyle=style.line, linewidth=1.2, marker=style.marker, markersize=6,
            markerfacecolor=style.face, markeredgecolor=style.edge, markeredgewidth=0.6 if style.filled else 1.2,
            markevery=None if len(curve.x) <= MARKED else [-1], zorder=3,
        )  # fmt: skip
    if panel.key == "offline":
        axes.axhline(CHANCE, color="black", linewidth=0.8, linestyle=":")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.margins(x=0.03)

"""What people see of benchmarks: the ratios to peers, the benchmarks themselves, a comparison with the baseline."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from benchmarks.compare import Comparison


def peer_table(peers: Mapping[str, Any]) -> Table:
    """Each side's rate and its ratio to the peer's, measured in turns, with the 95 % interval."""
    table = Table(
        title="Beside others: ratio of rates, the same work in turns (above 1 is faster)",
        box=None,
        title_justify="left",
    )
    for heading in ("peer", "side", "rate", "peer's rate", "unit", "ratio", "95 %"):
        table.add_column(heading, justify="left" if heading in ("peer", "side", "unit") else "right", no_wrap=True)
    for name, result in peers.items():
        for side, (middle, low, high) in result["ratios"].items():
            mine, theirs = result["rates"][side], result["rates"][result["against"]]
            interval = f"{low:.2f} to {high:.2f}"
            table.add_row(name, side, f"{mine:,.4g}", f"{theirs:,.4g}", result["unit"], f"{middle:.2f}", interval)
    return table


def http_lines(peers: Mapping[str, Any]) -> list[str]:
    """The share of a rollout that HTTP and JSON cost, with its 95 % interval, as the policy endpoint was compared."""
    shares = peers.get("policy_endpoint", {}).get("settings", {}).get("http_share", {})
    return [
        f"HTTP and JSON cost {middle:.1%} of a rollout as {side} ({low:.1%} to {high:.1%})"
        for side, (middle, low, high) in shares.items()
    ]


def benchmark_table(benchmarks: Mapping[str, Any]) -> Table:
    """Each benchmark's rate, its time in units of the calibration kernel, and the noise of that."""
    table = Table(title="Benchmarks", box=None, title_justify="left")
    table.add_column("benchmark", no_wrap=True)
    for heading in ("rate", "ms a call", "kernels", "noise"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, entry in benchmarks.items():
        table.add_row(
            Text(name),
            f"{entry['per_second']:,.4g} {entry['unit']}/s",
            f"{1e3 * entry['seconds']:,.4g}",
            f"{median(entry['relative']):,.4g}",
            f"{entry['noise']:.1%}",
        )
    return table


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Each benchmark's slow-down against the baseline, and how much noise alone may make."""
    table = Table(
        title="Against the stored baseline, in units of the calibration kernel", box=None, title_justify="left"
    )
    table.add_column("benchmark", no_wrap=True)
    for heading in ("time now / then", "allowed"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for found in comparisons:
        both = found.verdict in ("same", "slower", "faster")
        numbers = (f"{found.slowdown:.2f}", f"{found.allowed:.2f}") if both else ("", "")
        table.add_row(Text(found.name), *numbers, "" if found.verdict == "same" else found.verdict)
    return table

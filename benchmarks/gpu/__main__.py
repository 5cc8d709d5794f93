"""`python -m benchmarks.gpu`: what a device does with a model of Qwen2.5-0.5B's shape, and what share of its limits.

Writes results/bench/gpu/<device>.json, measured figures only; a projection to an L4 is printed, never stored. The same
command runs on every NVIDIA GPU. It needs torch, transformers and peft, and no TRL.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from benchmarks.commands import run_command
from benchmarks.gpu.devices import DEVICES, L4, Device, project
from benchmarks.gpu.jobs import SMALL, Sizes
from benchmarks.gpu.measure import KINDS, measure_all
from benchmarks.gpu.shapes import QWEN_05B, TINY
from benchmarks.machine import machine, slug
from benchmarks.record import RESULTS, stamp
from posttrain.core.errors import RequestError, suggest
from posttrain.core.files import atomic_write_json

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def measure_device(
    only: Annotated[str, typer.Option(help=f"Of {', '.join(KINDS)}, comma-separated.")] = ",".join(KINDS),
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each job.")] = 5,
    tiny: Annotated[
        bool, typer.Option(help="A tiny model: shows that it works, also without a GPU; stores nothing.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where results lie.")] = RESULTS / "gpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Measure training, rollouts and reward scoring on the GPU of this machine."""
    kinds = tuple(name.strip() for name in only.split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise RequestError(f"unknown kind '{kind}' {suggest(kind, KINDS)}")
    cuda = torch.cuda.is_available()
    if not cuda and not tiny:
        raise RequestError(
            "there is no GPU here that torch can use; ARGS=--tiny shows on the CPU that the programs work"
        )
    disable_progress_bar()
    device = "cuda" if cuda else "cpu"
    name = torch.cuda.get_device_name() if cuda else "CPU"
    limits = DEVICES.get(name)
    config, sizes = (TINY, SMALL) if tiny else (QWEN_05B, Sizes())
    entries, troubles = measure_all(config, sizes, device, limits, kinds, rounds)
    result = {**stamp(), "device": name, "machine": machine(), "model": config.to_diff_dict(), "jobs": entries}
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 140)
    console.print(_table(entries, name, limits))
    if limits is None:
        console.print(f"the limits of '{name}' are not in benchmarks/gpu/devices.py: no shares, no projection")
    for line in troubles:
        console.print(line)
    if tiny:
        console.print("a tiny model: these are no measurements, and nothing was written")
    elif set(kinds) != set(KINDS):
        console.print("a part of the jobs: nothing was written")
    else:
        path = out / f"{slug(name)}.json"
        atomic_write_json(path, result)
        console.print(f"written to {path}", soft_wrap=True)
    if as_json:
        print(json.dumps(result))


def _table(entries: list[dict[str, Any]], name: str, limits: Device | None) -> Table:
    table = Table(title=f"Measured on {name}", box=None, title_justify="left")
    table.add_column("job", no_wrap=True)
    headings = ["rate", "compute", "bandwidth", "peak GiB"]
    projecting = limits is not None and limits is not L4
    for heading in [*headings, *(["L4, projected, not measured"] if projecting else [])]:
        table.add_column(heading, justify="right")
    for entry in entries:
        reached, peak = entry["shares"], entry["peak_memory_gib"]
        row = [
            entry["job"],
            f"{entry['per_second']:,.4g} {entry['unit']}/s",
            f"{reached['compute']:.1%}" if reached else "",
            f"{reached['bandwidth']:.1%}" if reached else "",
            "" if peak is None else f"{peak:.1f}",
        ]
        if projecting:
            assert limits is not None
            row.append(_projected(entry, limits))
        table.add_row(*row)
    return table


def _projected(entry: dict[str, Any], limits: Device) -> str:
    if entry["peak_memory_gib"] * 2**30 > L4.memory:
        return "does not fit"
    rate = project(entry["per_second"], entry["flops"], entry["bytes"], entry["seconds"][0], limits, L4)
    return f"≈ {rate:,.3g} {entry['unit']}/s"


if __name__ == "__main__":
    run_command(app)

"""`python -m benchmarks.gpu.check`: the stages of a run on this machine's GPU, full and LoRA, beside what
`posttrain plan` predicts of their memory.

A random model of Qwen2.5-0.5B's shape goes through SFT, DPO, the reward model, PPO and GRPO in bf16, a few steps each,
by the same command, trainers and services as any run, each stage in a process of its own. Writes
results/bench/gpu/<device>-stages.json; without a GPU nothing is measured and nothing written. How well a model learns
is not looked at: it is random, and so are the rows.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.commands import run_command
from benchmarks.gpu.check_plan import ADAPTERS, CPU, GPU, CheckSizes, StagePlan, stage_plans
from benchmarks.gpu.check_rows import write_rows
from benchmarks.machine import machine, slug
from benchmarks.record import RESULTS, stamp
from posttrain.core.errors import PosttrainError, RequestError, WorkError, suggest
from posttrain.core.files import atomic_write_json, atomic_write_text
from posttrain.core.supervised import SupervisedService
from posttrain.lab.random_models import random_model

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def check_device(
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Two layers on the CPU: shows that it works; stores nothing.")
    ] = False,
    only: Annotated[str, typer.Option(help="Of full, lora, comma-separated.")] = ",".join(ADAPTERS),
    out: Annotated[Path, typer.Option(help="Where results lie.")] = RESULTS / "gpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Run SFT, DPO, RM, PPO and GRPO in bf16 on this machine's GPU; record memory, speed and the plan's prediction."""
    if not cpu and not torch.cuda.is_available():
        reason = "there is no GPU here that torch can use; ARGS=--cpu shows that the stages work"
        print(f"skipped: {reason}", file=sys.stderr)
        if as_json:
            print(json.dumps({"skipped": reason}))
        return
    adapters = [word.strip() for word in only.split(",")]
    if unknown := set(adapters) - set(ADAPTERS):
        raise RequestError(f"--only: unknown '{min(unknown)}' {suggest(min(unknown), ADAPTERS)}")
    sizes = CPU if cpu else GPU
    name = "CPU" if cpu else torch.cuda.get_device_name()
    entries: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="posttrain-gpu-check-") as folder:
        for adapter in adapters:
            entries += run_stages(Path(folder) / adapter, adapter, sizes)
    result = {**stamp(), "device": name, "machine": machine(), "model": sizes.model, "stages": entries}
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 140)
    console.print(_table(entries, name))
    if cpu:
        console.print("two layers on a CPU: these are no measurements, and nothing was written")
    elif set(adapters) != set(ADAPTERS):
        console.print("a part of the stages: nothing was written")
    else:
        path = out / f"{slug(name)}-stages.json"
        atomic_write_json(path, result)
        console.print(f"written to {path}", soft_wrap=True)
    if as_json:
        print(json.dumps(result))
    failed = [f"{entry['stage']} ({entry['adapter']}): {entry['error']}" for entry in entries if entry["error"]]
    if failed:
        raise WorkError(f"{len(failed)} of {len(entries)} stages failed; the first is {failed[0]}")


def run_stages(folder: Path, adapter: str, sizes: CheckSizes) -> list[dict[str, Any]]:
    """An entry a stage; one that fails says why, and those that build on it are left out."""
    base = random_model(sizes.model)
    write_rows(folder, base, sizes)
    plans = {plan.stage: plan for plan in stage_plans(folder, adapter, sizes)}
    entries = []
    with ExitStack() as services:
        urls: list[str] = []
        for name in ("sft", "dpo", "rm", "ppo", "grpo"):
            start = base if name == "sft" else folder / "sft" / "checkpoint"
            if name == "ppo":
                try:
                    urls = _serve(services, folder, start)
                except PosttrainError as error:
                    entries.append(_entry(plans[name], None, f"its services did not start: {error}"))
                    break
            print(f"{name}, {adapter}", file=sys.stderr)
            provenance, failure = _run_stage(plans[name], folder, start, urls)
            entries.append(_entry(plans[name], provenance, failure))
            if failure and name in ("sft", "rm"):
                break
    return entries


def _serve(services: ExitStack, folder: Path, start: Path) -> list[str]:
    """Both services on the device; the options of `posttrain stage` that name them."""
    options = []
    for kind, checkpoint in (("policy", start), ("reward", folder / "rm" / "checkpoint")):
        service = services.enter_context(SupervisedService(kind, [kind, str(checkpoint)], folder / f"{kind}.log"))
        options += [f"--{kind}-url", service.url]
    return options


def _run_stage(plan: StagePlan, folder: Path, start: Path, urls: list[str]) -> tuple[dict[str, Any] | None, str]:
    """A stage by the command that anybody would give: its provenance, or why it failed."""
    settings = folder / f"{plan.stage}.yaml"
    atomic_write_text(settings, yaml.safe_dump(plan.settings))
    command = [sys.executable, "-m", "posttrain.core", "stage", plan.stage, "--from", str(start)]
    command += ["--data", str(plan.data), "--out", str(folder / plan.stage), "--settings", str(settings), "--json"]
    if plan.reads_reference:
        command += ["--reference", str(start)]
    done = subprocess.run([*command, *urls], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it ended without a word"]
        return None, said[-1].removeprefix("error: ")
    return json.loads(done.stdout.splitlines()[-1]), ""


def _entry(plan: StagePlan, provenance: dict[str, Any] | None, error: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "stage": plan.stage,
        "adapter": plan.adapter,
        "settings": plan.settings,
        "predicted_bytes": sum(plan.predicted.values()),
        "predicted_parts": plan.predicted,
        "error": error,
    }
    if provenance:
        totals, cost = provenance["summary"]["totals"], provenance["cost"]
        rate = totals["tokens_trained"] / totals["seconds/update"]
        entry |= {
            "tokens_trained": totals["tokens_trained"],
            "tokens_per_second": float(f"{rate:.4g}"),
            "optimizer_steps": totals["optimizer_steps"],
            "wall_seconds": float(f"{cost['wall_seconds']:.4g}"),
            "peak_memory_bytes": cost.get("gpu_peak_memory_bytes"),
        }
    return entry


def _table(entries: list[dict[str, Any]], name: str) -> Table:
    table = Table(title=f"Stages on {name}", box=None, title_justify="left")
    table.add_column("stage", no_wrap=True)
    for heading in ("tokens/s", "peak GiB", "predicted GiB", "predicted / peak", ""):
        table.add_column(heading, justify="right")
    for entry in entries:
        table.add_row(f"{entry['stage']} {entry['adapter']}", *_cells(entry))
    return table


def _cells(entry: dict[str, Any]) -> Iterator[str]:
    peak, predicted = entry.get("peak_memory_bytes"), entry["predicted_bytes"]
    rate = entry.get("tokens_per_second")
    yield "" if rate is None else f"{rate:,.0f}"
    yield f"{peak / 2**30:.2f}" if peak else ""
    yield f"{predicted / 2**30:.2f}"
    yield f"{predicted / peak:.2f}" if peak else ""
    yield entry["error"][:60]


if __name__ == "__main__":
    run_command(app)

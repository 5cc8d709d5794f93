"""`python -m benchmarks run | check | plot | faults`: what make bench and bench-check, -plot and -faults call."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.commands import run_command
from benchmarks.compare import compare
from benchmarks.fault_runs import faults_path, run_faults
from benchmarks.machine import Others, machine
from benchmarks.peer_runs import peers as peer_scripts
from benchmarks.peer_runs import run_peers
from benchmarks.plot import plot_history
from benchmarks.record import HISTORY, RESULTS, record, stamp, store, store_incomplete, summarise
from benchmarks.side_by_side import BUSY
from benchmarks.suite import run_suites
from benchmarks.tables import benchmark_table, comparison_table, http_lines, peer_table
from posttrain.core.errors import RequestError, WorkError, suggest
from posttrain.core.files import atomic_write_json, read_json, read_jsonl

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console(width=140 if not sys.stdout.isatty() else None)

Quick = Annotated[bool, typer.Option(help="Small sizes, one round: shows that everything works, writes nothing.")]
Select = Annotated[str, typer.Option("-k", help="Only benchmarks whose name matches (pytest's -k).")]
Folder = Annotated[Path, typer.Option(help="Where records and history lie.")]


@app.command()
def run(
    runs: Annotated[int, typer.Option(min=1, help="Runs of the suite; their spread is the noise.")] = 3,
    peers: Annotated[str, typer.Option(help="Peers, comma-separated; all or none.")] = "all",
    select: Select = "",
    quick: Quick = False,
    dirty: Annotated[
        bool, typer.Option("--dirty", help="Store it although no commit holds the code as it is.")
    ] = False,
    out: Folder = RESULTS,
) -> None:
    """Measure everything, print the tables, store the record of this kind of machine and a line of history.

    Where a peer failed the record stays as it was: what was measured goes into a file beside it.
    """
    whole = not quick and not select and set(_peers(peers)) == set(peer_scripts())
    started, meanwhile = stamp(), Others()
    if whole and not dirty and (started["commit"] or "").endswith("+"):
        raise RequestError(
            "files differ from the last commit, so a record could not name the code that it measured; commit them, or "
            "store it all the same with --dirty (make bench ARGS=--dirty)"
        )
    found = run_peers(_peers(peers), quick)
    benchmarks = summarise(run_suites(runs, select, quick))
    others = meanwhile.share()
    console.print(benchmark_table(benchmarks))
    if found.results:
        console.print(peer_table(found.results))
    for line in [*http_lines(found.results), *found.lines]:
        console.print(line, highlight=False)
    _say_others(others)
    beside = ""
    if quick:
        console.print("a quick run: these are no measurements, and nothing was written")
    elif not whole:
        console.print("a part of the benchmarks: nothing was written")
    else:
        result = record(started, benchmarks, found, runs, others)
        if found.failed:
            beside = f". The record stays as it was; this run is in {store_incomplete(result, found.failed, out)}"
        else:
            console.print(f"written to {store(result, out)}", soft_wrap=True)
    if found.failed:
        raise WorkError(f"{', '.join(found.failed)} failed; what was said is above{beside}")


@app.command()
def check(
    runs: Annotated[int, typer.Option(min=1, help="Runs of the suite.")] = 2, select: Select = "", out: Folder = RESULTS
) -> None:
    """Compare with the stored baseline of this kind of machine; exit status 1 when something became slower."""
    slug = machine()["slug"]
    path = out / f"{slug}.json"
    if not path.exists():
        console.print(f"nothing to compare with: no record of this kind of machine ({slug}); make bench writes one")
        return
    baseline, meanwhile = read_json(path)["benchmarks"], Others()
    now = summarise(run_suites(runs, select))
    if select:
        baseline = {name: entry for name, entry in baseline.items() if name in now}
    comparisons = compare(baseline, now)
    console.print(comparison_table(comparisons))
    _say_others(meanwhile.share())
    slower = [found.name for found in comparisons if found.verdict == "slower"]
    if slower:
        raise WorkError(f"slower than the baseline beyond its noise: {', '.join(slower)}")


@app.command()
def plot(
    slug: Annotated[str, typer.Option(help="Kind of machine; default: this one.")] = "", out: Folder = RESULTS
) -> None:
    """Draw the history of one kind of machine as a PNG beside it."""
    slug = slug or machine()["slug"]
    if not (out / HISTORY).exists():
        raise RequestError(f"{out / HISTORY} does not exist; make bench writes it")
    console.print(str(plot_history(read_jsonl(out / HISTORY), slug, out / f"history-{slug}.png")), soft_wrap=True)


@app.command()
def faults(
    quick: Quick = False,
    select: Annotated[str, typer.Option("-k", help="Only programs whose name holds this.")] = "",
    out: Folder = RESULTS,
) -> None:
    """Load, mutated requests, hostile completions, killed services at full size; exit status 1 if anything was wrong.

    A part of them takes the place of its own earlier findings; the others stay.
    """
    results, troubles = run_faults(quick, select)
    for name, result in results.items():
        numbers = {key: value for key, value in result.items() if isinstance(value, int | float | dict)}
        console.print(f"{name}: {numbers}", highlight=False, soft_wrap=True)
    if quick:
        console.print("a quick run: nothing was written")
    else:
        path = faults_path(out, machine()["slug"])
        earlier = read_json(path)["faults"] if path.exists() else {}
        found = {name: stamp() | result for name, result in results.items()}
        atomic_write_json(path, {"machine": machine(), "faults": earlier | found})
        console.print(f"written to {path}", soft_wrap=True)
    if troubles:
        raise WorkError("; ".join(troubles))


def _say_others(share: float) -> None:
    advice = "; noise hides slow-downs then: measure again on a quiet machine" if share > BUSY else ""
    console.print(f"other processes used {share:.0%} of this machine meanwhile{advice}", highlight=False)


def _peers(names: str) -> list[str]:
    known = list(peer_scripts())
    if names in ("all", "none"):
        return known if names == "all" else []
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise RequestError(f"unknown peer '{name}' {suggest(name, known)}")
    return wanted


if __name__ == "__main__":
    run_command(app)

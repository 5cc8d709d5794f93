"""`posttrain runs list | show | gc`: what lies under runs/, what it cost, and what can go."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from posttrain.core.config import read_yaml
from posttrain.core.errors import RequestError, WorkError
from posttrain.core.results import read_results
from posttrain.core.runs import RunDirectory

RunsFolder = Annotated[Path, typer.Option("--runs", help="The runs folder.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
RUNS = Path("runs")


@dataclass(frozen=True)
class Found:
    """One run directory, as it lies there."""

    run: RunDirectory
    recipe: str
    stage: str
    state: str
    """`finished`, `unfinished`, or `running` when another process holds its lock."""
    seed: int | None
    seconds: float | None
    megabytes: float
    changed: datetime

    @property
    def fingerprint(self) -> str:
        """The first 12 characters of the fingerprint: the folder's name."""
        return self.run.path.name

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "recipe": self.recipe,
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "state": self.state,
            "seed": self.seed,
            "seconds": self.seconds,
            "megabytes": round(self.megabytes, 1),
            "changed": self.changed.isoformat(timespec="seconds"),
            "directory": str(self.run.path),
        }


def find_runs(root: Path) -> list[Found]:
    """Every run directory below `root`, oldest first; RequestError if there is no such folder."""
    if not root.is_dir():
        raise RequestError(f"{root} does not exist; nothing was run here yet (posttrain train METHOD), or give --runs")
    return sorted(_found(root), key=lambda found: found.changed)


def one_run(root: Path, named: str) -> Found:
    """The run with this folder, or whose fingerprint begins so; RequestError for none or several."""
    found, folder = find_runs(root), Path(named).resolve()
    matches = [run for run in found if run.run.path.resolve() == folder or run.fingerprint.startswith(named[:12])]
    if len(matches) != 1:
        what = "no run has" if not matches else f"{len(matches)} runs have"
        raise RequestError(f"{what} a fingerprint that begins with '{named}'; see posttrain runs list")
    return matches[0]


def list_runs(runs: RunsFolder = RUNS, as_json: Json = False) -> None:
    """List every run: stage, state, seed, time, size."""
    found = find_runs(runs)
    if as_json:
        print(json.dumps({"runs": [run.plain() for run in found]}))
        return
    table = Table("recipe", "stage", "fingerprint", "seed", "state", "seconds", "MB", "changed")
    for run in found:
        seconds = "—" if run.seconds is None else f"{run.seconds:.0f}"
        seed = "—" if run.seed is None else str(run.seed)
        when = run.changed.astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(run.recipe, run.stage, run.fingerprint, seed, run.state, seconds, f"{run.megabytes:.1f}", when)
    Console().print(table)


def show(
    fingerprint: Annotated[str, typer.Argument(help="Its folder, or its fingerprint or the beginning of it.")],
    runs: RunsFolder = RUNS,
    as_json: Json = False,
) -> None:
    """Show one run: provenance, last metrics, evaluation."""
    found = one_run(runs, fingerprint)
    run = found.run
    lines = run.metrics_path.read_text(encoding="utf-8").splitlines() if run.metrics_path.exists() else []
    shown = found.plain() | {
        "provenance": run.provenance() if run.finished else None,
        "last_metrics": json.loads(lines[-1]) if lines else None,
        "evaluation": [
            row for row in read_results(runs / "metrics.jsonl") if row["fingerprint"].startswith(found.fingerprint)
        ],
    }
    print(json.dumps(shown) if as_json else json.dumps(shown, indent=2, ensure_ascii=False))


def gc(
    older_than: Annotated[
        int | None, typer.Option(min=0, metavar="DAYS", help="Also finished runs that old.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it only say what would go.")] = False,
    runs: RunsFolder = RUNS,
    as_json: Json = False,
) -> None:
    """Remove what can go: unfinished runs that nobody is writing, and what crashes left behind.

    With --older-than also finished runs; their evaluations in runs/metrics.jsonl stay.
    """
    limit = datetime.now(UTC) - timedelta(days=older_than) if older_than is not None else None
    everything = find_runs(runs)
    found = [run for run in everything if _can_go(run, limit)]
    # What lies below a run that goes, goes with it; what a running one has half-written is its own.
    kept = [run.run.path for run in everything if run in found or run.state == "running"]
    leftovers = [path for path in runs.rglob(".*.tmp") if not any(path.is_relative_to(place) for place in kept)]
    megabytes = sum(run.megabytes for run in found) + sum(_megabytes(path) for path in leftovers)
    paths = [*(run.run.path for run in found), *leftovers]
    for path in paths:
        print(f"{'removing' if yes else 'would remove'} {path}", file=sys.stderr)
    if yes:
        for run in found:
            with run.run.lock():
                shutil.rmtree(run.run.path)
        for path in leftovers:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    summary = f"{len(paths)} to remove, {megabytes:.1f} MB" + ("" if yes or not paths else "; add --yes to do it")
    if as_json:
        print(json.dumps({"removed": yes, "paths": [str(path) for path in paths], "megabytes": round(megabytes, 1)}))
    else:
        print(summary.replace("to remove", "removed") if yes else summary)


def _found(root: Path) -> Iterator[Found]:
    for path in root.glob("*/*/*"):
        run = RunDirectory(path)
        if not (path / "config.yaml").exists() and not run.finished:
            continue
        recorded = run.provenance() if run.finished else read_yaml(path / "config.yaml")
        changed = datetime.fromtimestamp(max(p.stat().st_mtime for p in (path, *path.glob("*"))), UTC)
        yield Found(
            run=run,
            recipe=path.parents[1].name,
            stage=path.parent.name,
            state="finished" if run.finished else "running" if _locked(run) else "unfinished",
            seed=recorded.get("seed"),
            seconds=(recorded.get("cost") or {}).get("wall_seconds"),
            megabytes=_megabytes(path),
            changed=changed,
        )


def _locked(run: RunDirectory) -> bool:
    try:
        with run.lock():
            return False
    except WorkError:
        return True


def _can_go(found: Found, limit: datetime | None) -> bool:
    if found.state == "finished":
        return limit is not None and found.changed < limit
    return found.state == "unfinished"


def _megabytes(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6

"""What `make bench` stores: one file a kind of machine, and one line a run in the history.

    results/bench/<machine>.json     the latest record: machine, commit, benchmarks, peers; the baseline of bench-check
    results/bench/history.jsonl      a line each time: commit, relative time of each benchmark, ratio to each peer
    results/bench/<machine>.incomplete.json   what was measured where a peer failed, until the next record

A benchmark's entry: `unit` and `work` of one call, `seconds` of a call, `relative` (its time in units of the
calibration kernel, one number a run of the suite) and `noise`. Plain JSON values throughout; nothing is measured here.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, stdev
from typing import Any

from benchmarks.machine import machine
from benchmarks.peer_runs import PeerRuns
from posttrain.core.commits import git_commit
from posttrain.core.files import append_jsonl, atomic_write_json

RESULTS = Path(__file__).parents[1] / "results" / "bench"
HISTORY = "history.jsonl"

Benchmarks = dict[str, dict[str, Any]]


def summarise(runs: Sequence[Mapping[str, Any]]) -> Benchmarks:
    """One entry a benchmark from what pytest-benchmark wrote in each run of the suite (its JSON)."""
    entries: Benchmarks = {}
    for name in dict.fromkeys(entry["name"] for run in runs for entry in run["benchmarks"]):
        found = [entry for run in runs for entry in run["benchmarks"] if entry["name"] == name]
        infos = [entry["extra_info"] for entry in found]
        seconds = median(e["stats"]["median"] / i["calls"] for e, i in zip(found, infos, strict=True))
        entries[name.removeprefix("test_")] = {
            "group": found[0]["group"],
            "unit": infos[0]["unit"],
            "work": infos[0]["work"],
            "threads": infos[0]["threads"],
            "seconds": _round(seconds),
            "per_second": _round(infos[0]["work"] / seconds),
            "relative": [_round(median(info["relative"])) for info in infos],
            "noise": _round(noise([info["relative"] for info in infos])),
        }
    return entries


def noise(runs: Sequence[Sequence[float]]) -> float:
    """Standard deviation of a run's result in log units (0.02 is 2 %), from the rounds of each of several runs.

    The larger of what the runs' medians show among themselves and what the rounds inside a run lead one to expect of
    a median: few runs may agree by chance.
    """
    medians = [median(rounds) for rounds in runs]
    between = stdev(map(math.log, medians)) if len(medians) > 1 else 0.0
    within = median(_standard_error_of_log_median(rounds) for rounds in runs)
    return max(between, within)


def _standard_error_of_log_median(rounds: Sequence[float]) -> float:
    logs = [math.log(value) for value in rounds]
    middle = median(logs)
    # From the median absolute deviation, which one interrupted round does not move.
    deviation = 1.4826 * median(abs(value - middle) for value in logs)
    return math.sqrt(math.pi / 2) * deviation / math.sqrt(len(logs))


def record(
    started: Mapping[str, Any], benchmarks: Benchmarks, peers: PeerRuns, runs: int, others: float
) -> dict[str, Any]:
    """What is stored of one `make bench`: `started` is its stamp, `others` the share of the processors that other
    processes used."""
    results = peers.results.items()
    return {
        **started,
        "machine": machine(),
        "runs": runs,
        "others": round(others, 3),
        "benchmarks": benchmarks,
        "peers": {name: {k: v for k, v in result.items() if k != "machine"} for name, result in results},
        "skipped": peers.skipped,
    }


def stamp() -> dict[str, Any]:
    """When, and at which commit of the code (`+`: with changes to it)."""
    return {"when": datetime.now(UTC).isoformat(timespec="seconds"), "commit": git_commit()}


def store_incomplete(result: Mapping[str, Any], failed: Mapping[str, str], folder: Path = RESULTS) -> Path:
    """Writes what would be the record, had not these peers `failed`, beside it; gives the path. A record that lacks a
    peer would look like one of everything."""
    path = folder / f"{result['machine']['slug']}.incomplete.json"
    atomic_write_json(path, {**result, "failed": dict(failed)})
    return path


def store(result: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Writes the record of its kind of machine and a line of history; gives the record's path."""
    path = folder / f"{result['machine']['slug']}.json"
    atomic_write_json(path, result)
    path.with_suffix(".incomplete.json").unlink(missing_ok=True)
    line = {
        "when": result["when"],
        "commit": result["commit"],
        "machine": result["machine"]["slug"],
        "relative": {name: median(entry["relative"]) for name, entry in result["benchmarks"].items()},
        "ratios": {
            f"{peer}: {side}": values[0]
            for peer, measured in result["peers"].items()
            for side, values in measured.get("ratios", {}).items()
        },
    }
    append_jsonl(folder / HISTORY, line)
    (folder / f"{HISTORY}.lock").unlink(missing_ok=True)
    return path


def _round(value: float) -> float:
    return float(f"{value:.5g}")

"""Runs the fault programs at their full size, each in a process of its own, and keeps what each found."""

from pathlib import Path
from typing import Any

from benchmarks.programs import run_program

FULL = {
    "policy_load": "benchmarks.faults.policy_load --clients 256 --seconds 60",
    "mutated_requests_policy": "benchmarks.faults.mutated_requests --service policy --count 101000",
    "mutated_requests_reward": "benchmarks.faults.mutated_requests --service reward --count 101000",
    "hostile_completions": "benchmarks.faults.hostile_completions --count 100000",
    "killed_services": "pytest -q -s -m slow -k services_killed tests/test_policy_faults.py",
}
"""Modules with their arguments, by the name that their findings have. About one mutated request in 150 cannot be sent
at all."""
QUICK = {
    "policy_load": "benchmarks.faults.policy_load --clients 4 --seconds 3",
    "mutated_requests_policy": "benchmarks.faults.mutated_requests --service policy --count 100",
    "mutated_requests_reward": "benchmarks.faults.mutated_requests --service reward --count 100",
    "hostile_completions": "benchmarks.faults.hostile_completions --count 200",
}
TIMEOUT = 1800


def run_faults(quick: bool = False, select: str = "") -> tuple[dict[str, Any], list[str]]:
    """What each program whose name holds `select` reported, by name, and a line for each that found something wrong or
    did not end."""
    results: dict[str, Any] = {}
    troubles: list[str] = []
    for name, command in (QUICK if quick else FULL).items():
        if select not in name:
            continue
        result, trouble = run_program(command, TIMEOUT)
        if result is not None:
            result.pop("machine", None)
            results[name] = {"command": f"python -m {command}", **result}
        if trouble:
            troubles.append(f"{name}: {trouble}")
    return results, troubles


def faults_path(folder: Path, slug: str) -> Path:
    """Where the findings on one kind of machine lie."""
    return folder / f"faults-{slug}.json"

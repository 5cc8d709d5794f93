"""Runs a program that ends with a JSON object in a process of its own, and reads that object."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


class Outcome(NamedTuple):
    """What a program reported, None without an object, and what went wrong, empty for nothing."""

    result: dict[str, Any] | None
    trouble: str


def run_program(module: str, timeout: float) -> Outcome:
    """Runs `python -m module` (with arguments) in the repository; what it says on stderr goes to ours."""
    print(f"== {module}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(
            [sys.executable, "-m", *module.split()],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(None, f"failed, it was not done after {timeout:.0f} s")
    result = last_object(done.stdout)
    if done.returncode != 0 or result is None:
        sys.stderr.write(done.stdout)
        return Outcome(result, f"failed with status {done.returncode}; what it says is above")
    return Outcome(result, "")


def last_object(text: str) -> dict[str, Any] | None:
    """The JSON object in the last line that is one, None without any."""
    for line in reversed(text.splitlines()):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return None

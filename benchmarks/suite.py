"""Runs the pytest-benchmark suites in processes of their own and reads what they measured.

Several runs, not one long one: what differs between processes (layout of memory, order of threads) is part of the
noise that a comparison has to know.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from posttrain.core.errors import WorkError

ROOT = Path(__file__).parents[1]
SUITES = ROOT / "benchmarks" / "suites"


def run_suites(runs: int, select: str = "", quick: bool = False, suites: Path = SUITES) -> list[dict[str, Any]]:
    """pytest-benchmark's JSON of each run; `select` is pytest's -k. WorkError when a benchmark fails.

    Quick: one short round of each, which shows that they work and measures nothing.
    """
    with tempfile.TemporaryDirectory(prefix="posttrain-bench-") as folder:
        return [_run(Path(folder) / f"{number}.json", select, quick, suites) for number in range(runs)]


def _run(out: Path, select: str, quick: bool, suites: Path) -> dict[str, Any]:
    command = [
        *(sys.executable, "-m", "pytest", str(suites), "-p", "no:cacheprovider", "-p", "no:xdist", "-q"),
        *("--benchmark-json", str(out), "--benchmark-quiet", "--timeout", "600"),
        *(("-k", select) if select else ()),
    ]
    # Under xdist pytest-benchmark measures nothing, also in a process that merely inherits its variables.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = inherited | {"BENCHMARK_QUICK": "1" if quick else "0", "OMP_NUM_THREADS": "1"}
    # All that pytest says is for people; standard output belongs to whoever called.
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise WorkError(f"the benchmark suite failed (pytest's status {done.returncode}); what it says is above")
    return json.loads(out.read_text(encoding="utf-8"))

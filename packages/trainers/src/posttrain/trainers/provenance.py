"""What stands beside a result without being part of it: machine, package versions, commit, time and memory.

Reads the process and its surroundings; knows nothing of stages.
"""

import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "numpy")


class Meter:
    """Context manager around the work: wall seconds, core-seconds of this process and its ended children, and the
    peak resident memory of this process in MiB."""

    def __enter__(self) -> "Meter":
        self._wall, self._cpu = time.monotonic(), _cpu_seconds()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._seconds, self._core_seconds = time.monotonic() - self._wall, _cpu_seconds() - self._cpu

    def cost(self) -> dict[str, float]:
        """What the block cost; call it after the block."""
        return {
            "seconds": round(self._seconds, 2),
            "core_seconds": round(self._core_seconds, 2),
            "peak_memory_mib": round(_peak_mib(), 1),
        }


def environment(threads: int | None) -> dict[str, Any]:
    """Hardware, versions and commit, as recorded in provenance.json."""
    versions = {}
    for name in sorted({*PACKAGES, *(d.name for d in metadata.distributions() if d.name.startswith("posttrain-"))}):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "packages": versions,
        "git_commit": git_commit(),
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": psutil.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "accelerators": _accelerators(),
        },
        "threads": threads,
    }


def git_commit() -> str | None:
    """The commit that this code was checked out at, with `+` when the files differ from it; None outside a clone."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    # An installed wheel may lie inside some other repository: only files that it tracks count.
    if not commit or not git("ls-files", "--error-unmatch", __file__):
        return None
    return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def _cpu_seconds() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def _peak_mib() -> float:
    try:
        import resource
    except ImportError:  # not a POSIX system
        return psutil.Process().memory_info().rss / 2**20
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _accelerators() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]

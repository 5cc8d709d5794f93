"""What stands beside a result without being part of it: machine, package versions and commit.

Reads the process and its surroundings; knows nothing of stages. What a run cost is posttrain.core.cost's.
"""

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "numpy")


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
            command = ["git", "-C", str(folder), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    # An installed wheel may lie inside some other repository: only files that it tracks count.
    if not commit or not git("ls-files", "--error-unmatch", __file__):
        return None
    return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


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

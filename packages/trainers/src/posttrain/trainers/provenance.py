"""What stands beside a result without being part of it: machine, package versions and commit.

Reads the process and its surroundings; knows nothing of stages. What a run cost is posttrain.core.cost's.
"""

import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from posttrain.core.commits import git_commit

PACKAGES = (
    "torch", "transformers", "trl", "accelerate", "peft", "bitsandbytes", "liger-kernel", "datasets", "tokenizers",
    "numpy",
)  # fmt: skip


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

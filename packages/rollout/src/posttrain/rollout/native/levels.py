"""Which kernels a processor can run: the levels of the x86-64 psABI, each decided by all features that it names.

A kernel is compiled for a level and not for the one processor: the same instructions, tuned the same way, add up in the
same order, so that one made elsewhere by the same compiler gives the bits of one made here. Knows nothing of compilers.
"""

import platform
from collections.abc import Collection
from pathlib import Path

_V2 = frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"})
_V3 = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
_V4 = _V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}

LEVELS = {
    "x86_64": {"x86-64-v4": _V4, "x86-64-v3": _V3},
    "aarch64": {"armv8-a": frozenset({"fp", "asimd"})},
}
"""By machine: each level, best first, as compilers' `-march` names it, and its features as Linux names them (`pni` is
SSE3, `abm` LZCNT)."""


def runnable(machine: str, features: Collection[str]) -> list[str]:
    """The machine's levels all of whose features are there, best first."""
    return [level for level, needed in LEVELS.get(machine, {}).items() if needed <= set(features)]


def levels_here() -> list[str]:
    """The levels of this processor, best first; none where Linux does not tell its features."""
    return runnable(platform.machine(), processor().partition(":")[2].split())


def processor() -> str:
    """The line of /proc/cpuinfo that lists the processor's features; elsewhere the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())

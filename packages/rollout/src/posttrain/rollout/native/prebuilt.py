"""Kernels made beforehand, in a folder with a manifest: for images and machines without a compiler.

A folder holds `kernel-<level>.so` for every level of its architecture, and `manifest.json` with what they were made of;
a kernel whose sources are not those of this installation is not taken, for Python and C++ share structs.
"""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.rollout.native.compiling import FLAGS, NoKernel, compile_kernel, find_compiler, source_digest, version
from posttrain.rollout.native.levels import LEVELS

MANIFEST = "manifest.json"


def prebuild(folder: Path) -> list[Path]:
    """Compiles the kernels of this architecture into `folder`, and gives their files; NoKernel when one fails."""
    machine = platform.machine()
    if machine not in LEVELS:
        raise NoKernel(f"no level of {machine} is known to compile for (there are {', '.join(LEVELS)})")
    compiler = find_compiler()
    paths = {level: folder / f"kernel-{level}.so" for level in LEVELS[machine]}
    for level, path in paths.items():
        compile_kernel(compiler, level, path)
    manifest = {
        "source": source_digest(),
        "machine": machine,
        "flags": FLAGS,
        "compiler": version(compiler).splitlines()[0],
        "kernels": {level: path.name for level, path in paths.items()},
    }
    # Last and at once: a folder with a manifest is complete.
    written = folder / f".{MANIFEST}.{os.getpid()}"
    written.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    written.replace(folder / MANIFEST)
    return [*paths.values(), folder / MANIFEST]


def find_prebuilt(folder: Path, levels: Sequence[str]) -> Path:
    """The kernel of the first of these `levels` that the folder holds; NoKernel, with the reason, when none fits."""
    manifest = _read(folder / MANIFEST)
    if manifest.get("source") != source_digest():
        raise NoKernel(f"the kernels of POSTTRAIN_KERNELS={folder} were made of other sources than are installed")
    kernels = manifest.get("kernels", {})
    for level in levels:
        if level in kernels:
            return folder / kernels[level]
    runs = ", ".join(levels) or "none of the known levels"
    raise NoKernel(f"POSTTRAIN_KERNELS={folder} has kernels for {', '.join(kernels)}; this processor runs {runs}")


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NoKernel(f"POSTTRAIN_KERNELS={path.parent} cannot be used: {path.name}: {error.strerror}") from None
    except ValueError as error:
        raise NoKernel(f"POSTTRAIN_KERNELS={path.parent} cannot be used: {path.name} is no JSON: {error}") from None
    if not isinstance(manifest, dict):
        raise NoKernel(f"POSTTRAIN_KERNELS={path.parent} cannot be used: {path.name} is no manifest")
    return manifest

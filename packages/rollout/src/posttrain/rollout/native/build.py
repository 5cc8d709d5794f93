"""Compiles the kernel once a machine, and finds it again.

The library lies in the user's cache under a name that holds everything it depends on: source, compiler, processor.
Compiling takes about two seconds. Without a compiler there is no kernel, and the reason says so. As a program it
compiles ahead of the first use: python -m posttrain.rollout.native.build
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent
# No fast-math: sums must keep their order. Products may be fused with sums, everywhere alike.
FLAGS = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread", "-ffp-contract=fast"]


class NoKernel(Exception):
    """The kernel cannot be had here; the message says why."""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/posttrain`, by default in the home directory."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "posttrain"


@cache
def library() -> Path:
    """The compiled kernel's file, compiled now if need be; NoKernel when there is no way to."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler or not shutil.which(compiler):
        raise NoKernel("there is no C++ compiler (install g++, or set CXX)")
    folder = cache_folder()
    path = folder / f"kernel-{_key(compiler)}.so"
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two processes may compile at the same time: each to a file of its own, and the name changes hands at once.
        with tempfile.TemporaryDirectory(dir=folder) as work:
            built = Path(work) / "kernel.so"
            command = [compiler, *FLAGS, "-o", str(built), str(SOURCES / "kernel.cpp")]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
            built.replace(path)
    except OSError as error:
        raise NoKernel(f"the kernel cannot be written to {folder}: {error.strerror}; set XDG_CACHE_HOME") from None
    except subprocess.SubprocessError as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        raise NoKernel(f"{compiler} cannot compile the kernel: {said[0] if said else error}") from None
    return path


def _key(compiler: str) -> str:
    parts = [" ".join(FLAGS), platform.machine(), _processor()]
    try:
        version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        raise NoKernel(f"{compiler} does not run: {error}") from None
    parts.append(version.stdout)
    parts += [path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.[ch]*")) if path.suffix != ".pyc"]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` looks at: the processor's features, as far as Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def main() -> None:
    """Compiles, or says why not; an installation goes on either way."""
    try:
        library()
    except NoKernel as reason:
        print(f"no native engine, generation will be several times slower: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()

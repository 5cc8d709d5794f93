"""From the C++ sources to a shared library, by whatever compiler is there. Needs the standard library only."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
# No fast-math: sums must keep their order. Products may be fused with sums, everywhere alike.
FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-ffp-contract=fast"]


class NoKernel(Exception):
    """The kernel cannot be had here; the message says why."""


def find_compiler() -> str:
    """`$CXX`, g++ or clang++; NoKernel where there is none."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler or not shutil.which(compiler):
        raise NoKernel("there is no C++ compiler (install g++, or set CXX)")
    return compiler


def version(compiler: str) -> str:
    """What the compiler says of itself; NoKernel when it does not run."""
    try:
        said = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        raise NoKernel(f"{compiler} does not run: {error}") from None
    return said.stdout


def source_digest() -> str:
    """SHA-256 of the kernel's sources and flags: what is compiled, but for the processor's level and the compiler."""
    parts = [" ".join(FLAGS)]
    for path in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]):
        parts += [path.name, path.read_text(encoding="utf-8")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def compile_kernel(compiler: str, march: str, path: Path) -> None:
    """Writes the library for processors of `march` to `path`, whole or not at all; NoKernel when that fails."""
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two processes may compile at the same time: each to a file of its own, and the name changes hands at once.
        with tempfile.TemporaryDirectory(dir=folder) as work:
            built = Path(work) / "kernel.so"
            command = [compiler, *FLAGS, f"-march={march}", "-o", str(built), str(SOURCES / "kernel.cpp")]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
            built.replace(path)
    except OSError as error:
        raise NoKernel(
            f"the kernel cannot be written to {folder}: {error.strerror}; choose another by XDG_CACHE_HOME or --into"
        ) from None
    except subprocess.SubprocessError as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        raise NoKernel(f"{compiler} cannot compile the kernel: {said[0] if said else error}") from None

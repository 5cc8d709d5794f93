"""Finds the compiled kernel: one that was made beforehand, or one that is compiled here, once a machine.

Made beforehand: in the folder that POSTTRAIN_KERNELS names (`prebuilt.py`), for machines without a compiler. Compiled
here: the library lies in the user's cache under a name that holds everything it depends on: source, compiler, level of
the processor. Compiling takes about two seconds. Where neither is to be had there is no kernel, and the reason says so.

As a program it compiles ahead of the first use: python -m posttrain.rollout.native.build
or for other machines of this architecture: python -m posttrain.rollout.native.build --into FOLDER
"""

import argparse
import hashlib
import os
import platform
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from posttrain.rollout.native.compiling import FLAGS, NoKernel, compile_kernel, find_compiler, source_digest, version
from posttrain.rollout.native.levels import levels_here, processor
from posttrain.rollout.native.prebuilt import find_prebuilt, prebuild

__all__ = ["FLAGS", "NoKernel", "cache_folder", "library"]


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/posttrain`, by default in the home directory."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "posttrain"


@cache
def library() -> Path:
    """The compiled kernel's file, compiled now if need be; NoKernel when there is no way to."""
    folder = os.environ.get("POSTTRAIN_KERNELS")
    if not folder:
        return _compiled()
    try:
        return find_prebuilt(Path(folder), levels_here())
    except NoKernel as unfit:
        try:
            return _compiled()
        except NoKernel as reason:
            raise NoKernel(f"{unfit}, and {reason}") from None


def _compiled() -> Path:
    compiler = find_compiler()
    for level in levels_here()[:1]:
        with suppress(NoKernel):  # an old compiler does not know the level's name; else the next attempt says why
            return _cached(compiler, level)
    return _cached(compiler, "native")


def _cached(compiler: str, march: str) -> Path:
    path = cache_folder() / f"kernel-{_key(compiler, march)}.so"
    if not path.is_file():
        compile_kernel(compiler, march, path)
    return path


def _key(compiler: str, march: str) -> str:
    parts = [source_digest(), march, platform.machine(), processor() if march == "native" else "", version(compiler)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def main() -> None:
    """Compiles for this machine, or says why not and lets an installation go on; or, `--into`, for others."""
    parser = argparse.ArgumentParser(prog="python -m posttrain.rollout.native.build", description=main.__doc__)
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="kernels of every level, for POSTTRAIN_KERNELS")
    into = parser.parse_args().into
    try:
        if into is None:
            library()
        else:
            print("\n".join(map(str, prebuild(into))))
    except NoKernel as reason:
        if into is not None:
            sys.exit(f"error: {reason}")
        print(f"no native engine, generation will be several times slower: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()

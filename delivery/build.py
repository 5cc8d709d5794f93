"""Wheel and source distribution of a package, the same bytes whenever and wherever one commit is built."""

import os
import subprocess
import sys
from pathlib import Path

from delivery.checkout import git
from delivery.packages import Package
from posttrain.core.errors import WorkError


def commit_time(tree: Path) -> int:
    """When the commit that is checked out was made, in seconds since 1970."""
    return int(git(tree, "log", "-1", "--format=%ct"))


def build_distributions(package: Package, epoch: int, into: Path) -> list[Path]:
    """Builds wheel and sdist into a folder with the pinned build tools that are installed; gives their paths.

    `epoch` (seconds since 1970) is the time that every file in them bears, so that the clock is not part of them.
    WorkError with the tool's words where it fails or builds anything but these two of this version.
    """
    command = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--directory",
        str(into),
        "--target",
        "sdist",
        "--target",
        "wheel",
    ]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch)}
    done = subprocess.run(command, cwd=package.folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise WorkError(
            f"building {package.distribution} failed: {' '.join((done.stderr or done.stdout).split())[-500:]}"
        )
    stem = f"{package.distribution.replace('-', '_')}-{package.version}"
    expected = [f"{stem}-py3-none-any.whl", f"{stem}.tar.gz"]
    found = sorted(path.name for path in into.iterdir())
    if found != expected:
        raise WorkError(f"building {package.distribution} gave {', '.join(found)} in place of {' and '.join(expected)}")
    return [into / name for name in expected]

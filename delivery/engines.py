"""What builds and runs images here: docker, podman, buildah, or a program in their place.

The program is what POSTTRAIN_CONTAINER_TOOL names, or ../shared/tools/container beside the checkout: `PROGRAM build …`
and `PROGRAM run …` take the options of `podman build` and `podman run`. Where there is one it comes before podman and
buildah, for it is there because these cannot do it alone.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from delivery.targets import ROOT
from posttrain.core.errors import RequestError, WorkError, suggest

VARIABLE = "POSTTRAIN_CONTAINER_TOOL"
NAMES = ("docker", "tool", "podman", "buildah")


@dataclass(frozen=True)
class Engine:
    """Commands to which the options, the image's name and the rest are appended.

    Images are run as root and under names that somebody else may hold on a registry: what was not built here is never
    fetched.
    """

    name: str
    build: tuple[str, ...]
    run: tuple[str, ...] = ()
    """Empty where it cannot run images."""
    history: tuple[str, ...] = ()
    """Prints the bytes of each layer, the last one first, a number a line or as JSON; empty where the engine does not
    tell."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def output(self, command: Sequence[str]) -> str:
        """What a command of this engine prints; WorkError with its last words when it fails."""
        done = subprocess.run(
            list(command), capture_output=True, text=True, check=False, env={**os.environ, **self.environment}
        )
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            last = said[-1] if said else f"exit status {done.returncode}"
            raise WorkError(f"{' '.join(command[:2])}: {last}")
        return done.stdout

    def run_program(self, image: str, program: str) -> str:
        """What a Python program prints that runs inside an image as its root; WorkError when that fails."""
        if not self.run:
            raise RequestError(f"{self.name} builds images and runs none; choose another --engine")
        python = ["--user", "0:0", "--entrypoint", "/opt/posttrain/bin/python", image, "-I", "-c", program]
        return self.output([*self.run, *python])

    def layers(self, image: str) -> list[int] | None:
        """Bytes of each layer that holds files, the base's first; None where the engine does not tell."""
        if not self.history:
            return None
        said = self.output([*self.history, image])
        sizes = [layer["size"] for layer in json.loads(said)] if said.startswith("[") else map(int, said.split())
        return [size for size in reversed(list(sizes)) if size]


_NO_PULL = ("--pull", "never")


def _docker() -> Engine:
    history = ("docker", "history", "--human=false", "--format", "{{.Size}}")
    return Engine("docker", ("docker", "build"), ("docker", "run", "--rm", *_NO_PULL), history)


def _podman() -> Engine:
    # Docker's format, for OCI's has no HEALTHCHECK.
    build = ("podman", "build", "--format", "docker", "--layers")
    # Its templates have sizes for people only.
    history = ("podman", "history", "--format", "json")
    return Engine("podman", build, ("podman", "run", "--rm", *_NO_PULL), history)


def _buildah() -> Engine:
    return Engine("buildah", ("buildah", "build", "--format", "docker", "--layers"))


def _tool(path: str) -> Engine:
    return Engine("tool", (path, "build"), (path, "run", *_NO_PULL), environment={"LAYERS": "true"})


def _answers(command: Sequence[str]) -> bool:
    """Whether a command is there and ends well."""
    if not shutil.which(command[0]):
        return False
    try:
        done = subprocess.run(list(command), capture_output=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def tool_path(environment: Mapping[str, str], beside: Path) -> str | None:
    """The program in an engine's place, absolute; None where there is none, RequestError where none is at that name."""
    named = environment.get(VARIABLE)
    if named:
        if not os.access(named, os.X_OK) or not Path(named).is_file():
            raise RequestError(f"{VARIABLE}={named} is no program")
        # Absolute, for a release builds in a folder of its own.
        return str(Path(named).resolve())
    found = beside / "shared" / "tools" / "container"
    return str(found) if os.access(found, os.X_OK) else None


def find_engine(
    wanted: str = "",
    environment: Mapping[str, str] = os.environ,
    answers: Callable[[Sequence[str]], bool] = _answers,
    beside: Path = ROOT.parent,
) -> Engine:
    """The engine of that name, or the first that is there; RequestError says what was tried where there is none."""
    if wanted and wanted not in NAMES:
        raise RequestError(f"unknown engine '{wanted}' {suggest(wanted, NAMES)}")
    tried = []
    for name in (wanted,) if wanted else NAMES:
        if name == "tool":
            if path := tool_path(environment, beside):
                return _tool(path)
            tried.append(f"{VARIABLE} names no program")
        # `docker info` ends well without a daemon, `docker version` does not.
        elif answers([name, "version"]):
            return {"docker": _docker, "podman": _podman, "buildah": _buildah}[name]()
        else:
            tried.append(f"{name} does not answer" if name != "docker" else "no Docker daemon answers")
    raise RequestError(f"images need a container engine: {', '.join(tried)}; install Docker, podman or buildah")

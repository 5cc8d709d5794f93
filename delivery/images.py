"""`python -m delivery images`: builds every image from the working tree, with whatever engine is there.

Gives pip's index settings of the environment (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL) to the build, where CPU wheels of
torch come from. How long each took lies in dist/images until `sizes` records it.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from delivery.engines import NAMES, Engine, find_engine
from delivery.targets import (
    ACCELERATORS,
    DOCKERFILE,
    ROOT,
    Target,
    chosen,
    digest_of_pins,
    digest_of_sources,
    tags,
    version_of,
)
from posttrain.core.commits import git_commit
from posttrain.core.errors import RequestError, WorkError, suggest
from posttrain.core.files import atomic_write_json, read_json

BUILT = ROOT / "dist" / "images"
INDEXES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")

Targets = Annotated[
    list[str] | None, typer.Option("--target", help="Only this image; may be repeated.", show_default=False)
]
Accelerator = Annotated[str, typer.Option(help="cpu or cuda; which of torch's builds pip must find.")]
EngineName = Annotated[
    str, typer.Option("--engine", help=f"{', '.join(NAMES)}; default: the first that is there.", show_default=False)
]


def images(
    target: Targets = None,
    accelerator: Accelerator = "cpu",
    engine: EngineName = "",
    engine_args: Annotated[
        str, typer.Option(help="More options of the engine's build, such as '--build-arg K=V'.", show_default=False)
    ] = "",
) -> None:
    """Build the images as posttrain/TARGET:VERSION and :latest (for CUDA with -cuda at the end)."""
    check_accelerator(accelerator)
    wanted, found = chosen(target or ()), find_engine(engine)
    for number, image in enumerate(wanted, start=1):
        name = tags(image, version_of(image), accelerator)[0]
        print(f"[{number}/{len(wanted)}] {name} with {found.name}", file=sys.stderr, flush=True)
        seconds = build_image(image, found, accelerator, shlex.split(engine_args))
        print(f"[{number}/{len(wanted)}] {name} in {seconds:.0f} s", file=sys.stderr, flush=True)


def check_accelerator(accelerator: str) -> None:
    """RequestError for an unknown one."""
    if accelerator not in ACCELERATORS:
        raise RequestError(f"unknown accelerator '{accelerator}' {suggest(accelerator, ACCELERATORS)}")


def build_image(target: Target, engine: Engine, accelerator: str = "cpu", more: list[str] | None = None) -> float:
    """Builds and tags one image; gives the seconds it took. The engine's own words go to this program's output.

    WorkError when the build fails.
    """
    command = build_command(target, engine, accelerator, os.environ, git_commit() or "")
    began = time.perf_counter()
    done = subprocess.run(
        [*command[:-1], *(more or []), command[-1]], env={**os.environ, **engine.environment}, check=False
    )
    if done.returncode:
        raise WorkError(f"building the image {target.name} failed (exit status {done.returncode}); why is said above")
    seconds = time.perf_counter() - began
    _note(target, accelerator, engine, seconds)
    return seconds


def build_command(
    target: Target, engine: Engine, accelerator: str, environment: Mapping[str, str], commit: str, root: Path = ROOT
) -> list[str]:
    """The command that builds one image; the last argument is the folder that it sees."""
    version = version_of(target, root)
    values = {
        "ACCELERATOR": accelerator,
        "VERSION": version,
        "GIT_COMMIT": commit,
        "PINS": digest_of_pins(root),
        "SOURCES": digest_of_sources(target, root),
        **{name: environment[name] for name in INDEXES if environment.get(name)},
    }
    command = [*engine.build, "--file", str(DOCKERFILE), "--target", target.name]
    for name in tags(target, version, accelerator):
        command += ["--tag", name]
    for name, value in values.items():
        command += ["--build-arg", f"{name}={value}"]
    return [*command, str(root)]


def built(target: Target, accelerator: str = "cpu") -> dict[str, Any] | None:
    """What was noted when the image was built last: `seconds`, `commit`, `engine`; None where nothing was."""
    path = _note_path(target, accelerator)
    return read_json(path) if path.exists() else None


def _note(target: Target, accelerator: str, engine: Engine, seconds: float) -> None:
    """A build of the same content takes its layers from the engine's cache: the time of the first one stands."""
    content = digest_of_sources(target)
    earlier = built(target, accelerator)
    if earlier and (earlier["content"], earlier["engine"]) == (content, engine.name):
        seconds = max(seconds, earlier["seconds"])
    note = {"commit": git_commit(), "engine": engine.name, "seconds": round(seconds, 1), "content": content}
    atomic_write_json(_note_path(target, accelerator), note)


def _note_path(target: Target, accelerator: str) -> Path:
    return BUILT / f"{target.name}-{accelerator}.json"

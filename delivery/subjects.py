"""What a bill of materials or licence list is about: an image, looked at from inside, or an environment's folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delivery import inventory as collector
from delivery.engines import Engine, find_engine
from delivery.targets import STOCK, TARGETS, tags, version_of
from posttrain.core.commits import git_commit
from posttrain.core.errors import RequestError, WorkError


@dataclass(frozen=True)
class Subject:
    """Its name and what lies in it."""

    name: str
    inventory: dict[str, Any]
    commit: str
    """What the packages of this repository in it were built from; `unknown` where nothing says."""

    @property
    def file_name(self) -> str:
        """Its name as that of a file: `posttrain/data:0.1.0` → `data-0.1.0`."""
        return self.name.removeprefix("posttrain/").lstrip(".").replace("/", "-").replace(":", "-")


def subjects(names: Sequence[str], engine: str) -> list[Subject]:
    """What each name stands for: a folder that exists, else an image; without names every image of this checkout.

    RequestError for a folder without Python distributions, or where images are asked for and no engine is there.
    """
    wanted = list(names) or [tags(TARGETS[name], version_of(TARGETS[name]), "cpu")[0] for name in STOCK]
    folders = {name: Path(name) for name in wanted if Path(name).is_dir()}
    if len(folders) == len(wanted):
        return [_folder(folder) for folder in folders.values()]
    found = find_engine(engine)
    return [_folder(folders[name]) if name in folders else _image(name, found) for name in wanted]


def _folder(folder: Path) -> Subject:
    found = collector.inventory(folder.resolve())
    if not found["python"]:
        raise RequestError(f"{folder} holds no Python distribution; name an environment's folder or an image")
    return Subject(folder.resolve().name, found, git_commit() or "unknown")


def _image(name: str, engine: Engine) -> Subject:
    source = Path(collector.__file__).read_text(encoding="utf-8")
    said = engine.run_program(name, source)
    try:
        found = json.loads(said)
    except json.JSONDecodeError as error:
        raise WorkError(f"what the image {name} says of itself is not JSON ({error})") from None
    return Subject(name, found, found.pop("commit", "") or "unknown")

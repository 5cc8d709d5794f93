"""Where a source's rows lie: a local file, a mirror of the Hub in the Hub's layout, or the Hub itself.

`locate` decides and answers what defines the content (a file's digest, the Hub's commit), `read` gives the raw rows
with the dataset's own columns. Formats, selection and the nano corpora are not known here.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core.errors import RequestError, suggest
from posttrain.core.files import read_jsonl
from posttrain.core.hashing import digest_file

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class LocalFile:
    """One file of rows."""

    dataset: str
    """The name that errors and row ids use: the Hub id, or the file's name without its folder."""
    path: Path

    def definition(self) -> dict[str, str]:
        """What defines the content."""
        return {"digest": digest_file(self.path)}

    def read(self) -> list[dict[str, Any]]:
        """The rows; RequestError names the file, and the line where the format has lines."""
        if self.path.suffix == ".jsonl":
            return read_jsonl(self.path)
        rows = _read_json(self.path) if self.path.suffix == ".json" else _read_by_datasets(self.path)
        if not rows:
            raise RequestError(f"{self.path} is empty")
        return rows


@dataclass(frozen=True)
class HubDataset:
    """One split on the Hub at one commit."""

    dataset: str
    config: str | None
    config_is_folder: bool
    split: str
    commit: str

    def definition(self) -> dict[str, str]:
        """What defines the content."""
        return {"revision": self.commit}

    def read(self) -> list[dict[str, Any]]:
        """The rows, downloaded once and cached by `datasets`."""
        import datasets

        place = {"data_dir": self.config} if self.config_is_folder else {"name": self.config}
        try:
            loaded = datasets.load_dataset(self.dataset, split=self.split, revision=self.commit, **place)
        except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
            # `datasets` lists the configurations and splits that there are in these messages.
            raise RequestError(f"dataset {self.dataset} could not be read: {' '.join(str(error).split())}") from error
        return [dict(row) for row in loaded]


def locate(
    path: str, config: str | None, split: str, revision: str | None, config_is_folder: bool
) -> LocalFile | HubDataset:
    """The origin of a path: $POSTTRAIN_DATA/<Hub id> first, then a local file or folder, then the Hub.

    RequestError when nothing is found, with the names of what is there.
    """
    mirror = _mirror(path)
    if mirror is not None and revision is None:
        file = _file_in(mirror, config, split)
        if file is not None:
            return LocalFile(path, file)
    place = Path(path)
    if place.is_file():
        if place.suffix not in SUFFIXES:
            raise RequestError(f"{path} is none of {', '.join(SUFFIXES)}; convert it")
        return LocalFile(place.name, place)
    if place.is_dir():
        file = _file_in(place, config, split)
        if file is None:
            raise RequestError(f"{_wanted(path, config, split)} is not there {_suggest(place, config, split)}")
        return LocalFile(place.resolve().name, file)
    if not _HUB_ID.fullmatch(path):
        raise RequestError(f"data '{path}' is neither a file or folder here nor a Hub id (owner/name)")
    return HubDataset(path, config, config_is_folder, split, _commit(path, config, split, revision, mirror))


def _mirror(path: str) -> Path | None:
    root = os.environ.get("POSTTRAIN_DATA")
    if not root or not _HUB_ID.fullmatch(path):
        return None
    if not Path(root).is_dir():
        raise RequestError(f"POSTTRAIN_DATA={root} is not a folder; set it to a mirror of the Hub or unset it")
    folder = Path(root) / path
    return folder if folder.is_dir() else None


def _files(folder: Path) -> Mapping[tuple[str | None, str], Path]:
    """(config, split) to file, for `split.jsonl` and `config/split.jsonl` under a folder."""
    # Of one split in several forms the first of SUFFIXES is read: it comes last here and stays in the mapping.
    found = [p for suffix in reversed(SUFFIXES) for p in sorted(folder.rglob(f"*{suffix}")) if p.is_file()]
    return {("/".join(p.parent.relative_to(folder).parts) or None, p.stem): p for p in found}


def _file_in(folder: Path, config: str | None, split: str) -> Path | None:
    files = _files(folder)
    if config is not None or (None, split) in files:
        return files.get((config, split))
    configs = {c for c, _ in files}
    if len(configs) > 1 and "default" not in configs:
        names = ", ".join(sorted(str(c) for c in configs))
        raise RequestError(f"dataset {folder} has several configurations ({names}); set config to one of them")
    return files.get(("default" if "default" in configs else next(iter(configs), None), split))


def _wanted(path: str, config: str | None, split: str) -> str:
    return f"split '{split}' of {path}" + (f" with config '{config}'" if config else "")


def _suggest(folder: Path, config: str | None, split: str) -> str:
    there = {f"{c}/{s}" if c else s for c, s in _files(folder)}
    return suggest(f"{config}/{split}" if config else split, there)


def _commit(path: str, config: str | None, split: str, revision: str | None, mirror: Path | None) -> str:
    """The commit that a revision means now, so that a run can be repeated when the branch has moved on."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(path, revision=revision, timeout=20).sha
    except Exception as error:  # its transport's errors are of another library in each major version
        remedy = "set POSTTRAIN_DATA to a mirror that holds it, or check name, revision and network"
        if mirror is not None and revision is None:
            remedy = f"the mirror under POSTTRAIN_DATA lacks it {_suggest(mirror, config, split)}"
        reason = " ".join(str(error).split())[:160]
        raise RequestError(
            f"{_wanted(path, config, split)} could not be had from the Hub ({reason}); {remedy}"
        ) from error
    if commit is None:
        raise RequestError(f"the Hub names no commit for dataset {path}; set revision to one")
    return commit


def _read_json(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects, or an object whose `data` is one (as `datasets` writes it)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8") or "[]")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 (byte {error.start}); convert the file") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"{path}:{error.lineno} is not JSON: {error.msg} at column {error.colno}") from None
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RequestError(f"{path} must hold a list of objects; for an object a line name it .jsonl")
    return rows


def _read_by_datasets(path: Path) -> list[dict[str, Any]]:
    import datasets

    read = datasets.Dataset.from_parquet if path.suffix == ".parquet" else datasets.Dataset.from_csv
    try:
        return [dict(row) for row in read(str(path))]
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise RequestError(f"{path} could not be read: {' '.join(str(error).split())[:200]}") from error

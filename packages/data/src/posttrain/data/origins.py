"""Where a source's rows lie: local files, a mirror of the Hub in one of its layouts, or the Hub itself.

`locate` decides and answers what defines the content (the files' digest, the Hub's commit); `rows` and `stream` give
the raw rows with the dataset's own columns, by number or front to back. Formats, selection and the nano corpora are
not known here.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core.errors import RequestError
from posttrain.core.hashing import digest_file, digest_json
from posttrain.data.layout import files_of_split, what_is_there
from posttrain.data.row_files import SUFFIXES, open_rows, refused, stream_rows, suffix_of

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class LocalFiles:
    """The files of one split."""

    dataset: str
    """The name that errors and row ids use: the Hub id, or the file's name without its folder."""
    paths: tuple[Path, ...]

    def definition(self) -> dict[str, str]:
        """What defines the content."""
        digests = [digest_file(path) for path in self.paths]
        return {"digest": digests[0] if len(digests) == 1 else digest_json(digests)}

    def rows(self) -> Sequence[dict[str, Any]]:
        """The rows by number, each read when it is asked for."""
        return open_rows(self.paths)

    def stream(self) -> Iterator[dict[str, Any]]:
        """The rows front to back."""
        return stream_rows(self.paths)


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

    def rows(self) -> Sequence[dict[str, Any]]:
        """The rows by number, downloaded once, and mapped from the disk by `datasets`."""
        return self._load(streaming=False)

    def stream(self) -> Iterator[dict[str, Any]]:
        """The rows front to back, downloaded as they are read and not kept."""
        with refused(f"dataset {self.dataset}"):
            for row in self._load(streaming=True):
                yield dict(row)

    def _load(self, streaming: bool) -> Any:
        import datasets

        options: dict[str, Any] = {"data_dir": self.config} if self.config_is_folder else {"name": self.config}
        if streaming:
            options["streaming"] = True
        with refused(f"dataset {self.dataset}"):
            return datasets.load_dataset(self.dataset, split=self.split, revision=self.commit, **options)


def locate(
    path: str,
    config: str | None,
    split: str,
    revision: str | None,
    config_is_folder: bool = False,
    one_split: bool = False,
) -> LocalFiles | HubDataset:
    """The origin of a path: $POSTTRAIN_DATA/<Hub id> first, then a local file or folder, then the Hub.

    `config_is_folder` and `one_split` are the format's. RequestError when nothing is found, with the names of what is
    there.
    """
    mirror = _mirror(path)
    if mirror is not None and revision is None:
        files = files_of_split(mirror, config, split, one_split)
        if files is not None:
            return LocalFiles(path, files)
    place = Path(path)
    if place.is_file():
        if suffix_of(place) is None:
            raise RequestError(f"{path} is none of {', '.join(SUFFIXES)}; convert it")
        return LocalFiles(place.name, (place,))
    if place.is_dir():
        files = files_of_split(place, config, split, one_split)
        if files is None:
            raise RequestError(f"{_wanted(path, config, split)} is not there {what_is_there(place, config, split)}")
        return LocalFiles(place.resolve().name, files)
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


def _wanted(path: str, config: str | None, split: str) -> str:
    return f"split '{split}' of {path}" + (f" with config '{config}'" if config else "")


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
            remedy = f"the mirror under POSTTRAIN_DATA lacks it {what_is_there(mirror, config, split)}"
        reason = " ".join(str(error).split())[:160]
        raise RequestError(
            f"{_wanted(path, config, split)} could not be had from the Hub ({reason}); {remedy}"
        ) from error
    if commit is None:
        raise RequestError(f"the Hub names no commit for dataset {path}; set revision to one")
    return commit

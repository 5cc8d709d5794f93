"""Which files of a folder make a dataset's split: the layouts that the Hub's datasets and their mirrors come in.

    <split>.jsonl                    one file a split, as in a mirror under POSTTRAIN_DATA; any suffix of row_files
    <split>-00000-of-00003.parquet   shards, with or without a digest at the end
    <split>/0000.parquet             the Hub's own conversion to Parquet

each in the folder itself, in `data/`, or in a folder named after the configuration. Nothing is read here.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from posttrain.core.errors import RequestError, suggest
from posttrain.data.row_files import SUFFIXES, suffix_of

_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]{8,})?")
_PART = re.compile(r"\d{4,5}")
_NO_ROWS = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}
"""What `datasets` writes beside rows."""

Files = Mapping[tuple[str | None, str], tuple[Path, ...]]
"""(configuration, split) to the files that make it, in order."""


def splits_in(folder: Path) -> Files:
    """Every split under a folder. Of a split in several forms the first of SUFFIXES is taken."""
    found: dict[tuple[str | None, str], dict[str, list[Path]]] = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        suffix = suffix_of(path)
        # What begins with a dot is the downloader's own.
        if suffix is None or path.name in _NO_ROWS or any(part.startswith(".") for part in place.parts):
            continue
        if path.is_file():
            config, split = _named(place, path.name.removesuffix(suffix))
            found.setdefault((config, split), {}).setdefault(suffix, []).append(path)
    return {key: tuple(next(forms[s] for s in SUFFIXES if s in forms)) for key, forms in found.items()}


def files_of_split(folder: Path, config: str | None, split: str, one_split: bool = False) -> tuple[Path, ...] | None:
    """The files of a split, None when it is not there.

    `one_split`: the dataset's files are not named after splits, and all of them are `train`. RequestError where
    several configurations are there and none is named, or where a shard is missing.
    """
    files = splits_in(folder)
    configs = {c for c, _ in files}
    if config is None and (None, split) not in files:
        if len(configs) > 1 and "default" not in configs:
            names = ", ".join(sorted(str(c) for c in configs if c))
            raise RequestError(f"dataset {folder} has several configurations ({names}); set config to one of them")
        config = "default" if "default" in configs else next(iter(configs), None)
    chosen = files.get((config, split))
    if chosen is None and one_split and split == "train":
        parts = [paths for (c, _), paths in sorted(files.items(), key=str) if c == config]
        chosen = tuple(sorted(path for paths in parts for path in paths)) or None
    if chosen is not None:
        _refuse_missing_shards(folder, chosen)
    return chosen


def what_is_there(folder: Path, config: str | None, split: str) -> str:
    """A parenthesis to end an error with: the split nearest to the one that is not there."""
    there = {f"{c}/{s}" if c else s for c, s in splits_in(folder)}
    return suggest(f"{config}/{split}" if config else split, there)


def _named(place: Path, stem: str) -> tuple[str | None, str]:
    """Configuration and split by a file's place below the dataset's folder."""
    folders = [part for number, part in enumerate(place.parts[:-1]) if number or part != "data"]
    if _PART.fullmatch(stem) and folders:
        stem = folders.pop()
    shard = _SHARD.fullmatch(stem)
    return "/".join(folders) or None, shard["split"] if shard else stem


def _refuse_missing_shards(folder: Path, paths: tuple[Path, ...]) -> None:
    shards = [_SHARD.fullmatch(path.name.removesuffix(suffix_of(path) or "")) for path in paths]
    there = {int(shard["number"]) for shard in shards if shard}
    count = max((int(shard["count"]) for shard in shards if shard), default=0)
    missing = sorted(set(range(count)) - there)
    if missing:
        names = ", ".join(str(number) for number in missing[:5])
        raise RequestError(
            f"dataset {folder}: of the {count} shards {paths[0].name} … number {names} is missing; get the whole folder"
        )

"""lm-eval tasks that read a local copy of their Hub dataset when there is one.

A task stays the stock one, prompt, filters and metric included; only where its rows come from changes. The copy lies
under `$POSTTRAIN_DATA/<hub id>` in one of the layouts of posttrain.data.layout (`<config>/<split>.jsonl` or another
suffix, or shards) with the Hub's columns. A config that is not there is taken from one called `all` by its column
`subject` (MMLU, whose 57 configurations are one file in the mirror).
"""

import os
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from posttrain.core.errors import RequestError
from posttrain.data.layout import splits_in
from posttrain.data.row_files import open_rows


class LocalTask(ConfigurableTask):
    """A configurable task whose `download` looks into the mirror first and says in one line what is missing."""

    def __init__(self, config: dict[str, Any]) -> None:
        # lm-eval chooses this class by the key "class", which its own configuration does not know.
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Sets `dataset`, a mapping of split to rows. RequestError when the Hub is asked and does not answer."""
        if not callable(self.config.custom_dataset) and (folder := mirror_folder(self.DATASET_PATH)):
            local = read_mirror(folder, self.DATASET_NAME)
            if local is not None:
                self.dataset = local
                return
        try:
            super().download(dataset_kwargs, **kwargs)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            name = f"{self.DATASET_PATH}{f' ({self.DATASET_NAME})' if self.DATASET_NAME else ''}"
            reason = " ".join(str(error).split())[:160]
            raise RequestError(
                f"task {self.config.task}: dataset {name} cannot be loaded: {reason}; put a copy under "
                f"$POSTTRAIN_DATA/{self.DATASET_PATH}/{self.DATASET_NAME or 'default'}/<split>.jsonl or go online"
            ) from error


def mirror_folder(hub_id: str | None) -> Path | None:
    """Where the mirror keeps a dataset, or None without a mirror or without this dataset in it."""
    root = os.environ.get("POSTTRAIN_DATA")
    if not root or not hub_id:
        return None
    folder = Path(root) / hub_id
    return folder if folder.is_dir() else None


def read_mirror(folder: Path, config: str | None) -> dict[str, datasets.Dataset] | None:
    """All splits of one config by name, or None when the mirror does not hold that config."""
    there = splits_in(folder)
    names = dict.fromkeys((config, "default") if config is None else (config,))
    for name in names:
        if found := {split: paths for (held, split), paths in there.items() if held == name}:
            return {split: datasets.Dataset.from_list(list(open_rows(paths))) for split, paths in found.items()}
    splits = {}
    for (held, split), paths in there.items():
        rows = [row for row in _rows(paths) if row.get("subject") == config] if held == "all" else []
        if rows:
            splits[split] = datasets.Dataset.from_list(rows)
    return splits or None


_PARSED: dict[tuple[tuple[Path, int], ...], list[dict[str, Any]]] = {}


def _rows(paths: tuple[Path, ...]) -> list[dict[str, Any]]:
    """Rows of an `all` split, parsed once for the 57 tasks that each take their part."""
    key = tuple((path, path.stat().st_mtime_ns) for path in paths)
    if key not in _PARSED:
        _PARSED[key] = list(open_rows(paths))
    return _PARSED[key]

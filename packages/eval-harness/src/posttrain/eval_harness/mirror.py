"""lm-eval tasks that read a local copy of their Hub dataset when there is one.

A task stays the stock one, prompt, filters and metric included; only where its rows come from changes. The copy has the
Hub's layout: `$POSTTRAIN_DATA/<hub id>/<config>/<split>.jsonl`, the Hub's columns. A config that is not there is taken
from one called `all` by its column `subject` (MMLU, whose 57 configurations are one file in the mirror).
"""

import os
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from posttrain.core.errors import RequestError
from posttrain.core.files import read_jsonl


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
    exact = folder / (config or "default")
    if exact.is_dir():
        return {path.stem: datasets.Dataset.from_list(read_jsonl(path)) for path in sorted(exact.glob("*.jsonl"))}
    splits = {}
    for path in sorted((folder / "all").glob("*.jsonl")):
        rows = [row for row in _rows(path) if row.get("subject") == config]
        if rows:
            splits[path.stem] = datasets.Dataset.from_list(rows)
    return splits or None


_PARSED: dict[tuple[Path, int], list[dict[str, Any]]] = {}


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of an `all` file, parsed once for the 57 tasks that each take their part."""
    key = (path, path.stat().st_mtime_ns)
    if key not in _PARSED:
        _PARSED[key] = read_jsonl(path)
    return _PARSED[key]

"""Files of rows, read one row at a time: JSON Lines, JSON, Parquet and CSV, the text ones also compressed (`.gz`).

`open_rows` gives a sequence by row number that holds no more in memory than where each row lies (of a compressed file
its text, of JSON all); `stream_rows` gives the rows once, front to back. Lines and records are text_rows'; which files
make a split is posttrain.data.layout's.
"""

import glob
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain.core.errors import RequestError
from posttrain.data.text_rows import Csv, JsonLines, Row, TextRows, opened, stream_text, unreadable

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".csv", ".csv.gz")
"""What is read; of one split in several forms, the first."""

_TEXT: dict[str | None, type[JsonLines] | type[Csv]] = {
    ".jsonl": JsonLines,
    ".jsonl.gz": JsonLines,
    ".csv": Csv,
    ".csv.gz": Csv,
}


def suffix_of(path: Path) -> str | None:
    """The one of SUFFIXES that a file's name ends with."""
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)


def open_rows(paths: Sequence[Path]) -> Sequence[Row]:
    """The rows of files of one suffix, one file after the other; RequestError names the file, and the line where the
    format has lines."""
    suffix = suffix_of(paths[0])
    if suffix in _TEXT:
        return TextRows(paths, _TEXT[suffix])
    rows: Any
    if suffix in (".json", ".json.gz"):
        rows = [row for path in paths for row in _json_list(path)]
    else:
        rows = _by_datasets(paths, streaming=False)
    if not len(rows):
        raise RequestError(f"{paths[0]} is empty")
    return rows


def stream_rows(paths: Sequence[Path]) -> Iterator[Row]:
    """The same rows in the same order, without an index; errors come when the row is reached."""
    suffix = suffix_of(paths[0])
    if suffix in _TEXT:
        return (row for path in paths for row in stream_text(path, _TEXT[suffix]))
    if suffix in (".json", ".json.gz"):
        return (row for path in paths for row in _json_list(path))
    return _stream_by_datasets(paths)


def _json_list(path: Path) -> list[Row]:
    """A JSON list of objects, or an object whose `data` is one (as `datasets` writes it)."""
    with unreadable(path), opened(path) as file:
        content = file.read()
    try:
        value = json.loads(content.decode("utf-8-sig") or "[]")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 (byte {error.start}); convert the file") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"{path}:{error.lineno} is not JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        raise RequestError(f"{path} is JSON that cannot be read: {error}") from None
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RequestError(f"{path} must hold a list of objects; for an object a line name it .jsonl")
    return rows


def _by_datasets(paths: Sequence[Path], streaming: bool) -> Any:
    """Parquet by `datasets`, which maps its own copy of it from the disk."""
    import datasets

    files = [glob.escape(str(path)) for path in paths]
    with refused(str(paths[0])):
        return datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming)


def _stream_by_datasets(paths: Sequence[Path]) -> Iterator[Row]:
    with refused(str(paths[0])):
        for row in _by_datasets(paths, streaming=True):
            yield dict(row)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Turns what `datasets` says of data that it cannot read into one line that starts with `what`."""
    import datasets

    try:
        yield
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        # It lists the configurations and splits that there are in these messages.
        raise RequestError(f"{what} could not be read: {' '.join(str(error).split())[:400]}") from error

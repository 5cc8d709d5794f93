"""Files of rows, read one row at a time: JSON Lines, JSON, Parquet and CSV, the text ones also compressed (`.gz`).

`open_rows` gives a sequence by row number that holds no more in memory than where each row lies (of a compressed file
its text); `stream_rows` gives the rows once, front to back. Which files make a split is posttrain.data.layout's.
"""

import gzip
import io
import json
import mmap
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

from posttrain.core.errors import RequestError
from posttrain.core.files import jsonl_object

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".csv", ".csv.gz")
"""What is read; of one split in several forms, the first."""

Row = dict[str, Any]


def suffix_of(path: Path) -> str | None:
    """The one of SUFFIXES that a file's name ends with."""
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)


def open_rows(paths: Sequence[Path]) -> Sequence[Row]:
    """The rows of files of one suffix, one file after the other; RequestError names the file, and the line where the
    format has lines."""
    suffix = suffix_of(paths[0])
    if suffix in (".jsonl", ".jsonl.gz"):
        return JsonLines(paths)
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
    if suffix in (".jsonl", ".jsonl.gz"):
        return (row for path in paths for row in _stream_lines(path))
    if suffix in (".json", ".json.gz"):
        return (row for path in paths for row in _json_list(path))
    return _stream_by_datasets(paths)


class JsonLines(Sequence[Row]):
    """The objects of JSON Lines files by number; a line is parsed when it is asked for. Blank lines are no rows."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._contents = [_content(path) for path in paths]
        self._starts, self._ends, self._numbers = array("Q"), array("Q"), array("Q")
        self._first: list[int] = []
        for path, content in zip(paths, self._contents, strict=True):
            self._first.append(len(self._starts))
            # Read, not looked up in the map: its pages would all count as this process's memory.
            with io.BytesIO(content) if isinstance(content, bytes) else open(path, "rb") as lines:
                self._index(lines)
        if not self._starts:
            raise RequestError(f"{paths[0]} is empty")

    def _index(self, lines: Iterable[bytes]) -> None:
        start = 0
        for number, line in enumerate(lines, start=1):
            if line.strip():
                self._starts.append(start)
                self._ends.append(start + len(line))
                self._numbers.append(number)
            start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        file = bisect_right(self._first, index) - 1
        line = self._contents[file][self._starts[index] : self._ends[index]]
        return jsonl_object(line, self._paths[file], self._numbers[index])


def _content(path: Path) -> bytes | mmap.mmap:
    """A file's bytes: mapped, so that only what is looked at is in memory; decompressed, all of them are."""
    if path.suffix == ".gz":
        return _whole(path)
    with _unreadable(path), open(path, "rb") as file:
        if not path.stat().st_size:
            return b""
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):  # not everywhere; it keeps the system from reading ahead
        mapped.madvise(mmap.MADV_RANDOM)
    return mapped


def _whole(path: Path) -> bytes:
    """A file's bytes, decompressed."""
    with _unreadable(path), gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        return file.read()


@contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    """Turns what cannot be read into one line."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RequestError(f"{path} is no whole gzip file ({error}); get it again") from None
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None


def _stream_lines(path: Path) -> Iterator[Row]:
    with _unreadable(path), gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield jsonl_object(line, path, number)


def _json_list(path: Path) -> list[Row]:
    """A JSON list of objects, or an object whose `data` is one (as `datasets` writes it)."""
    content = _whole(path)
    try:
        value = json.loads(content.decode("utf-8") or "[]")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 (byte {error.start}); convert the file") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"{path}:{error.lineno} is not JSON: {error.msg} at column {error.colno}") from None
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RequestError(f"{path} must hold a list of objects; for an object a line name it .jsonl")
    return rows


def _by_datasets(paths: Sequence[Path], streaming: bool) -> Any:
    """Parquet and CSV by `datasets`, which maps its own copy of them from the disk."""
    import datasets

    kind = "parquet" if suffix_of(paths[0]) == ".parquet" else "csv"
    files = [str(path) for path in paths]
    with refused(str(paths[0])):
        return datasets.load_dataset(kind, data_files=files, split="train", streaming=streaming)


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

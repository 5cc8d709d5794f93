"""Rows of text files by number or front to back: an object a line (JSON Lines), or a record under a header (CSV).

`TextRows` holds in memory where each row lies (of a compressed file its text), and parses a row when it is asked for.
A CSV's values are text as it stands there, `007` and `None` too; an empty one is null.
"""

import codecs
import csv
import gzip
import io
import mmap
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, cast, overload

from posttrain.core.errors import RequestError
from posttrain.core.files import jsonl_object

Row = dict[str, Any]

LONGEST_VALUE = 1 << 30
"""Characters of a CSV's value; Python's own limit, 131,072, is less than a long text has."""


class Syntax(Protocol):
    """How one file's rows are written."""

    def texts(self, lines: Iterable[bytes]) -> Iterator[tuple[int, bytes, int]]:
        """Of each row its first byte's place, its text and its first line's number; RequestError for none."""

    def row(self, text: bytes, number: int) -> Row:
        """A row's text parsed; RequestError names file and line."""


class JsonLines:
    """An object a line; blank lines are no rows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def texts(self, lines: Iterable[bytes]) -> Iterator[tuple[int, bytes, int]]:
        start = 0
        for number, line in enumerate(lines, start=1):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if text.strip():
                yield start + len(line) - len(text), text, number
            start += len(line)

    def row(self, text: bytes, number: int) -> Row:
        return jsonl_object(text, self._path, number)


class Csv:
    """Values with commas between them, in quotes where they hold commas, quotes or line breaks, under their names."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: list[str] = []

    def texts(self, lines: Iterable[bytes]) -> Iterator[tuple[int, bytes, int]]:
        read: list[bytes] = []

        def decoded() -> Iterator[str]:
            for count, line in enumerate(lines):
                read.append(line)
                yield self._decoded(line, number + len(read) - 1, "utf-8" if count else "utf-8-sig")

        start, number = 0, 1
        csv.field_size_limit(LONGEST_VALUE)
        records = csv.reader(decoded(), strict=True)
        while (values := self._next(records, number)) is not None:
            text = b"".join(read)
            if not self._names:
                self._names = self._header(values)
            elif values:
                self._refuse_another_length(values, number)
                yield start, text, number
            start, number = start + len(text), number + len(read)
            read.clear()

    def row(self, text: bytes, number: int) -> Row:
        values = next(csv.reader(io.StringIO(self._decoded(text, number, "utf-8"), newline=""), strict=True))
        return {name: value or None for name, value in zip(self._names, values, strict=True)}

    def _next(self, records: Iterator[list[str]], number: int) -> list[str] | None:
        try:
            return next(records, None)
        except csv.Error as error:
            raise RequestError(f"{self._path}:{number} is not CSV: {error}") from None

    def _decoded(self, text: bytes, number: int, encoding: str) -> str:
        try:
            return text.decode(encoding)
        except UnicodeDecodeError as error:
            raise RequestError(f"{self._path}:{number} is not UTF-8 (byte {error.start}); convert the file") from None

    def _header(self, names: list[str]) -> list[str]:
        twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
        if twice is not None:
            raise RequestError(f"{self._path} has two columns '{twice}'; rename one")
        return names

    def _refuse_another_length(self, values: list[str], number: int) -> None:
        if len(values) != len(self._names):
            raise RequestError(
                f"{self._path}:{number} has {len(values)} values for the {len(self._names)} columns of the header; put "
                "values that hold commas in quotes"
            )


class TextRows(Sequence[Row]):
    """The rows of files by number, one file after the other. RequestError for files that hold none."""

    def __init__(self, paths: Sequence[Path], syntax: type[JsonLines] | type[Csv]) -> None:
        self._syntaxes: list[Syntax] = [syntax(path) for path in paths]
        self._contents = [_content(path) for path in paths]
        self._starts, self._ends, self._numbers = array("Q"), array("Q"), array("Q")
        self._first: list[int] = []
        for path, content, rows in zip(paths, self._contents, self._syntaxes, strict=True):
            self._first.append(len(self._starts))
            # Read, not looked up in the map: its pages would all count as this process's memory.
            with io.BytesIO(content) if isinstance(content, bytes) else open(path, "rb") as lines:
                for start, text, number in rows.texts(lines):
                    self._starts.append(start)
                    self._ends.append(start + len(text))
                    self._numbers.append(number)
        if not self._starts:
            raise RequestError(f"{paths[0]} is empty")

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
        text = self._contents[file][self._starts[index] : self._ends[index]]
        return self._syntaxes[file].row(text, self._numbers[index])


def stream_text(path: Path, syntax: type[JsonLines] | type[Csv]) -> Iterator[Row]:
    """The rows of a file front to back."""
    rows: Syntax = syntax(path)
    with unreadable(path), opened(path) as lines:
        for _, text, number in rows.texts(lines):
            yield rows.row(text, number)


def opened(path: Path) -> IO[bytes]:
    """A file's bytes, decompressed where its name says so."""
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else open(path, "rb")


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Turns what cannot be read into one line."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RequestError(f"{path} is no whole gzip file ({error}); get it again") from None
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None


def _content(path: Path) -> bytes | mmap.mmap:
    """A file's bytes: mapped, so that only what is looked at is in memory; decompressed, all of them are."""
    with unreadable(path), opened(path) as file:
        if path.suffix == ".gz" or not path.stat().st_size:
            return file.read()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):  # not everywhere; it keeps the system from reading ahead
        mapped.madvise(mmap.MADV_RANDOM)
    return mapped

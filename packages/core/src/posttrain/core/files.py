"""Files that are whole or absent: everything is written beside its place and renamed into it.

A crash or a full disk leaves the old content or none, never a half. What the disk refuses becomes a StorageError that
names the path.
"""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from posttrain.core.errors import PosttrainError, RequestError, StorageError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk, the user's share of it, or the limit on a file's size is used up."""
NOT_WRITABLE = (
    errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EIO,
)  # fmt: skip
"""Nobody may write there, a path is a file where it should be a folder or the other way round, the disk is broken."""
_TOLD = re.compile(r"\((?:os error|errno) (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
"""How safetensors (Rust) and Arrow tell an error of the system's."""
_TORCH_WRITER = "inline_container.cc"
"""Where torch.save fails when it cannot write; it does not say why."""


def storage_error(error: BaseException, path: Path) -> StorageError | None:
    """What to tell when writing `path` ended in `error`; None where that has nothing to do with the disk."""
    code = (error.errno if isinstance(error, OSError) else None) or _told_errno(str(error))
    said = (error.strerror if isinstance(error, OSError) else None) or os.strerror(code or 0)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"no space left to write {path}; free some (posttrain runs gc) and start again")
    if code == errno.EFBIG:
        return StorageError(
            f"no space left to write {path} (files may not be so large: ulimit -f); start again with more"
        )
    if code in (errno.EACCES, errno.EROFS):
        advice = "make it writable for this user, or name another folder"
        return StorageError(f"cannot write {path}: {said}; {advice}")
    if code in NOT_WRITABLE:
        return StorageError(f"cannot write {path}: {said}")
    if _TORCH_WRITER in str(error):
        return StorageError(f"torch could not write {path}; free some space there, if it is full, and start again")
    return None


def _told_errno(text: str) -> int | None:
    if found := _TOLD.search(text):
        return int(found[1] or found[2])
    return next((code for code in NO_ROOM if os.strerror(code) in text), None)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the refusals of disk and operating system to write, from whichever library they come, into a StorageError
    of one clear line."""
    try:
        yield
    except PosttrainError:
        raise
    except Exception as error:
        if told := storage_error(error, path):
            raise told from error
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a file that durably takes the place of `path` when the block ends well, and vanishes when it does not.

    Parent folders are made; readers see the old file or the new one.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(data)


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write_bytes` of UTF-8 text."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path, value: Any) -> None:
    """`atomic_write_text` of indented JSON with a final newline."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `path` when the block ends well, and vanishes when it does not."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            yield new
            for file in new.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
            os.chmod(new, 0o755)
            if path.exists():
                old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old.tmp"))
                os.replace(path, old / "old")
                os.replace(new, path)
                shutil.rmtree(old)
            else:
                os.replace(new, path)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise


def user_path(text: str) -> Path:
    """The path that a person typed, with `~` and `~somebody` as folders; RequestError where there is no such home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise RequestError(f"{text}: there is no such home folder; write the path out") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file; RequestError names the file when it cannot be read or is malformed."""
    try:
        return json.loads(_read(path).decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RequestError(f"{path} is not JSON: {error}") from None


def read_jsonl(path: Path, *, allow_empty: bool = False) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file. RequestError names file and line for what is not UTF-8, JSON or an object."""
    lines = _read(path).split(b"\n")
    rows = [jsonl_object(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows and not allow_empty:
        raise RequestError(f"{path} is empty")
    return rows


def jsonl_object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """The object in one line of a JSON Lines file; RequestError names file and line."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}:{number} is not UTF-8 (byte {error.start}); convert the file") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"{path}:{number} is not JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        raise RequestError(f"{path}:{number} is JSON that cannot be read: {error}") from None
    if not isinstance(row, dict):
        raise RequestError(f"{path}:{number} must be a JSON object, not {type(row).__name__}")
    return row


def _read(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist") from None
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes all rows, one object a line, atomically; each as it comes, so that not all of them need lie in memory."""
    with atomic_file(path) as file:
        file.writelines((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode() for row in rows)


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Appends one object under a lock beside the file, so that concurrent writers never mix their lines."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        with FileLock(f"{path}.lock"), open(path, "ab", buffering=0) as file:
            _write_whole(file, line.encode())


def append_durably(path: Path, row: Mapping[str, Any]) -> None:
    """As `append_jsonl`, and on the disk when it returns. Half a line that a crash left behind is cut off first; a last
    row that is whole and lacks its newline, as an editor leaves it, gets one."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        with FileLock(f"{path}.lock"), open(path, "a+b", buffering=0) as file:
            _end_last_line(file)
            _write_whole(file, line.encode())
            os.fsync(file.fileno())


def _write_whole(file: FileIO, data: bytes) -> None:
    """Appends all of it or, on a disk that fills up in the middle, nothing: whoever appends next would go on with half
    a line."""
    size, rest = os.fstat(file.fileno()).st_size, memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        file.truncate(size)
        raise


def whole_lines(content: bytes) -> list[bytes]:
    """The lines of a file that rows are appended to, without half a line that a crash left, or that is being written.

    A last line without its newline is whole where it is a JSON object: no beginning of one is an object itself.
    """
    *lines, last = content.split(b"\n")
    return [*lines, last] if _is_object(last) else lines


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _end_last_line(file: Any) -> None:
    """Leaves `file` (opened a+b) ending in a newline or empty."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    if _is_object(content[start:]):
        file.write(b"\n")
    else:
        file.truncate(start)

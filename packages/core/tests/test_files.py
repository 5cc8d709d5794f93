"""Files are whole or absent, and what cannot be read is named by file and line."""

import errno
import json
import os
import resource
import threading
from pathlib import Path

import pytest

from posttrain.core import files
from posttrain.core.errors import RequestError, StorageError, WorkError
from posttrain.core.files import (
    append_durably,
    append_jsonl,
    atomic_directory,
    atomic_write_bytes,
    atomic_write_json,
    read_json,
    read_jsonl,
    write_jsonl,
)


def test_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_write_bytes(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(WorkError, match=r"no space left to write .*file; free some"):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_real_full_disk_is_one_clear_error(tmp_path):
    if not Path("/dev/full").is_char_device():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(WorkError, match="no space left"), files.disk_errors(tmp_path), open("/dev/full", "w") as full:
        full.write("x")
        full.flush()


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_full_disk_that_a_library_tells_in_words_is_the_same_error(tmp_path, kind):
    """safetensors and torch raise errors of their own, as in: I/O error: No space left on device (os error 28)."""
    with pytest.raises(WorkError, match="no space left"), files.disk_errors(tmp_path):
        raise kind("I/O error: No space left on device (os error 28)")
    with pytest.raises(kind, match="other"), files.disk_errors(tmp_path):
        raise kind("other trouble")


TOLD = [
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left to write {path}; free some"),
    (OSError(errno.EFBIG, "File too large"), "no space left to write {path} (files may not be so large: ulimit -f)"),
    (OSError(errno.EROFS, "Read-only file system"), "cannot write {path}: Read-only file system; make it writable"),
    (OSError(errno.EACCES, "Permission denied"), "cannot write {path}: Permission denied; make it writable for this"),
    (OSError(errno.EIO, "Input/output error"), "cannot write {path}: Input/output error"),
    (OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left"), "no space left to write"),
    (ValueError("I/O error: Disk quota exceeded (os error 122)"), "no space left to write {path}; free some"),
    (ValueError("I/O error: Read-only file system (os error 30)"), "cannot write {path}: Read-only file system; make"),
    (RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed"), "torch could not write"),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3681920 vs 36818"), "torch could not"),
]


@pytest.mark.parametrize(("error", "told"), TOLD, ids=lambda value: str(value)[:40])
def test_whatever_the_disk_refuses_is_one_line_with_the_path_and_what_to_do(tmp_path, error, told):
    with pytest.raises(StorageError) as found, files.disk_errors(tmp_path):
        raise error
    assert str(found.value).startswith(told.format(path=tmp_path))
    assert found.value.exit_status == 1


def test_what_is_told_already_is_not_told_anew(tmp_path):
    with pytest.raises(WorkError, match="^the service says: No space left on device$"), files.disk_errors(tmp_path):
        raise WorkError("the service says: No space left on device")


@pytest.mark.parametrize("append", [append_jsonl, append_durably])
def test_a_disk_that_fills_up_within_a_line_keeps_the_lines_before_and_takes_more_once_there_is_room(tmp_path, append):
    path = tmp_path / "rows.jsonl"
    append(path, {"n": 1})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limit[1]))
    try:
        with pytest.raises(StorageError, match="no space left to write .*rows.jsonl"):
            append(path, {"n": 2, "text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    append(path, {"n": 3})
    assert read_jsonl(path) == [{"n": 1}, {"n": 3}]


def test_directory_appears_whole(tmp_path):
    with atomic_directory(tmp_path / "checkpoint") as folder:
        (folder / "weights").write_text("w")
        assert not (tmp_path / "checkpoint").exists()
    assert (tmp_path / "checkpoint" / "weights").read_text() == "w"


def test_failed_directory_leaves_the_old_one(tmp_path):
    with atomic_directory(tmp_path / "checkpoint") as folder:
        (folder / "weights").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "checkpoint") as folder:
        (folder / "weights").write_text("half")
        raise RuntimeError
    assert (tmp_path / "checkpoint" / "weights").read_text() == "old"
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_directory_replaces_the_old_one(tmp_path):
    for content in ("old", "new"):
        with atomic_directory(tmp_path / "checkpoint") as folder:
            (folder / content).write_text("x")
    assert os.listdir(tmp_path / "checkpoint") == ["new"]
    assert os.listdir(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\nnot json\n', r":2 is not JSON"),
        (b'{"a": 1}\n\xff\n', r":2 is not UTF-8"),
        (b"[1]\n", r":1 must be a JSON object, not list"),
        (b"\n\n", "is empty"),
    ],
)
def test_bad_line_is_named(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read_jsonl(path)


def test_unicode_line_separators_do_not_split_rows(tmp_path):
    rows = [{"text": "a\u2028b\u0085c"}, {"text": "d"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


def test_rows_go_to_the_disk_as_they_come_and_to_their_place_at_the_end(tmp_path):
    def rows():
        for number in range(100):
            yield {"number": number, "text": "x" * 10_000}
        (unfinished,) = tmp_path.iterdir()
        assert unfinished.name != "rows.jsonl"
        assert unfinished.stat().st_size > 900_000

    write_jsonl(tmp_path / "rows.jsonl", rows())
    assert [row["number"] for row in read_jsonl(tmp_path / "rows.jsonl")] == list(range(100))
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_rows_that_end_in_an_error_leave_the_old_file(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"old": 1}])
    with pytest.raises(ValueError, match="Out of range"):
        write_jsonl(tmp_path / "rows.jsonl", [{"new": 1}, {"new": float("nan")}])
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"old": 1}]
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        atomic_write_json(tmp_path / "x.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_path_below_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "below.json", tmp_path / "file" / "further" / "below.json"):
        with pytest.raises(WorkError, match=r"^cannot write .*below.json: (Not a directory|File exists)$"):
            atomic_write_json(path, {})
    with pytest.raises(RequestError, match=r"^cannot read .*below.json: Not a directory$"):
        read_json(tmp_path / "file" / "below.json")


@pytest.mark.parametrize("read", [read_json, read_jsonl])
def test_a_folder_is_no_file_to_read(tmp_path, read):
    with pytest.raises(RequestError, match=f"^cannot read {tmp_path}: Is a directory$"):
        read(tmp_path)


def test_concurrent_appends_never_mix(tmp_path):
    path = tmp_path / "log.jsonl"
    text = "x" * 5000

    def write(writer):
        for number in range(20):
            append_jsonl(path, {"writer": writer, "number": number, "text": text})

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((row["writer"], row["number"]) for row in rows) == [(w, n) for w in range(4) for n in range(20)]

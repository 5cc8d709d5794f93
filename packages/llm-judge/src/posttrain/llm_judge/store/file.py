"""The store's SQLite file: its tables, how it is opened, and its errors as one line each.

In WAL mode readers and a writer do not wait for each other, two writers do. With `synchronous = FULL` a commit has
reached the disk when it returns: neither kill -9 nor a power failure takes it back.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from posttrain.core.errors import RequestError, WorkError
from posttrain.core.files import disk_errors

VERSION = 1
"""Of the tables; raised when they change."""
APPLICATION = 0x7074_6A64
"""SQLite's application_id of a store ("ptjd"), by which another program's file is told."""
PATIENCE = 60.0
"""Seconds to wait for another process that writes."""

TABLES = """
CREATE TABLE judges (id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE texts (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, text TEXT NOT NULL) STRICT;
CREATE TABLE comparisons (id INTEGER PRIMARY KEY, content TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE judgements (
    key BLOB PRIMARY KEY,
    judge INTEGER NOT NULL REFERENCES judges,
    comparison INTEGER NOT NULL REFERENCES comparisons,
    shown TEXT NOT NULL,
    replicate INTEGER NOT NULL,
    label TEXT,
    value REAL,
    raw TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cost REAL,
    seconds REAL NOT NULL,
    created REAL NOT NULL
) STRICT;
CREATE TABLE claims (
    key BLOB PRIMARY KEY,
    owner TEXT NOT NULL,
    process TEXT NOT NULL,
    expires REAL NOT NULL
) STRICT, WITHOUT ROWID;
"""
"""A text is kept once, however many games show it; a comparison names its texts by id."""


def connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit mode to a store that `create_store` has seen; one thread at a time may use it."""
    connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    # Keys are digests, so that a run's judgements lie all over the file: 64 MiB instead of 2 saves a quarter of a read.
    connection.execute("PRAGMA cache_size = -65536")
    return connection


def create_store(path: Path) -> None:
    """Makes the store if there is none; RequestError for a file that is not one, or is one of another version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that both turn a new file to WAL fail at once, with no patience.
    with FileLock(f"{path}.lock"):
        connection = connect(path)
        try:
            version, application, tables = (
                connection.execute(query).fetchone()[0]
                for query in ("PRAGMA user_version", "PRAGMA application_id", "SELECT COUNT(*) FROM sqlite_schema")
            )
            if not tables:
                connection.execute("PRAGMA journal_mode = WAL")
                about = f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};"
                connection.executescript(f"BEGIN IMMEDIATE; {TABLES} {about} COMMIT;")
            elif application != APPLICATION:
                raise RequestError(f"{path} is another program's database; name another file for the judge's store")
            elif version != VERSION:
                raise RequestError(
                    f"{path} is version {version} of the judge's store, and this release reads version {VERSION}; "
                    "use the release that wrote it, or name another file"
                )
        finally:
            connection.close()


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turns what SQLite and the operating system say of the store at `path` into one clear line."""
    with disk_errors(path):
        try:
            yield
        except sqlite3.Error as error:
            # The extended codes carry the primary one in their lowest byte; the module's own errors have none.
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
                raise OSError(errno.EACCES, str(error)) from error
            if code == sqlite3.SQLITE_BUSY:
                raise WorkError(f"another process has been writing {path} for {PATIENCE:.0f} s; start again") from error
            if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise RequestError(f"{path} is not a judge's store, or is damaged ({error}); name another") from error
            raise WorkError(f"the judge's store {path} failed: {error}") from error

"""Claims: which process is asking which game right now, so that two processes do not pay for the same one.

A claim ends with its judgement, when it is released, when it expires, and with the process that made it.
"""

import json
import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterable
from functools import cache

import psutil

from posttrain.llm_judge.store.rows import insert, rows_in

LEASE = 1800.0
"""Seconds after which a claim no longer holds, whatever became of its owner: far beyond the longest that a game takes
with its retries. It decides only where the owner's death cannot be seen, on another host."""
SAME_START = 60.0
"""Seconds by which two readings of one process's start may differ when the clock is set meanwhile."""


class Owner:
    """One handle of a store, in this process."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        started = psutil.Process().create_time()
        self.process = json.dumps({"host": _host(), "pid": os.getpid(), "started": started})


def claim(connection: sqlite3.Connection, keys: Collection[bytes], owner: Owner, lease: float) -> set[bytes]:
    """Those of the keys that have no judgement and that nobody else holds; they are the owner's now."""
    now, wanted = time.time(), list(dict.fromkeys(keys))
    there = {key for (key,) in rows_in(connection, "SELECT key FROM judgements WHERE key", wanted)}
    held = {
        key: process
        for key, process, expires in rows_in(connection, "SELECT key, process, expires FROM claims WHERE key", wanted)
        if expires > now
    }
    gone = {process for process in set(held.values()) if has_ended(process)}
    mine = [key for key in wanted if key not in there and (key not in held or held[key] in gone)]
    rows = [(key, owner.name, owner.process, now + lease) for key in mine]
    insert(connection, "INSERT OR REPLACE INTO claims", ("key", "owner", "process", "expires"), rows)
    return set(mine)


def release(connection: sqlite3.Connection, keys: Iterable[bytes], owner: Owner) -> None:
    """Lets go of what the owner holds of the keys."""
    connection.executemany("DELETE FROM claims WHERE key = ? AND owner = ?", [(key, owner.name) for key in keys])


def release_all(connection: sqlite3.Connection, owner: Owner) -> None:
    """Lets go of all that the owner holds."""
    connection.execute("DELETE FROM claims WHERE owner = ?", (owner.name,))


def has_ended(process: str) -> bool:
    """Whether the process that made a claim is known to be gone. One of another host is not known of."""
    made_by = json.loads(process)
    if made_by["host"] != _host():
        return False
    try:
        found = psutil.Process(made_by["pid"])
        return found.status() == psutil.STATUS_ZOMBIE or abs(found.create_time() - made_by["started"]) > SAME_START
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


@cache
def _host() -> str:
    """Where process ids mean the same: containers have their own."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}"

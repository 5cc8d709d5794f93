"""Temporary folders from which another program reads weights, and the removal of those that killed processes left.

A folder is in use as long as the process that made it holds its lock, which ends with the process however that ends,
on this machine or on another one that shares the disk.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "posttrain-served-"
LOCK = ".in-use"
STALE_SECONDS = 60.0
"""How long a folder is left alone that nobody holds: one that is being made has no lock yet."""


class WeightsFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder that a server under another account can read too, removed with `cleanup` or its context."""

    def __init__(self) -> None:
        super().__init__(prefix=PREFIX)
        Path(self.name).chmod(0o755)
        self._lock = FileLock(Path(self.name) / LOCK, thread_local=False)
        self._lock.acquire()

    def cleanup(self) -> None:
        """Removes the folder."""
        self._lock.release()
        super().cleanup()


def remove_stale_folders() -> None:
    """Removes this user's folders, where Python puts temporary files, whose makers are gone."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        try:
            # In a place that everybody may write to, another's folder or link may lead anywhere.
            ours = all(path.lstat().st_uid == os.getuid() for path in (lock.parent, lock))
            if ours and time.time() - lock.lstat().st_mtime > STALE_SECONDS:
                with FileLock(lock, timeout=0):
                    shutil.rmtree(lock.parent, ignore_errors=True)  # another process may be removing it, too
        except (Timeout, OSError):
            continue  # in use, somebody else's, or just gone: not ours to remove

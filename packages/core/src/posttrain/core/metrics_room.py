"""Room on the disk for a service's Prometheus metrics, so that a full disk does not end it.

Where several processes share metrics, as under BentoML, prometheus_client keeps them in memory-mapped files that are
larger than what is written to them. A write to a page that the disk has no room for is no error but SIGBUS.
"""

import os
from typing import Any

from posttrain.core.files import NO_ROOM

FIRST_BYTES = 1 << 16
"""What prometheus_client begins a file with."""
LONGEST_ENTRY = 1 << 12


def roomy(mapped: type) -> type:
    """A class like prometheus_client's MmapedDict that has the disk's promise for every page before it is written.

    A file that finds no room lies in memory: its metrics are counted and not shown. One that cannot grow raises
    OSError, which costs a request and not the service.
    """

    class Roomy(mapped):
        def __init__(self, filename: str, read_mode: bool = False) -> None:
            super().__init__(filename if read_mode else _with_room(filename), read_mode)

        def _init_value(self, key: str) -> Any:
            if self._used + LONGEST_ENTRY > self._capacity:
                # Not by name: somebody may have wiped the folder.
                _promise(f"/dev/fd/{self._f.fileno()}", 2 * self._capacity)
            return super()._init_value(key)

    return Roomy


def _with_room(filename: str) -> str:
    try:
        _promise(filename, FIRST_BYTES)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        os.unlink(filename)  # readers expect a beginning
        return f"/dev/fd/{os.memfd_create('metrics')}"
    return filename


def _promise(file: str, size: int) -> None:
    """Has the disk keep `size` bytes for a file, or as many as it has; OSError where there is no room.

    Not every system (macOS) and file system can promise any; there the file is what it would be without this.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    # Not opened to append: glibc does without what the file system cannot do, but for such a file.
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        os.posix_fallocate(descriptor, 0, max(os.fstat(descriptor).st_size, size))
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
    finally:
        os.close(descriptor)

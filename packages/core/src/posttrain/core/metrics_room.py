"""Room on the disk for a service's Prometheus metrics, so that a full disk does not end it.

Where several processes share metrics, as under BentoML, prometheus_client keeps them in memory-mapped files that are
larger than what is written to them. A write to a page that the disk has no room for is no error but SIGBUS.
"""

import os
from typing import Any

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
                os.posix_fallocate(self._f.fileno(), 0, 2 * self._capacity)
            return super()._init_value(key)

    return Roomy


def _with_room(filename: str) -> str:
    with open(filename, "a+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(os.fstat(file.fileno()).st_size, FIRST_BYTES))
        except OSError:
            os.unlink(filename)  # readers expect a beginning
            return f"/dev/fd/{os.memfd_create('metrics')}"
    return filename

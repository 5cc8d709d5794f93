"""Ties a process's life to its parent's, so that nothing that a run started outlives it."""

import ctypes
import os
import signal
import subprocess
import sys
from typing import Any

PARENT_VARIABLE = "POSTTRAIN_PARENT"
"""Set to its process id by a program that starts `posttrain` and wants it to end with itself."""

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None, by: int = signal.SIGTERM) -> None:
    """Asks the kernel to send this process the signal `by` when the thread that started it ends; Linux only, else
    nothing.

    It survives exec. `parent` is the process id that is expected to live still; without it the present one.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = parent or os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, by, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the request was made
        os.kill(os.getpid(), by)


def end_process(process: subprocess.Popen[Any], seconds: float) -> None:
    """SIGTERM, and SIGKILL to what is left after so many seconds; returns when the process has ended."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

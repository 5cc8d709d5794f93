"""Ties a process's life to its parent's, so that nothing that a run started outlives it."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks the kernel to send this process SIGTERM when the thread that started it ends; Linux only, else nothing.

    It survives exec, so it fits `subprocess.Popen(preexec_fn=…)` as well as the start of a worker.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the request was made
        os.kill(os.getpid(), signal.SIGTERM)

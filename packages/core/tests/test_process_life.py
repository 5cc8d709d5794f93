"""A started command ends with the process that started it, even when that is killed."""

import signal
import subprocess
import sys
import time

import pytest

PARENT = """
import os, subprocess, sys, time
child = "import os, time; from posttrain.core.process import *; die_with_parent(int(os.environ[PARENT_VARIABLE]));"
child += "print('ready', flush=True); time.sleep(60)"
from posttrain.core.process import PARENT_VARIABLE
started = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE,
                           env={**os.environ, PARENT_VARIABLE: str(os.getpid())})
started.stdout.readline()
print(started.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_child_ends_when_its_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _runs(child):
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_child_of_a_dead_parent_ends_at_once():
    code = "from posttrain.core.process import die_with_parent; die_with_parent(999999999); import time; time.sleep(5)"
    done = subprocess.run([sys.executable, "-c", code], timeout=30)
    assert done.returncode == -signal.SIGTERM

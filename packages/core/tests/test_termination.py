"""SIGTERM: an exception, or a wish to end in order that is insisted upon."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from posttrain.core.termination import INSISTING, Terminated, ending_in_order, terminated_by_signal


def insisting():
    return [thread for thread in threading.enumerate() if thread.name == INSISTING]


@pytest.fixture(autouse=True)
def nothing_comes_later():
    yield
    for timer in insisting():
        timer.cancel()
        timer.join()


def end_me():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)


def test_it_ends_a_block_like_ctrl_c_and_what_was_opened_is_closed():
    before, closed = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(KeyboardInterrupt) as ended, terminated_by_signal():
        try:
            end_me()
            raise AssertionError("nothing came")
        finally:
            closed.append(True)
    assert (ended.type, closed) == (Terminated, [True])
    assert signal.getsignal(signal.SIGTERM) == before


def test_work_that_ends_in_order_is_only_asked_to():
    with terminated_by_signal():
        with ending_in_order() as ending:
            assert not ending.asked
            end_me()
            assert ending.asked
        with pytest.raises(Terminated):  # behind it everything is as before
            end_me()


def test_a_second_signal_insists():
    with pytest.raises(Terminated), ending_in_order() as ending:
        end_me()
        assert ending.asked
        end_me()


def test_work_that_does_not_end_within_its_grace_is_ended():
    began = time.monotonic()
    with pytest.raises(Terminated), ending_in_order(seconds=0.05):
        end_me()
        time.sleep(20)
    assert time.monotonic() - began < 5


def test_a_signal_is_not_lost_on_work_that_comes_to_its_end_all_the_same():
    with pytest.raises(Terminated), terminated_by_signal():
        with ending_in_order(seconds=0.5):
            end_me()
        time.sleep(20)  # the next work, which nobody has asked


@pytest.mark.parametrize("raised", [Terminated, ValueError, None])
def test_nothing_is_insisted_upon_once_the_work_has_stopped_or_where_nobody_handles_it(monkeypatch, raised):
    told = []
    monkeypatch.setattr(threading.Timer, "run", lambda timer: timer.finished.wait(10) or told.append("too late"))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    handled = terminated_by_signal() if raised else contextlib.nullcontext()
    with handled, pytest.raises(raised) if raised else contextlib.nullcontext(), ending_in_order():
        end_me()
        (timer,) = insisting()
        if raised:
            raise raised
    signal.signal(signal.SIGTERM, before)
    timer.join(5)
    assert (timer.is_alive(), told) == (False, [])


def test_other_threads_are_left_alone():
    asked = []

    def work():
        with ending_in_order() as ending, terminated_by_signal():
            asked.append(ending.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]


FORKS = """
import os, signal, time
from posttrain.core.termination import terminated_by_signal
with terminated_by_signal():
    child = os.fork()
    if not child:
        time.sleep(20)
        os._exit(3)
    time.sleep(0.1)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_ends_by_the_signal_itself():
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == (f"{-signal.SIGTERM}\n", "")

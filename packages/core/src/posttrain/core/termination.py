"""SIGTERM, by which containers and schedulers end a process: an exception, so that whatever was started is tidied up.

Work that can stop and go on later is asked to first: it has a few seconds to come to where its state can be saved.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STATUS = 128 + signal.SIGTERM
"""What a command exits with that SIGTERM ended, as a shell tells it: 143."""
GRACE_SECONDS = 7.0
"""From the signal to the exception where work was asked to stop: Docker gives a container ten before it kills it."""

INSISTING = "insists on SIGTERM"
"""Name of the thread that does."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what heeds Ctrl-C heeds it alike."""


class Ending:
    """Whether work in an `ending_in_order` block is asked to stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def terminated_by_signal() -> Iterator[None]:
    """In the block SIGTERM raises Terminated. Without effect outside the main thread."""

    def terminate(number: int, _: FrameType | None) -> None:
        raise Terminated

    with _handling(terminate):
        yield


@contextmanager
def ending_in_order(seconds: float = GRACE_SECONDS) -> Iterator[Ending]:
    """In the block the first SIGTERM asks the work to stop, which it does by raising Terminated; a second one, or so
    many seconds, raise it wherever the work is. Work that comes to its end instead has the rest of them to put away
    what it made: then the signal comes to whoever handles it outside. Without effect outside the main thread."""
    ending, outside = Ending(), signal.getsignal(signal.SIGTERM)
    insisting = threading.Timer(seconds, _insist)
    insisting.daemon, insisting.name = True, INSISTING

    def ask(number: int, _: FrameType | None) -> None:
        if ending.asked:
            raise Terminated
        ending.asked = True
        insisting.start()

    try:
        with _handling(ask):
            yield ending
    except BaseException:
        insisting.cancel()
        raise
    if not callable(outside):  # nobody would make an exception of it
        insisting.cancel()


def _insist() -> None:
    if callable(signal.getsignal(signal.SIGTERM)):  # else whoever handled it has ended meanwhile
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def only_here(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a fork, which whoever made it ends by this signal
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        else:
            handler(number, frame)

    before = signal.signal(signal.SIGTERM, only_here)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

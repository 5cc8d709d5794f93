"""Runs a user's reward function in processes of its own, each item under a deadline.

Takes items `[prompt, completion, reference]` and gives a future of what became of each: a score, or a Failure. An item
that takes too long, or ends its process (a crash, `os._exit`, no memory), is a Failure; its process is killed and
replaced, and the items around it are scored as if nothing had been. Jobs take turns, so that one slow request does not
keep others waiting for its end. A future may be cancelled at any time: what has not run then never will, and what runs
is ended.

Processes are started afresh, not forked: a copy of a process with torch's threads hangs. Each belongs to one thread
here, and ends when that thread or the whole service does, by whatever cause. It does not bound what waits.
"""

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

from posttrain.core.errors import WorkError
from posttrain.core.keys import without_key
from posttrain.reward_model.functions.channel import Channel, Silent
from posttrain.reward_model.functions.spec import UserFunction

log = logging.getLogger(__name__)

Item = list[Any]
START_SECONDS = 60.0
"""A process that has not loaded its function by then is given up."""
GLANCE_SECONDS = 0.1
"""How often a thread that waits for an item looks whether anybody still wants it."""
MOST_ITEMS = 64
"""Items that a process is sent at once."""


@dataclass(frozen=True)
class Failure:
    """An item without a score; `message` says why, without a word of the item."""

    message: str


@dataclass(frozen=True)
class FunctionLimits:
    """What a user's function may take: seconds an item, processes, and MiB of memory each (0: no limit)."""

    seconds: float = 5.0
    processes: int = 2
    memory_mib: int = 4096


class _Job:
    """One caller's items, and what became of those that are done."""

    def __init__(self, items: Sequence[Item], until: float) -> None:
        self.items, self.until = items, until
        self.outcomes: list[float | Failure] = [Failure("it was not reached")] * len(items)
        self.next, self.left = 0, len(items)
        self.future: Future[list[float | Failure]] = Future()


class FunctionPool:
    """Processes of one function. WorkError when it cannot be loaded: the first process starts at once."""

    def __init__(self, function: UserFunction, limits: FunctionLimits | None = None) -> None:
        self.function, self.limits = function, limits or FunctionLimits()
        self._jobs: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._closing = False
        loaded: Future[None] = Future()
        self._threads = [
            threading.Thread(target=self._work, args=(loaded if number == 0 else None,), name=f"run {function.name}")
            for number in range(self.limits.processes)
        ]
        for thread in self._threads:
            thread.daemon = True
            thread.start()
        try:
            loaded.result()
        except Exception:
            self.close()
            raise

    def submit(self, items: Sequence[Item], until: float = math.inf) -> "Future[list[float | Failure]]":
        """What became of each item, in order. Those not reached by `until` (`time.monotonic()`) are Failures."""
        job = _Job(items, until)
        with self._wake:
            if self._closing:
                raise WorkError(f"source '{self.function.name}' is shutting down")
            if not job.left:
                job.future.set_result([])
            else:
                self._jobs.append(job)
                self._wake.notify_all()
        return job.future

    def close(self) -> None:
        """Ends the threads and their processes; what has not run is cancelled."""
        with self._wake:
            self._closing = True
            for job in self._jobs:
                job.future.cancel()
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, loaded: "Future[None] | None") -> None:
        """A thread and its process, one after another."""
        process: _Process | None = None
        if loaded is not None:
            try:
                process = _Process(self.function, self.limits)
                loaded.set_result(None)
            except Exception as error:  # noqa: BLE001 - who made the pool waits for it, whatever it is
                loaded.set_exception(error)
                return
        while taken := self._take():
            try:
                process = self._run(*taken, process)
            except Exception as error:  # noqa: BLE001 - a thread that ends leaves its callers without an answer
                process = None
                # The error's own text may quote an item, so only its kind and place are logged.
                place = "".join(traceback.format_tb(error.__traceback__))
                log.error("source '%s' failed with %s at\n%s", self.function.name, type(error).__name__, place)
                job, places = taken
                self._record(job, places, Failure("the service failed; its log says where"))
        if process is not None:
            process.end()

    def _take(self) -> tuple[_Job, list[int]] | None:
        """The next items of the job whose turn it is; None when the pool closes."""
        with self._wake:
            while not self._closing:
                self._jobs = deque(job for job in self._jobs if job.next < len(job.items) and not job.future.done())
                if self._jobs:
                    job = self._jobs[0]
                    self._jobs.rotate(-1)
                    fair = math.ceil((len(job.items) - job.next) / (2 * len(self._threads)))
                    places = range(job.next, job.next + min(MOST_ITEMS, fair))
                    job.next = places.stop
                    return job, list(places)
                self._wake.wait()
        return None

    def _run(self, job: _Job, places: list[int], process: "_Process | None") -> "_Process | None":
        """Scores the items at `places`, with as many processes as that takes; gives the last one, if it lives."""
        while places and not self._unwanted(job):
            if time.monotonic() >= job.until:
                self._record(job, places, Failure("it was not reached before the request's deadline"))
                return process
            try:
                process = process or _Process(self.function, self.limits)
            except WorkError as error:
                self._record(job, places, Failure(str(error)))
                return None
            failure = self._converse(job, places, process)
            if failure is None and not places:
                return process
            process.end()
            process = None
            if failure is not None:
                # The item in hand is the one that did it.
                self._record(job, [places.pop(0)], failure)
        if places:
            job.future.cancel()
        return process

    def _converse(self, job: _Job, places: list[int], process: "_Process") -> Failure | None:
        """Takes scores of the items at `places` from a process; what is scored leaves `places`.

        A Failure when the first of those that are left has to be given up, and the process with it.
        """
        try:
            process.channel.send([job.items[place] for place in places], self.limits.seconds)
            while places:
                answer = self._answer(job, process)
                if answer is None:
                    return None
                outcome = answer["score"] if "score" in answer else Failure(str(answer["error"]))
                self._record(job, [places.pop(0)], outcome)
        except Silent:
            late = time.monotonic() >= job.until
            limit = "the request had" if late else f"{self.limits.seconds:g} s"
            return Failure(f"it took more than {limit} and was ended")
        except EOFError:
            return Failure(f"it ended its process ({process.how_it_ended()})")
        except Exception as error:  # noqa: BLE001 - a process runs somebody's code, which may write to the socket
            return Failure(f"its process gave an answer that cannot be read ({type(error).__name__})")
        return None

    def _answer(self, job: _Job, process: "_Process") -> dict[str, Any] | None:
        """What the process says of the item in hand; None when nobody wants to know any more. Silent, EOFError."""
        due = min(time.monotonic() + self.limits.seconds, job.until)
        while True:
            try:
                return process.channel.receive(max(0.0, min(GLANCE_SECONDS, due - time.monotonic())))
            except Silent:
                if self._unwanted(job):
                    return None
                if time.monotonic() >= due:
                    raise

    def _unwanted(self, job: _Job) -> bool:
        return self._closing or job.future.cancelled()

    def _record(self, job: _Job, places: Sequence[int], outcome: float | Failure) -> None:
        for place in places:
            job.outcomes[place] = outcome
        with self._wake:
            job.left -= len(places)
            if job.left or not job.future.set_running_or_notify_cancel():
                return
        job.future.set_result(job.outcomes)


class _Process:
    """A process that has loaded the function. WorkError when it could not."""

    def __init__(self, function: UserFunction, limits: FunctionLimits) -> None:
        try:
            self._process, ours = _start(limits)
        except OSError as error:
            raise WorkError(f"source '{function.name}' cannot start a process: {error.strerror}") from None
        self.channel = Channel(ours)
        try:
            self.channel.send(asdict(function), START_SECONDS)
            refusal = self.channel.receive(START_SECONDS).get("error")
        except Silent:
            refusal = f"source '{function.name}' was not loaded within {START_SECONDS:.0f} s"
        except EOFError:
            refusal = f"source '{function.name}' ended its process while it was loaded ({self.how_it_ended()})"
        except Exception as error:  # noqa: BLE001 - what it is loaded from may write to the socket
            refusal = f"source '{function.name}' was loaded with an answer that cannot be read ({type(error).__name__})"
        if refusal is not None:
            self.end()
            raise WorkError(refusal)

    def end(self) -> None:
        """Kills the process and what it started, and waits for it."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it is gone already
        self._process.wait()
        self.channel.close()

    def how_it_ended(self) -> str:
        """`exit status 3`, `SIGSEGV`; it is given a moment to do so."""
        try:
            status = self._process.wait(GLANCE_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed the connection"
        if status >= 0:
            return f"exit status {status}"
        try:
            return signal.Signals(-status).name
        except ValueError:  # most real-time signals have no name
            return f"signal {-status}"


def _start(limits: FunctionLimits) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A worker's process and this end of its socket; an OSError leaves neither."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "posttrain.reward_model.functions.worker"]
    command += [str(theirs.fileno()), str(os.getpid()), str(limits.memory_mib)]
    with theirs:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,
                env=_environment(),
            )
        except BaseException:
            ours.close()
            raise
    return process, ours


def _environment() -> dict[str, str]:
    """This process's, without the service's key; the cores are shared by many processes."""
    return {**without_key(os.environ), "OMP_NUM_THREADS": "1"}

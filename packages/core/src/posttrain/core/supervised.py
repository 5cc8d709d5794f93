"""A `posttrain serve …` of one's own: on a free loopback port, supervised, always ended.

The service runs in its own process, its output in a log file. When it dies it is started again on the same port, as it
was at first. It ends with whoever started it: at the end of the `with` block, on Ctrl-C, and, by the kernel's
parent-death signal, when that process is killed.
"""

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import httpx

from posttrain.core.errors import RequestError, WorkError
from posttrain.core.files import disk_errors
from posttrain.core.process import PARENT_VARIABLE, end_process
from posttrain.core.serving import free_port

VLLM_READY_SECONDS = 900.0
"""vLLM compiles kernels and captures graphs before it answers."""


def vllm_python() -> Path:
    """The interpreter of vLLM's environment: `.venv-vllm` beside this one, or what POSTTRAIN_VLLM_PYTHON names."""
    named = os.environ.get("POSTTRAIN_VLLM_PYTHON")
    python = Path(named) if named else Path(sys.prefix).parent / ".venv-vllm" / "bin" / "python"
    if not python.is_file():
        raise RequestError(
            f"engine vllm: there is no {python}; make vLLM's environment with `make vllm`, or name its interpreter in "
            "POSTTRAIN_VLLM_PYTHON"
        )
    return python


class SupervisedService:
    """One `posttrain serve …` process that is restarted when it dies; use it as a context manager."""

    READY_SECONDS = 120.0
    STOP_SECONDS = 10.0
    MOST_RESTARTS = 5
    RESTART_WINDOW_SECONDS = 60.0

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        log: Path,
        python: Path | None = None,
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        """`arguments` follow `posttrain serve`; `--port` is added. `log` receives what the process prints.

        `python`, the interpreter of another environment, is this process's own if it is not given.
        """
        self.name, self.log = name, Path(log)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._ready_seconds = ready_seconds
        self._command = [
            str(python or sys.executable),
            "-m",
            "posttrain.core",
            "serve",
            *arguments,
            "--port",
            str(self.port),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._not_spawned: OSError | None = None
        self._stopping = threading.Event()
        self._ready = threading.Event()

    @property
    def pid(self) -> int:
        """Process id of the server; it changes with a restart."""
        assert self._process is not None, "the service is not started"
        return self._process.pid

    def __enter__(self) -> "SupervisedService":
        with disk_errors(self.log):
            self.log.parent.mkdir(parents=True, exist_ok=True)
        self._started = threading.Event()
        # The supervisor starts the process: the parent-death signal belongs to the thread that forked.
        self._supervisor = threading.Thread(target=self._supervise, name=f"supervise-{self.name}", daemon=True)
        self._supervisor.start()
        self._started.wait()
        if self._not_spawned:
            raise WorkError(f"the {self.name} service cannot be started: {self._not_spawned}") from self._not_spawned
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the process: SIGTERM, then SIGKILL to what is left after ten seconds."""
        self._stopping.set()
        self._supervisor.join()

    def _supervise(self) -> None:
        restarts: deque[float] = deque()
        try:
            self._process = self._spawn()
        except OSError as error:
            self._not_spawned = error  # told by whoever waits for the start
            return
        finally:
            self._started.set()
        while not self._stopping.wait(0.2):
            # Before it was ever ready, an end is a failed start, which is told and not tried again.
            if self._process.poll() is None or not self._ready.is_set():
                continue
            now = time.monotonic()
            restarts.append(now)
            while now - restarts[0] > self.RESTART_WINDOW_SECONDS:
                restarts.popleft()
            if len(restarts) > self.MOST_RESTARTS:
                print(
                    f"{self.name} service ended {len(restarts)} times within {self.RESTART_WINDOW_SECONDS:.0f} s and "
                    f"is not started again: {self._last_words()} (log: {self.log})",
                    file=sys.stderr,
                )
                return
            print(f"{self.name} service ended ({self._process.returncode}); starting it again", file=sys.stderr)
            try:
                self._process = self._spawn()
            except OSError as error:
                print(f"{self.name} service cannot be started again: {error}", file=sys.stderr)
                return
        end_process(self._process, self.STOP_SECONDS)

    def _spawn(self) -> subprocess.Popen[bytes]:
        with open(self.log, "ab") as log:
            environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
            return subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, process_group=0
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._ready_seconds
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=2.0, trust_env=False).status_code == 200:
                    self._ready.set()
                    return
            except httpx.TransportError:
                pass  # not listening yet
            if self._process and self._process.poll() is not None:
                self._stopping.set()
                raise WorkError(f"the {self.name} service did not start: {self._last_words()} (log: {self.log})")
            time.sleep(0.1)
        raise WorkError(f"the {self.name} service was not ready after {self._ready_seconds:.0f} s; see {self.log}")

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"

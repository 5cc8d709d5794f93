"""Containers by a program for machines without a Docker engine: `container run …` in the foreground, as Podman's.

`POSTTRAIN_CONTAINER_TOOL` names it; else it is looked for beside the checkout. It runs containers on this machine's
network and as this machine's root, so a container's first process is found among this machine's own, by a variable in
its environment; that way it can be killed, which no signal that is passed on through the program would do.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

import psutil

from delivery.engines import tool_path
from delivery.targets import ROOT
from posttrain.core.errors import RequestError
from tests.containers.driver import Container, ImageConfig, Launch
from tests.containers.sdk_driver import config_of

MARK = "POSTTRAIN_TEST_CONTAINER"
END_SECONDS = 60.0


def find() -> "ToolDriver | None":
    """A driver, or None where there is no such program or this user may not run it."""
    path = tool_path(os.environ, ROOT.parent)
    return ToolDriver(Path(path)) if path and os.geteuid() == 0 and shutil.which("podman") else None


class ToolContainer:
    """A container and the program that runs it; started again it is another one with the same command line."""

    def __init__(self, command: list[str], port: int | None) -> None:
        self._command = command
        self.url = self.inside_url = f"http://127.0.0.1:{port}"
        handle, name = tempfile.mkstemp(prefix="container-", suffix=".log")
        os.close(handle)
        self._log = Path(name)
        self._programs: list[subprocess.Popen[bytes]] = []
        self.start()

    def start(self) -> None:
        self._mark = uuid.uuid4().hex
        command = [self._command[0], "run", "-e", f"{MARK}={self._mark}", *self._command[1:]]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._programs.append(self._process)

    def ended(self, seconds: float) -> bool:
        first = first_process(self._mark)
        return first is None or not psutil.wait_procs([first], timeout=seconds)[1]

    def wait(self, seconds: float) -> int:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"it runs for longer than {seconds} s and said:\n{self.logs()}") from None

    def signal(self, number: int) -> None:
        if first := first_process(self._mark):
            first.send_signal(number)

    def running(self) -> bool:
        return self._process.poll() is None

    def logs(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def remove(self) -> None:
        # The program first may still be on its way to starting the container.
        while self.running():
            self.signal(signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.2)
        for process in self._programs:  # those started again had ended; their programs may still tidy up
            process.wait()
        self._log.unlink(missing_ok=True)


class ToolDriver:
    """Runs containers by a program."""

    def __init__(self, tool: Path) -> None:
        self._tool = tool
        self.name = str(tool)
        store = store_of(tool)
        self._podman = ["podman", "--root", f"{store}/root", "--runroot", f"{store}/run", "--storage-driver", "vfs"]

    def has(self, image: str) -> bool:
        return subprocess.run([*self._podman, "image", "exists", image], check=False).returncode == 0

    def config(self, image: str) -> ImageConfig:
        done = subprocess.run([*self._podman, "image", "inspect", image], capture_output=True, text=True, check=True)
        (found,) = json.loads(done.stdout)
        return config_of({**found["Config"], "Healthcheck": found.get("Healthcheck")})

    def start(self, launch: Launch) -> Container:
        return ToolContainer([str(self._tool), *arguments(launch)], launch.port)

    def close(self) -> None:
        """There is nothing of its own."""


def store_of(tool: Path) -> str:
    """Where the program keeps its images: CONTAINER_STORE, or the default in its text (`${CONTAINER_STORE:-…}`)."""
    found = re.search(r"\$\{CONTAINER_STORE:-([^}]+)\}", tool.read_text(encoding="utf-8"))
    if store := os.environ.get("CONTAINER_STORE") or (found and found[1]):
        return store
    raise RequestError(f"{tool} does not say where it keeps its images; set CONTAINER_STORE to that folder")


def arguments(launch: Launch) -> list[str]:
    """The command line of a container, after `run`."""
    given = [part for name, value in launch.environment.items() for part in ("-e", f"{name}={value}")]
    for mount in launch.mounts:
        given += ["-v", f"{mount.source}:{mount.target}:{'ro' if mount.read_only else 'rw'}"]
    for folder, size in launch.tmpfs.items():
        given += ["--tmpfs", f"{folder}:size={size},mode=1777"]
    if launch.read_only:
        # Podman would make /tmp and others writable by itself.
        given += ["--read-only", "--read-only-tmpfs=false"]
    if launch.entrypoint:
        given += ["--entrypoint", json.dumps(list(launch.entrypoint))]
    return [*given, launch.image, *launch.command]


def first_process(mark: str) -> psutil.Process | None:
    """The first process of the container that has this mark in its environment; None where there is none (yet)."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended meanwhile
            if process.environ().get(MARK) == mark:
                found.append(process)
    # Process ids may come round; the times of birth do not.
    return min(found, key=lambda process: process.create_time(), default=None)

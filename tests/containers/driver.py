"""What these tests ask of whatever runs containers here: a container as `docker run` would be told, and what one does
with it. `sdk_driver.py` asks a Docker-compatible socket, `tool_driver.py` a program; the tests do not know which.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Mount:
    """A folder or file of this machine inside a container."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Launch:
    """A container to be run."""

    image: str
    command: tuple[str, ...] = ()
    """What follows the entrypoint; nothing: the image's own."""
    entrypoint: tuple[str, ...] = ()
    """Instead of the image's; the first is a program."""
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    """Folder in memory to its size (`64m`). Everybody may write there, unless the image has it with other rights."""
    read_only: bool = False
    """Whether everything but mounts and tmpfs is."""
    port: int | None = None
    """That a service inside listens on, and that is free on this machine."""


@dataclass(frozen=True)
class ImageConfig:
    """What an image says about itself."""

    labels: Mapping[str, str]
    user: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    environment: tuple[str, ...]
    healthcheck: tuple[str, ...] | None
    """Its command without the leading `CMD`; empty without one, None where the engine does not tell."""


class Container(Protocol):
    """One that was started; the tests remove it, running or not."""

    url: str
    """Of its port, from this machine."""
    inside_url: str
    """Of its port, from other containers."""

    def ended(self, seconds: float) -> bool:
        """Whether its first process has ended, now or within so many seconds; what the engine tidies up after it takes
        its own time."""

    def wait(self, seconds: float) -> int:
        """Its exit status; TimeoutError when it runs for longer."""

    def signal(self, number: int) -> None:
        """Sends a signal to its first process."""

    def start(self) -> None:
        """Again, after it has ended: the same container, at the same address."""

    def running(self) -> bool:
        """Whether it is."""

    def logs(self) -> str:
        """All that it printed, on both streams."""

    def remove(self) -> None:
        """Ends and forgets it."""


class Driver(Protocol):
    """Something that runs containers."""

    name: str

    def has(self, image: str) -> bool:
        """Whether the image is there."""

    def config(self, image: str) -> ImageConfig:
        """What an image that is there says about itself."""

    def start(self, launch: Launch) -> Container:
        """A container that runs."""

    def close(self) -> None:
        """Removes what the driver made for itself."""


@dataclass(frozen=True)
class Ran:
    """How a container ended."""

    status: int
    output: str

    @property
    def errors(self) -> list[str]:
        """The lines in which the command says what went wrong."""
        return [line for line in self.output.splitlines() if line.startswith("error: ")]


def run(driver: Driver, launch: Launch, seconds: float = 180) -> Ran:
    """Runs a container to its end; TimeoutError when it has none in time."""
    container = driver.start(launch)
    try:
        return Ran(container.wait(seconds), container.logs())
    finally:
        container.remove()

"""The three services as containers: how each is launched, hardened, and when it is ready."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx

from posttrain.core.serving import free_port
from tests.containers.driver import Container, Driver, Launch, Mount

READY_SECONDS = 600.0
FUNCTIONS = ("--source", "length=/models/rewards.py:length", "--source", "slow=/models/rewards.py:slow")
"""Sources of the reward service: one at once, one after three seconds."""
SECRET = "/run/secrets/posttrain_api_key"


def hardened(launch: Launch) -> Launch:
    """The same with nothing writable but /tmp and what is mounted."""
    return replace(launch, read_only=True, tmpfs={"/tmp": "256m", **launch.tmpfs})


def keyed(launch: Launch, key_file: Path) -> Launch:
    """The same with the services' key as a secret in a file."""
    return replace(
        launch,
        environment={**launch.environment, "POSTTRAIN_API_KEY_FILE": SECRET},
        mounts=(*launch.mounts, Mount(key_file, SECRET, read_only=True)),
    )


def policy(image: str, models: Path, *arguments: str) -> Launch:
    """A policy service of the nano base, one thread, that does not start without a kernel."""
    command = ("serve", "policy", "/models/policy", "--engine", "native", "--threads", "1", *arguments)
    return _service(image, command, models)


def reward(image: str, models: Path, *arguments: str) -> Launch:
    """A reward service of a drawn reward model, one thread."""
    return _service(image, ("serve", "reward", "/models/reward", "--threads", "1", *arguments), models)


def judge(image: str, *arguments: str) -> Launch:
    """A judge service; its store is below /data unless the arguments say otherwise."""
    return _service(image, ("serve", "judge", *arguments), None)


def scripted_judge(image: str, *arguments: str) -> Launch:
    """The server of a judge whose inclinations are known."""
    return _service(image, ("serve", "scripted-judge", *arguments), None)


def _service(image: str, command: tuple[str, ...], models: Path | None) -> Launch:
    port = free_port()
    command = (*command, "--host", "0.0.0.0", "--port", str(port))
    return Launch(image, command, mounts=(Mount(models, "/models", read_only=True),) if models else (), port=port)


@contextmanager
def serving(driver: Driver, launch: Launch, path: str = "/readyz") -> Iterator[Container]:
    """A service that is ready; it is removed at the end of the block."""
    container = driver.start(launch)
    try:
        wait_until_ready(container, path)
        yield container
    finally:
        container.remove()


def wait_until_ready(container: Container, path: str = "/readyz") -> None:
    """Returns when the service answers; AssertionError with its log when it ends, or takes too long."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(container.url + path, timeout=2.0, trust_env=False).status_code < 500:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        assert container.running(), container.logs()
        time.sleep(0.2)
    raise AssertionError(f"not ready after {READY_SECONDS:.0f} s:\n{container.logs()}")

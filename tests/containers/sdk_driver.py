"""Containers by the docker SDK, at whatever answers at DOCKER_HOST: Docker, or Podman's `system service`.

Each container has a network of these tests' own, where others find it by name, and its port is published on loopback.
`POSTTRAIN_CONTAINER_NETWORK=host` puts them all on this machine's network instead, where no bridge can be made.
`POSTTRAIN_CONTAINER_NOFILE=4096` sets the limit of open files where the engine's own cannot be had.
"""

import os
import signal
import uuid
from dataclasses import replace
from typing import Any

from tests.containers.driver import Container, ImageConfig, Launch


def connect() -> "SdkDriver | None":
    """A driver, or None where nothing answers."""
    # Not `import docker`: that alone would be this repository's folder where the SDK is not installed.
    from docker.client import DockerClient
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        client = DockerClient.from_env(timeout=300)
        client.ping()
    except (DockerException, RequestException):
        return None
    return SdkDriver(client)


class SdkContainer:
    """A container that the engine keeps until it is removed."""

    def __init__(self, container: Any, url: str, inside_url: str) -> None:
        self._container, self.url, self.inside_url = container, url, inside_url

    def ended(self, seconds: float) -> bool:
        try:
            self.wait(seconds)
        except TimeoutError:
            return False
        return True

    def wait(self, seconds: float) -> int:
        import requests

        try:
            return int(self._container.wait(timeout=seconds)["StatusCode"])
        except (requests.exceptions.ReadTimeout, requests.exceptions.ConnectionError):
            raise TimeoutError(f"it runs for longer than {seconds} s and said:\n{self.logs()}") from None

    def signal(self, number: int) -> None:
        self._container.kill(signal=signal.Signals(number).name)

    def start(self) -> None:
        self._container.start()

    def running(self) -> bool:
        self._container.reload()
        return bool(self._container.status == "running")

    def logs(self) -> str:
        return str(self._container.logs(), "utf-8", "replace")

    def remove(self) -> None:
        self._container.remove(force=True, v=True)


class SdkDriver:
    """Runs containers by a `docker.DockerClient`."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._on_host = os.environ.get("POSTTRAIN_CONTAINER_NETWORK") == "host"
        self._network = None if self._on_host else client.networks.create(f"posttrain-test-{uuid.uuid4().hex[:12]}")
        version = client.version()
        self._podman = any(part["Name"].startswith("Podman") for part in version.get("Components") or [])
        self.name = f"docker SDK at {client.api.base_url} ({version.get('Version')})"

    def has(self, image: str) -> bool:
        from docker.errors import ImageNotFound

        try:
            self._client.images.get(image)
        except ImageNotFound:
            return False
        return True

    def config(self, image: str) -> ImageConfig:
        config = config_of(self._client.images.get(image).attrs["Config"])
        # Podman's API in Docker's form leaves health checks out.
        return replace(config, healthcheck=None) if self._podman else config

    def start(self, launch: Launch) -> Container:
        name = f"posttrain-test-{uuid.uuid4().hex[:12]}"
        container = self._client.containers.create(launch.image, name=name, **self._options(launch))
        try:
            container.start()
        except BaseException:
            container.remove(force=True, v=True)
            raise
        inside = "127.0.0.1" if self._on_host else name
        return SdkContainer(container, f"http://127.0.0.1:{launch.port}", f"http://{inside}:{launch.port}")

    def _options(self, launch: Launch) -> dict[str, Any]:
        from docker.types import Ulimit

        options: dict[str, Any] = {
            "command": list(launch.command) or None,
            "entrypoint": list(launch.entrypoint) or None,
            "environment": dict(launch.environment),
            "volumes": {
                str(mount.source): {"bind": mount.target, "mode": "ro" if mount.read_only else "rw"}
                for mount in launch.mounts
            },
            "tmpfs": {folder: f"size={size},mode=1777" for folder, size in launch.tmpfs.items()},
            "read_only": launch.read_only,
        }
        if self._network is None:
            options["network_mode"] = "host"
        else:
            options["network"] = self._network.name
            options["ports"] = {f"{launch.port}/tcp": ("127.0.0.1", launch.port)} if launch.port else {}
        if files := int(os.environ.get("POSTTRAIN_CONTAINER_NOFILE", "0")):
            options["ulimits"] = [Ulimit(name=name, soft=files, hard=files) for name in ("nofile", "nproc")]
        return options

    def close(self) -> None:
        if self._network is not None:
            self._network.remove()
        self._client.close()


def config_of(config: dict[str, Any]) -> ImageConfig:
    """An image's `Config`, as the engine's API and `inspect` give it."""
    test = (config.get("Healthcheck") or {}).get("Test") or []
    return ImageConfig(
        labels=config.get("Labels") or {},
        user=config.get("User") or "",
        entrypoint=tuple(config.get("Entrypoint") or ()),
        command=tuple(config.get("Cmd") or ()),
        environment=tuple(config.get("Env") or ()),
        healthcheck=tuple(test[1:] if test[:1] == ["CMD"] else test),
    )

"""Starts a BentoML service in the foreground, the same way for every `posttrain serve …`.

Takes where the Service class is, the address and what its environment must say; becomes the server (`exec`), so that
signals and the exit status are the server's. It imports no BentoML: the package that has the service declares it.
"""

import importlib.util
import ipaddress
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from posttrain.core.errors import RequestError
from posttrain.core.files import disk_errors


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on at the moment. BentoML cannot choose one itself."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_address(host: str, port: int) -> None:
    """RequestError when the address cannot be listened on: the port is in use, the host is not of this machine."""
    if not 0 < port < 65536:
        raise RequestError(f"port {port} is not between 1 and 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: a port whose last connections are still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise RequestError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port or --host"
        ) from None


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def server_environment(port: int, environment: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `environment` and what keeps a BentoML server quiet, alone and mortal."""
    # Servers that share a BENTOML_HOME wipe each other's metrics: a home for each port, in a folder of this user.
    home = Path(tempfile.gettempdir()) / f"posttrain-{os.getuid()}" / f"bentoml-{port}"
    if "BENTOML_HOME" not in os.environ:
        _make_own_folder(home.parent)
    quiet = {
        "BENTOML_DO_NOT_TRACK": "True",
        # BentoML makes spans of every request whether or not anybody collects them: an eighth of a small one's cost.
        "OTEL_SDK_DISABLED": os.environ.get("OTEL_SDK_DISABLED", "true"),
        # Without it a service that fails to start is started again for ever.
        "BENTOML_CONTAINERIZED": "true",
        "BENTOML_HOME": os.environ.get("BENTOML_HOME", str(home)),
    }
    with disk_errors(Path(quiet["BENTOML_HOME"])):
        Path(quiet["BENTOML_HOME"]).mkdir(mode=0o700, parents=True, exist_ok=True)
    return {**os.environ, **quiet, **environment}


def _make_own_folder(path: Path) -> None:
    """A folder in a place where others may have made one of that name; RequestError when it is not ours alone."""
    with disk_errors(path):
        path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise RequestError(f"{path} is not a folder of this user's alone; remove it, or set BENTOML_HOME to another")


def server_command(service: str, host: str, port: int) -> list[str]:
    """The command line that serves `service` ("package.module:Class")."""
    return [sys.executable, "-m", "bentoml", "serve", service, "--host", host, "--port", str(port)]


def serve_in_foreground(service: str, *, host: str, port: int, environment: Mapping[str, str], extra: str) -> NoReturn:
    """Becomes the server of `service`; `environment` is added to this process's.

    RequestError when BentoML is missing (`extra` names what to install) or the address cannot be had.
    """
    if importlib.util.find_spec("bentoml") is None:
        raise RequestError(f"serving needs BentoML, which is not installed; pip install '{extra}'")
    check_address(host, port)
    command = server_command(service, host, port)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, server_environment(port, environment))

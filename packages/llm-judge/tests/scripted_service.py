"""The scripted judge's server as a process, for tests that need a real one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from posttrain.core.process import die_with_parent
from posttrain.core.serving import free_port

POSTTRAIN = [sys.executable, "-m", "posttrain.core"]
"""The command, by this Python."""


@contextmanager
def scripted_service(log: Path, *options: object) -> Iterator[str]:
    """The address of a server with these options, which writes down in `log` what it is asked."""
    port = free_port()
    command = [*POSTTRAIN, "serve", "scripted-judge", "--port", port, "--log", log, *options]
    environment = {name: value for name, value in os.environ.items() if name != "POSTTRAIN_API_KEY"}
    process = subprocess.Popen(
        [str(part) for part in command], env=environment, preexec_fn=lambda: die_with_parent(by=signal.SIGKILL)
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, "the scripted judge's server ended before it answered"
            try:
                httpx.get(f"{url}/livez", trust_env=False).raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.1)
        else:
            raise TimeoutError(f"no answer from the scripted judge's server at {url} within a minute")
        yield url
    finally:
        process.terminate()
        assert process.wait(20) in (0, -signal.SIGTERM)

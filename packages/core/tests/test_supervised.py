"""A supervised service is restarted when it dies, and always ended."""

import os
import re
import signal
import sys
import time

import httpx
import pytest

from posttrain.core.errors import WorkError
from posttrain.core.supervised import SupervisedService

SERVER = """
import http.server, sys
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Ready).serve_forever()
"""


class Small(SupervisedService):
    """The supervisor around a server that starts in no time."""

    def __init__(self, tmp_path, code=SERVER):
        super().__init__("small", ["small"], tmp_path / "logs" / "small.log")
        self._command = [sys.executable, "-c", code, "--port", str(self.port)]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_service_is_ready_inside_the_block_and_gone_after_it(tmp_path):
    with Small(tmp_path) as service:
        assert httpx.get(service.url + "/readyz").status_code == 200
        pid = service.pid
    assert gone(pid)


def test_service_ends_when_the_block_raises(tmp_path):
    with pytest.raises(KeyboardInterrupt), Small(tmp_path) as service:
        pid = service.pid
        raise KeyboardInterrupt
    assert gone(pid)


def test_killed_service_comes_back_on_the_same_address(tmp_path, capsys):
    with Small(tmp_path) as service:
        first = service.pid
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                if service.pid != first and httpx.get(service.url + "/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        assert service.pid != first
        assert httpx.get(service.url + "/readyz").status_code == 200
    assert "small service ended (-9); starting it again" in capsys.readouterr().err


def test_killed_service_that_cannot_be_spawned_again_is_told(tmp_path, capsys):
    with Small(tmp_path) as service:
        service._command[0] = str(tmp_path / "no-python")
        os.kill(service.pid, signal.SIGKILL)
        service._supervisor.join(20)
        assert not service._supervisor.is_alive()
    said = capsys.readouterr().err
    assert re.search("small service cannot be started again: .*no-python", said)
    assert "Traceback" not in said


def test_service_that_cannot_start_says_its_last_words(tmp_path):
    with (
        pytest.raises(WorkError, match="did not start: no such model"),
        Small(tmp_path, "import sys; sys.exit('no such model')"),
    ):
        pass


def test_service_whose_log_cannot_be_written_is_told(tmp_path):
    service = Small(tmp_path)
    service.log.mkdir(parents=True)
    with pytest.raises(WorkError, match="the small service cannot be started: .*Is a directory: .*small.log"), service:
        pass


def test_service_without_its_interpreter_is_told(tmp_path):
    service = Small(tmp_path)
    service._command[0] = str(tmp_path / "no-python")
    with pytest.raises(WorkError, match="the small service cannot be started: .*no-python"), service:
        pass

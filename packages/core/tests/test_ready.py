"""The probe of a container's HEALTHCHECK: an exit status, and a line where there is something to say."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import posttrain.core
from posttrain.core.ready import main
from posttrain.core.serving import free_port


@contextmanager
def service(status: int, silent: float = 0.0):
    asked, go = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if silent:
                go.wait(silent)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        go.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_service_that_says_so_is_ready(capsys):
    with service(200) as (url, asked):
        assert main([url]) == 0
        assert main([f"{url}/"]) == 0
    assert asked == ["/readyz", "/readyz"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("status", [503, 500, 404, 204])
def test_any_other_answer_is_status_1_with_a_line(capsys, status):
    with service(status) as (url, _):
        assert main([url]) == 1
    assert capsys.readouterr().err == f"{url} is not ready: status {status}\n"


def test_a_service_that_is_not_there_is_status_1_with_a_line(capsys):
    assert main([f"http://127.0.0.1:{free_port()}"]) == 1
    assert "is not ready: [Errno 111] Connection refused\n" in capsys.readouterr().err


def test_a_service_that_loads_is_waited_for_no_longer_than_told(capsys):
    with service(200, silent=30) as (url, _):
        assert main([url, "--timeout", "0.2"]) == 1
    assert "no answer within 0.2 s" in capsys.readouterr().err


def test_proxies_of_the_environment_are_not_for_it(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with service(200) as (url, _):
        assert main([url]) == 0


@pytest.mark.parametrize(
    "wrong", [["127.0.0.1:8001"], ["http://:8001"], ["http://x:port"], ["http://x", "--timeout=0"]]
)
def test_a_wrong_call_is_status_2(capsys, wrong):
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_it_imports_the_standard_library_only():
    code = (
        "import sys, posttrain.core.ready; print(sorted({name.partition('.')[0] for name in sys.modules "
        "if name.partition('.')[0] not in sys.stdlib_module_names}))"
    )
    # Without site, for what it brings into an environment would be listed too; so the package's place has to be told.
    place = {**os.environ, "PYTHONPATH": str(Path(posttrain.core.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-S", "-c", code], env=place, capture_output=True, text=True, check=True)
    assert done.stdout == "['__main__', 'posttrain']\n"

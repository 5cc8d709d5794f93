"""The real server process over a socket: contract, key rule, and that it ends when its supervisor is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from posttrain.core.clients import RewardClient
from posttrain.core.errors import RequestError
from posttrain.core.serving import free_port

pytestmark = [pytest.mark.service, pytest.mark.timeout(120)]

ITEM = {"prompt": "2+2?", "completion": "#### 4", "finish_reason": "stop", "reference": {"gsm8k": "4"}}


@contextlib.contextmanager
def server(arguments: list[str], key: str = "") -> Iterator[tuple[str, subprocess.Popen]]:
    """A running reward service: its address and process."""
    port = free_port()
    environment = os.environ | {"POSTTRAIN_API_KEY": key, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "posttrain.core", "serve", "reward", *arguments, "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(lambda: _ready(url, process), "the service is ready")
        yield url, process
    finally:
        process.terminate()
        process.wait(30)


def _ready(url: str, process: subprocess.Popen) -> bool:
    assert process.poll() is None, process.stderr and process.stderr.read()
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz", timeout=1).status_code == 200
    return False


def _wait(condition, what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"not within a minute: {what}"
        time.sleep(0.1)


def test_a_reward_model_and_verifiers_answer_the_client_over_a_socket(reward_checkpoint: Path):
    with server([str(reward_checkpoint), "--threads", "1"]) as (url, process):
        client = RewardClient(url)
        result = client.score(["rm", "verifier"], [ITEM] * 3)
        assert [scores["verifier"] for scores in result.scores] == [1.2] * 3
        assert [scores["rm"] for scores in result.scores] == pytest.approx([result.scores[0]["rm"]] * 3, abs=1e-4)
        assert result.sources["verifier"] == "1"
        with pytest.raises(RequestError, match=r"sources\[0\] is not a source"):
            client.score(["nix"], [ITEM])
        unknown = httpx.get(f"{url}/nix")
        assert (unknown.status_code, unknown.headers["X-Posttrain-Contract"]) == (404, "1")
        assert unknown.json()["error"]["type"] == "invalid_request_error"
        assert httpx.post(f"{url}/score", headers={"Host": "example.com"}, json={}).status_code == 403
        metrics = httpx.get(f"{url}/metrics").text
        assert 'posttrain_reward_items_total{source="rm"} 3.0' in metrics
        # A path that somebody makes up is no label: it would stay in memory for good.
        assert 'endpoint="other"' in metrics
        assert "/nix" not in metrics

        workers = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        _wait(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers), "workers end")


def test_with_a_key_everybody_needs_it_except_for_liveness():
    with server([], key="sesame") as (url, _):
        assert httpx.get(f"{url}/livez").status_code == 200
        assert httpx.get(f"{url}/v1/sources").status_code == 401
        assert httpx.get(f"{url}/metrics").status_code == 401
        body = {"sources": ["gsm8k"], "items": [ITEM]}
        assert httpx.post(f"{url}/score", json=body).status_code == 401
        assert httpx.post(f"{url}/score", json=body, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert RewardClient(url, "sesame").score(["gsm8k"], [ITEM]).scores == [{"gsm8k": 1.2}]

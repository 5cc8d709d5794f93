"""The real server process over a socket: contract, key rule, and `kill -9` in the middle of a run."""

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from posttrain.core.clients import JudgeClient
from posttrain.core.errors import RequestError
from posttrain.core.serving import free_port

sys.path.insert(0, str(Path(__file__).parent))
from judge_service import KEY, SECRET, item, items, wait
from scripted_service import POSTTRAIN, scripted_service

pytestmark = [pytest.mark.service, pytest.mark.timeout(180)]


class Server:
    """`posttrain serve judge` in `folder`, its output in a file there."""

    def __init__(self, folder: Path, judge: str, *options: str, key: str = "") -> None:
        self.port = free_port()
        self.url, self.log = f"http://127.0.0.1:{self.port}", folder / "server.log"
        # A key of a model's server that must not show anywhere.
        environment = os.environ | {"POSTTRAIN_API_KEY": key, "OPENAI_API_KEY": KEY}
        command = [*POSTTRAIN, "serve", "judge", "--judge", f"scripted={judge}", "--port", str(self.port), *options]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        wait(self._ready, "the service is ready")

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz", timeout=1).status_code == 200
        return False

    def kill(self) -> None:
        """SIGKILL to the supervisor and its worker, as when the machine fails."""
        processes = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended with its parent
                process.kill()
        self.process.wait(10)
        wait(lambda: not any(map(_runs, processes)), "its processes have ended")


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


@contextlib.contextmanager
def serving(folder: Path, judge: str, *options: str, key: str = "") -> Iterator[Server]:
    server = Server(folder, judge, *options, key=key)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.terminate()
            assert server.process.wait(40) == 0


def asked(log: Path) -> Counter[str]:
    """How often each game was answered by the scripted judge."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return Counter(line["game"] for line in lines if line["status"] == 200)


def test_comparisons_are_judged_over_a_socket(tmp_path: Path):
    with scripted_service(tmp_path / "judge.log") as judge, serving(tmp_path, judge) as server:
        client = JudgeClient(server.url)
        answer = client.judge([item(0, instruction=f"{SECRET}?"), item(1)])
        assert [len(one["games"]) for one in answer["comparisons"]] == [2, 2]
        assert answer["rates"]["n_total"] == 2
        assert client.judge([item(1)])["usage"]["stored"] == 2
        with pytest.raises(RequestError, match=r"unknown key 'ouput_1'"):
            client.judge([item(ouput_1=SECRET)])
        run = client.wait(client.submit(items(5))["id"], every=0.1)
        assert run["result"]["rates"]["n_total"] == 5
        assert (tmp_path / "runs" / "judge" / f"{run['result']['id']}.json").is_file()
        unknown = httpx.get(f"{server.url}/nix")
        assert (unknown.status_code, unknown.headers["X-Posttrain-Contract"]) == (404, "1")
        assert httpx.post(f"{server.url}/judge", headers={"Host": "example.com"}, json={}).status_code == 403
        for number in range(3):
            httpx.get(f"{server.url}/runs/zebra{number}")
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'posttrain_judge_games_total{judge="scripted",outcome="asked"} 12.0' in metrics
        assert 'endpoint="/runs/"' in metrics
        assert "zebra" not in metrics
        shown = server.log.read_text() + metrics + httpx.get(f"{server.url}/openapi.json").text
        assert not [secret for secret in (SECRET, KEY) if secret in shown]


def test_a_run_survives_kill_9_and_pays_at_most_for_what_was_in_flight_twice(tmp_path: Path):
    log = tmp_path / "judge.log"
    limit = ("--set", "judges.scripted.limits.concurrency=4")
    comparisons, kills = items(60), 2
    with scripted_service(log, "--latency", "0.05") as judge:
        id = None
        for kill in range(kills):
            server = Server(tmp_path, judge, *limit)
            client = JudgeClient(server.url)
            id = id or client.submit(comparisons)["id"]
            done = 10 * (kill + 1)
            wait(lambda: client.run(id)["progress"]["done"] >= done, "some are judged")  # noqa: B023
            assert client.run(id)["state"] == "running"
            server.kill()
        with serving(tmp_path, judge, *limit) as server:
            run = JudgeClient(server.url).wait(id, every=0.1)
    assert run["result"]["rates"]["n_total"] == 60
    assert run["progress"]["stored"] >= 20
    games = asked(log)
    assert len(games) == 120
    assert max(games.values()) <= 1 + kills
    assert sum(games.values()) - len(games) <= 4 * kills


def test_ending_the_service_lets_what_is_in_flight_arrive(tmp_path: Path):
    log = tmp_path / "judge.log"
    with scripted_service(log, "--latency", "0.5") as judge:
        with serving(tmp_path, judge, "--set", "judges.scripted.limits.concurrency=4") as server:
            client = JudgeClient(server.url)
            id = client.submit(items(20))["id"]
            wait(lambda: client.run(id)["progress"]["done"] >= 4, "some are judged")
        answered = sum(asked(log).values())
        assert answered < 40
        with serving(tmp_path, judge) as server:
            run = JudgeClient(server.url).wait(id, every=0.1)
    assert run["progress"]["stored"] == answered
    assert sum(asked(log).values()) == 40


def test_with_a_key_everybody_needs_it_except_for_liveness(tmp_path: Path):
    with scripted_service(tmp_path / "judge.log") as judge, serving(tmp_path, judge, key="sesame") as server:
        assert httpx.get(f"{server.url}/livez").status_code == 200
        for path in ("/runs", "/metrics", "/openapi.json", "/v1/judges"):
            assert httpx.get(server.url + path).status_code == 401
        body = {"comparisons": [item()]}
        assert httpx.post(f"{server.url}/judge", json=body).status_code == 401
        wrong = {"Authorization": "Bearer wrong"}
        assert httpx.post(f"{server.url}/runs", json=body, headers=wrong).status_code == 401
        assert JudgeClient(server.url, "sesame").judge([item()])["comparisons"][0]["preference"] is not None
        assert "sesame" not in server.log.read_text()

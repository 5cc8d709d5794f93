"""Clients and services of two contracts: whoever meets the other first says both numbers in one line, and stops."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from posttrain.core.cli import run
from posttrain.data import nano

pytestmark = [pytest.mark.long, pytest.mark.timeout(120)]

LINE = "speaks contract 2, this client 1; install matching versions of both"


class NextContract(BaseHTTPRequestHandler):
    """A service of contract 2: it refuses who says another number, as ours does, and names its own on every answer."""

    def do_GET(self):
        asked = self.headers.get("X-Posttrain-Contract")
        self.server.asked.append((self.path, asked))
        error = {"message": f"the client speaks contract {asked}, this service 2", "type": "x", "code": "y"}
        body = json.dumps({"error": error} if asked else {"object": "list", "data": [{"id": "policy@0"}]}).encode()
        self.send_response(self.server.status if asked else 200)
        self.send_header("X-Posttrain-Contract", "2")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def service(monkeypatch):
    for name in ("POLICY_URL", "REWARD_URL"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), NextContract)
    server.asked, server.status = [], 400
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def stopped(capsys, service, *arguments, **environment):
    """Whether a command stopped with the line; it asks once."""
    status = run([str(argument) for argument in arguments])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 1, said
    assert len(service.asked) == 1, service.asked
    return said == f"error: {service.url}{environment.get('at', '')} {LINE}"


@pytest.mark.parametrize("which", ["policy", "reward"])
def test_a_stage_stops(capsys, service, tmp_path, which):
    stage = ["stage", "ppo", "--from", nano.BASE, "--out", tmp_path / "run"]
    assert stopped(capsys, service, *stage, f"--{which}-url", service.url)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("which", ["POLICY_URL", "REWARD_URL"])
def test_a_run_of_the_lab_stops_before_its_first_stage(capsys, service, tmp_path, monkeypatch, which):
    monkeypatch.setenv(which, service.url)
    assert stopped(capsys, service, "train", "ppo", "--runs", tmp_path / "runs")
    assert not list(tmp_path.rglob("checkpoint"))


def test_an_evaluation_stops(capsys, service, tmp_path):
    command = ["eval", nano.BASE, "--tasks", "nano_problems", "--backend", "service", "--out", tmp_path]
    assert stopped(capsys, service, *command, "--policy-url", service.url)


def test_a_judge_stops_at_a_judging_policy(capsys, service):
    assert stopped(capsys, service, "serve", "judge", "--judge", service.url, at="/v1")


def test_a_judge_stops_at_a_reward_service(capsys, service, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "answer": "x"}\n')
    (tmp_path / "b.jsonl").write_text('{"prompt": "p", "answer": "y"}\n')
    command = ["judge", "run", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--judge", "reward"]
    assert stopped(capsys, service, *command, "--reward-url", service.url, "--store", tmp_path / "store.db")


def test_a_client_does_not_wait_for_a_service_of_another_contract_that_is_overloaded(capsys, service, tmp_path):
    service.status = 503
    stage = ["stage", "ppo", "--from", nano.BASE, "--out", tmp_path / "run"]
    assert stopped(capsys, service, *stage, "--reward-url", service.url)


def test_clients_say_their_contract_and_what_asks_any_server_does_not(service, capsys, tmp_path):
    run(["stage", "ppo", "--from", str(nano.BASE), "--out", str(tmp_path / "run"), "--reward-url", service.url])
    run(["serve", "judge", "--judge", service.url])
    assert [number for _, number in service.asked] == ["1", None]

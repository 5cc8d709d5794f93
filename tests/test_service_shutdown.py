"""The end of a service process: what is in flight is answered, new requests are refused, exit 0 within ten seconds."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest

from posttrain.core.serving import free_port
from posttrain.data import nano

pytestmark = [pytest.mark.service, pytest.mark.timeout(120)]

POSTTRAIN = [sys.executable, "-m", "posttrain.core"]
TEN_SECONDS = 10.0
"""What Docker gives a container between SIGTERM and SIGKILL."""
SHORT = {"model": "policy", "prompt": [[5]] * 256, "n": 1, "max_tokens": 200, "ignore_eos": True, "seed": 1}
"""A second or two of generation."""
ENDLESS = {**SHORT, "prompt": [[5]] * 4096, "n": 4}
"""Minutes of it."""


class Service:
    """`posttrain serve …`, perhaps below other programs."""

    def __init__(self, *arguments, before=(), under=None):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [*before, *POSTTRAIN, "serve", *map(str, arguments), "--port", str(self.port)]
        self.process = subprocess.Popen(command, start_new_session=True)
        deadline = time.monotonic() + 60
        while not self.answers("/readyz"):
            assert self.process.poll() is None
            assert time.monotonic() < deadline, "the service was not ready in time"
            time.sleep(0.1)
        self.told = psutil.Process(self.process.pid)
        for name in under or ():
            self.told = next(child for child in self.told.children() if child.name().startswith(name))
        self._answers = []

    def answers(self, path):
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.url + path, timeout=2).status_code == 200
        return False

    def ask(self, path, body):
        """Asks in a thread; `answer` waits for the end of it."""

        def ask():
            with httpx.stream("POST", self.url + path, json=body, timeout=60) as response:
                self._answers.append((response.status_code, response.read()))

        thread = threading.Thread(target=ask)
        thread.start()
        return thread

    def end(self):
        """SIGTERM."""
        self.began = time.monotonic()
        self.told.send_signal(signal.SIGTERM)

    def ended(self):
        """Exit status, and the seconds since `end`."""
        status = self.process.wait(30)
        return status, time.monotonic() - self.began

    def answer(self, thread):
        thread.join()
        return self._answers.pop()

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def service():
    started = []

    def start(*arguments, **options):
        started.append(Service(*arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.close()


def refused(service, path):
    """What a new request gets once the signal has come through; it has no body, and would be wrong otherwise."""
    while (response := httpx.post(service.url + path, timeout=5)).status_code != 503:
        assert response.status_code < 500
    assert response.headers["Retry-After"] == "1"
    return response.status_code, response.json()["error"]["code"]


def test_a_policy_answers_what_is_in_flight_and_refuses_the_rest(service):
    policy = service("policy", nano.BASE, "--threads", "1")
    asking = policy.ask("/v1/completions", SHORT)
    time.sleep(0.3)
    policy.end()
    assert refused(policy, "/v1/completions") == (503, "shutting_down")
    assert not policy.answers("/readyz")
    status, body = policy.answer(asking)
    assert (status, len(json.loads(body)["choices"])) == (200, 256)
    status, seconds = policy.ended()
    assert status == 0
    assert seconds < TEN_SECONDS


SLOW_REWARD = """
import time
def slow(prompt, completion, reference):
    time.sleep(0.5)
    return float(len(completion))
"""


def test_a_reward_service_lets_a_users_function_finish(service, tmp_path):
    (tmp_path / "rewards.py").write_text(SLOW_REWARD)
    reward = service("reward", "--source", f"mine={tmp_path / 'rewards.py'}:slow")
    items = [{"prompt": "p", "completion": "x" * n} for n in range(1, 5)]
    asking = reward.ask("/score", {"sources": ["mine"], "items": items})
    time.sleep(0.3)
    reward.end()
    assert refused(reward, "/score") == (503, "shutting_down")
    status, body = reward.answer(asking)
    assert (status, json.loads(body)["scores"]) == (200, [{"mine": float(n)} for n in range(1, 5)])
    status, seconds = reward.ended()
    assert status == 0
    assert seconds < TEN_SECONDS


@pytest.mark.slow
def test_what_takes_too_long_is_answered_503_and_a_stream_ends_with_an_error_event(service):
    policy = service("policy", nano.BASE, "--threads", "1", "--set", "max_waiting=100000")
    asking = policy.ask("/v1/completions", ENDLESS)
    time.sleep(0.5)
    policy.end()
    status, body = policy.answer(asking)
    assert (status, json.loads(body)["error"]["code"]) == (503, "shutting_down")
    status, seconds = policy.ended()
    assert status == 0
    assert 8 <= seconds < TEN_SECONDS
    streaming = service("policy", nano.BASE, "--threads", "1")
    asking = streaming.ask("/v1/completions", {**ENDLESS, "prompt": [[5]] * 1024, "n": 2, "stream": True})
    time.sleep(0.5)
    streaming.end()
    status, body = streaming.answer(asking)
    assert status == 200
    first, *_, last = [line.removeprefix(b"data: ") for line in body.splitlines() if line]
    assert json.loads(first)["model"] == "policy@0"
    assert json.loads(last)["error"]["code"] == "shutting_down"
    assert streaming.ended()[0] == 0


NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def _can_make_namespaces():
    return os.geteuid() == 0 and shutil.which("unshare") and subprocess.run([*NAMESPACE, "true"]).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _can_make_namespaces(), reason="process namespaces need Linux, root and unshare")
@pytest.mark.parametrize("init", [[], ["tini", "--"]], ids=["alone", "under tini"])
def test_as_the_first_process_of_a_namespace_it_ends_as_everywhere(service, init):
    if init and not shutil.which("tini"):
        pytest.skip("there is no tini")
    policy = service(
        "policy", nano.BASE, "--threads", "1", before=[*NAMESPACE, *init], under=["tini" if init else "py"]
    )
    asking = policy.ask("/v1/completions", SHORT)
    time.sleep(0.4)
    policy.end()
    assert policy.answer(asking)[0] == 200
    status, seconds = policy.ended()
    assert status == 0
    assert seconds < TEN_SECONDS


LOADING = """
import pathlib, time
pathlib.Path(__file__).with_name("loading").touch()
time.sleep(60)
def never(prompt, completion, reference): return 0.0
"""


@pytest.mark.slow
def test_a_service_that_is_loading_ends_within_ten_seconds_too(tmp_path):
    """A function of the user's own that takes long to load stands for a model of many gigabytes."""
    (tmp_path / "rewards.py").write_text(LOADING)
    settings = {"sources": {"mine": f"{tmp_path}/rewards.py:never"}}
    environment = {**os.environ, "POSTTRAIN_REWARD": json.dumps(settings), "BENTOML_HOME": str(tmp_path / "bentoml")}
    serve = [sys.executable, "-m", "bentoml", "serve", "posttrain.reward_model.service:RewardService"]
    process = subprocess.Popen([*serve, "--port", str(free_port())], env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "loading").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(1)  # in the middle of it
        began = time.monotonic()
        process.terminate()
        assert process.wait(20) == 0
        assert time.monotonic() - began < TEN_SECONDS
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

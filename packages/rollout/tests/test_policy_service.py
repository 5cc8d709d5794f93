"""The real server over a socket: the unmodified openai client, pushed weights, keys, a long answer, its end."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest
import torch
from safetensors.torch import save

from posttrain.core.clients import PolicyClient, StaleVersion
from posttrain.core.serving import free_port
from posttrain.rollout.load import load_engine

pytestmark = pytest.mark.service


class Server:
    """`posttrain serve policy` in a process of its own."""

    def __init__(self, checkpoint, log, **environment):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        command = [sys.executable, "-m", "posttrain.core", "serve", "policy", str(checkpoint)]
        command += ["--port", str(self.port), "--threads", "1"]
        with open(log, "wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **environment})
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                if httpx.get(self.url + "/readyz", timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.1)
        raise AssertionError("the service was not ready in time")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    server = Server(checkpoint, tmp_path_factory.mktemp("policy") / "log")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def test_openai_client_completes(client):
    wish = {"model": "policy", "prompt": "hello", "max_tokens": 8, "seed": 1, "logprobs": 1}
    answer = client.completions.create(**wish)
    assert answer.model == "policy@0"
    assert len(answer.choices[0].logprobs.token_logprobs) == answer.usage.completion_tokens
    chunks = list(client.completions.create(**wish, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason


def test_openai_client_chats(client):
    wish = {"model": "policy", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "seed": 1}
    answer = client.chat.completions.create(**wish)
    chunks = list(client.chat.completions.create(**wish, stream=True))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == answer.choices[0].message.content
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(**{**wish, "model": "policy@99"})
    assert error.value.code == "model_not_found"


def test_tokens_arrive_one_by_one(client):
    times = []
    stream = client.completions.create(
        model="policy", prompt="hello", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
    )
    for _ in stream:
        times.append(time.monotonic())
    assert len(times) >= 200
    assert times[100] - times[0] > 0.2 * (times[-1] - times[0])


def test_the_service_stays_alive_while_it_generates(server):
    wish = {"model": "policy", "prompt": [[5]] * 256, "n": 2, "max_tokens": 250, "ignore_eos": True}
    done = threading.Event()
    statuses = []

    def generate():
        statuses.append(httpx.post(server.url + "/v1/completions", json=wish, timeout=120).status_code)
        done.set()

    threading.Thread(target=generate, daemon=True).start()
    time.sleep(0.3)
    slowest = 0.0
    while not done.wait(0.05):
        start = time.monotonic()
        assert httpx.get(server.url + "/livez", timeout=10).status_code == 200
        slowest = max(slowest, time.monotonic() - start)
    assert statuses == [200]
    assert 0 < slowest < 2.0


def test_a_client_that_leaves_stops_the_generation(server):
    wish = {"model": "policy", "prompt": [[5]] * 400, "n": 4, "max_tokens": 250, "ignore_eos": True}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + "/v1/completions", json=wish, timeout=1.0)
    start = time.monotonic()
    answer = httpx.post(server.url + "/v1/completions", json={"model": "policy", "prompt": "a"}, timeout=60)
    assert answer.status_code == 200
    # 1,600 sequences of 250 tokens would take far longer.
    assert time.monotonic() - start < 4.0


def test_the_host_must_be_loopback_without_a_key(server):
    refused = httpx.get(server.url + "/v1/models", headers={"Host": "rebound.example"})
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "loopback_only"


def test_metrics_show_tokens_and_version(server, client):
    client.completions.create(model="policy", prompt="hello", max_tokens=2)
    text = httpx.get(server.url + "/metrics").text
    lines = [line.split(" ") for line in text.splitlines() if line.startswith("posttrain_policy_")]
    values = {line[0]: float(line[1]) for line in lines}
    assert values["posttrain_policy_generated_tokens_total"] > 0
    for name in ("queue", "first_token", "output_token"):
        assert values[f"posttrain_policy_{name}_seconds_count"] > 0
    assert values["posttrain_policy_slots"] == 256
    assert {"posttrain_policy_weights_version", "posttrain_policy_running_sequences"} <= set(values)


def test_metrics_hold_no_path_that_a_client_made_up(server):
    for number in range(3):
        httpx.get(f"{server.url}/v1/models/policy@77{number}")
        httpx.get(f"{server.url}/zebra{number}")
    text = httpx.get(server.url + "/metrics").text
    assert 'endpoint="/v1/models/"' in text
    assert 'endpoint="other"' in text
    assert "zebra" not in text
    assert "policy@77" not in text


def test_nothing_of_a_prompt_is_logged(server):
    secret = "zebra-crossing-7141"
    httpx.post(server.url + "/v1/completions", json={"model": "policy", "prompt": secret, "max_tokens": 2})
    httpx.post(server.url + "/v1/completions", json={"model": "policy", "prompt": secret, "max_tokens": secret})
    assert secret not in server.log.read_text()


def test_a_trainers_round(server, checkpoint):
    """Sample exactly version 0, push 4, find 0 gone, be refused rubbish, and sample 4 as before."""
    client = PolicyClient(server.url)
    wish = {"n": 2, "max_tokens": 12, "seed": 3}
    first = client.complete([[5, 6], [7, 8, 9]], version=0, **wish)
    engine = load_engine(checkpoint)
    for prompt, group in zip([[5, 6], [7, 8, 9]], first, strict=True):
        for completion in group:
            ids = torch.tensor([prompt + completion.token_ids])
            logprobs = engine.model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            assert torch.allclose(torch.tensor(completion.logprobs), logprobs[len(prompt) - 1 :], atol=1e-4)
    state = {name: tensor + 0.01 for name, tensor in engine.model.state_dict().items() if name != "lm_head.weight"}
    assert client.push(4, save(state))["id"] == "policy@4"
    with pytest.raises(StaleVersion):
        client.complete([[5, 6]], version=0, **wish)
    second = client.complete([[5, 6], [7, 8, 9]], version=4, **wish)
    assert second != first
    for body in (b"junk", save({"a": torch.zeros(1)})):
        headers = {"X-Content-SHA256": hashlib.sha256(body).hexdigest()}
        assert httpx.put(server.url + "/v1/models/policy@5", content=body, headers=headers).status_code == 400
    assert client.complete([[5, 6], [7, 8, 9]], version=4, **wish) == second


def test_a_key_is_demanded_when_there_is_one(checkpoint, tmp_path):
    server = Server(checkpoint, tmp_path / "log", POSTTRAIN_API_KEY="sesame")
    try:
        url = server.url + "/v1/models"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert httpx.get(url).json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(server.url + "/livez").status_code == 200
        assert httpx.get(server.url + "/metrics").status_code == 401
        # With a key any Host may be asked.
        headers = {"Authorization": "Bearer sesame", "Host": "policy.example"}
        assert httpx.get(url, headers=headers).status_code == 200
    finally:
        assert server.stop() == 0

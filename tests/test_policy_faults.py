"""Faults around the policy service: clients that leave, a killed worker, services killed all through a run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save

from posttrain.core.clients import PolicyClient, StaleVersion
from posttrain.core.serving import free_port
from posttrain.data import nano

pytestmark = pytest.mark.service

ROOT = Path(__file__).resolve().parents[1]
KILLS = 20
STEPS = 90
APART_SECONDS = 7.0
"""Between kills, which take turns: what dies more often than five times a minute its supervisor takes for broken."""
RUN = (
    "reward=verifier",
    "data.sft.rows=128",
    "sft.epochs=1",
    f"ppo.steps={STEPS}",
    "ppo.save_every=30",
    "ppo.prompts_per_step=8",
    "ppo.max_new_tokens=16",
    "evaluation.limit=4",
    "evaluation.policy_prompts=4",
    "threads=1",
)


def test_load_loses_and_mixes_up_nothing():
    """The short version of benchmarks/faults/policy_load.py, which the record has at 256 clients for a minute."""
    command = [sys.executable, "-m", "benchmarks.faults.policy_load", "--clients", "8", "--seconds", "3"]
    command += ["--max-waiting", "8", "--push-seconds", "0.5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.stdout, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["failures"] == 0, figures["first_failures"]
    assert done.returncode == 0
    assert figures["outcomes"]["completed"] > 0
    assert figures["checked_tokens"] > 0


@pytest.mark.slow
def test_killed_worker_ends_the_service_and_a_new_one_says_that_it_is_back_at_its_first_weights(tmp_path):
    """Left to itself, BentoML would start the worker again without a word; version and instance tell in any case."""
    port = free_port()
    command = [sys.executable, "-m", "posttrain.core", "serve", "policy", str(nano.BASE), "--port", str(port)]

    def start() -> subprocess.Popen:
        with open(tmp_path / "log", "ab") as log:
            return subprocess.Popen([*command, "--threads", "1"], stdout=log, stderr=log)

    process = start()
    client = PolicyClient(f"http://127.0.0.1:{port}", patience=90)
    try:
        before = client.models()["data"][0]
        pushed = save({name: tensor + 0.01 for name, tensor in load_torch(nano.BASE / "model.safetensors").items()})
        client.push(3, pushed)
        sampled = client.complete([[5, 6]], version=3, max_tokens=8, seed=1)
        (worker,) = psutil.Process(process.pid).children()
        worker.kill()
        assert process.wait(60) == 1
        process = start()
        after = client.models()["data"][0]
        assert (after["version"], after["sha256"]) == (0, before["sha256"])
        assert after["instance"] != before["instance"]
        with pytest.raises(StaleVersion, match="current one is 0"):
            client.complete([[5, 6]], version=3, max_tokens=8, seed=1)
        client.push(3, pushed)
        assert client.complete([[5, 6]], version=3, max_tokens=8, seed=1) == sampled
    finally:
        client.close()
        process.terminate()
        process.wait(30)


def ppo(runs: Path) -> list[str]:
    sets = [part for override in RUN for part in ("--set", override)]
    return [sys.executable, "-m", "posttrain.core", "train", "ppo", "--runs", str(runs), "--json", *sets]


def rows(runs: Path) -> list[dict]:
    """What PPO has logged, without what a disturbance may change: times, and how often weights were pushed again."""
    files = list((runs / "nano" / "ppo").glob("*/metrics.jsonl"))
    lines = files[0].read_text().splitlines() if files else []
    logged = []
    for line in lines:
        with suppress(json.JSONDecodeError):  # the last one may be half written
            row = json.loads(line)
            logged.append({k: v for k, v in row.items() if "second" not in k and "time" not in k and "push" not in k})
    return logged


def servers(runs: Path, name: str) -> list[psutil.Process]:
    """The processes of the run's policy or reward service."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            parents = [p for p in process.parents() if str(runs) in " ".join(p.cmdline())]
            if parents and f"POSTTRAIN_{name.upper()}" in process.environ():
                found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_services_killed_at_random_moments_change_nothing(tmp_path):
    calm, shaken = tmp_path / "calm", tmp_path / "shaken"
    done = subprocess.run(ppo(calm), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rng = random.Random(0)
    with open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen(ppo(shaken), stdout=said, stderr=said)
    killed = 0
    try:
        for number in range(KILLS):
            seen, began = len(rows(shaken)), time.monotonic()
            while process.poll() is None and len(rows(shaken)) <= seen:  # back at work after the last kill
                time.sleep(0.02)
            process.send_signal(signal.SIGSTOP)  # so that the run lasts long enough on any machine
            time.sleep(max(0.0, APART_SECONDS - (time.monotonic() - began)))
            process.send_signal(signal.SIGCONT)
            time.sleep(rng.random() * 0.4)
            assert process.poll() is None, f"the run ended after {killed} kills\n{(tmp_path / 'said').read_text()}"
            for server in servers(shaken, ("policy", "reward")[number % 2]):
                os.kill(server.pid, signal.SIGKILL)
                killed += 1
        assert process.wait(600) == 0, (tmp_path / "said").read_text()
    finally:
        process.kill()
    assert killed >= KILLS
    assert [row["step"] for row in rows(shaken)] == list(range(STEPS))
    assert rows(shaken) == rows(calm)
    ours, theirs = (
        load_file(next((runs / "nano" / "ppo").iterdir()) / "checkpoint" / "model.safetensors")
        for runs in (shaken, calm)
    )
    same = all((ours[name] == theirs[name]).all() for name in theirs)
    # For make bench-faults.
    print("\n" + json.dumps({"fault": "killed services", "kills": KILLS, "steps": STEPS, "same_bits": bool(same)}))
    assert same


def test_stalled_body_does_not_keep_the_service_from_others():
    """A hundred connections that send a byte and then nothing: other clients are answered as ever."""
    import socket

    from benchmarks.faults.policy_load import service

    with service("native", 256) as (url, _):
        address = ("127.0.0.1", httpx.URL(url).port)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        stalled = []
        for _ in range(100):
            connection = socket.create_connection(address)
            connection.sendall(head + b"Content-Length: 100000\r\n\r\n{")
            stalled.append(connection)
        body = {"model": "policy", "prompt": "a", "max_tokens": 4}
        for _ in range(5):
            assert httpx.post(f"{url}/v1/completions", json=body, timeout=20, trust_env=False).status_code == 200
        for connection in stalled:
            connection.close()
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=20, trust_env=False).status_code == 200

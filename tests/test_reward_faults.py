"""The reward service as a process of its own, under what clients, users' functions and machines do to it."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest

from posttrain.core.clients import RewardClient
from posttrain.core.supervised import SupervisedService
from posttrain.data import nano
from posttrain.trainers.models import align_special_tokens, load_sequence_classifier, save_checkpoint

pytestmark = [pytest.mark.service, pytest.mark.timeout(240)]
ROOT = Path(__file__).parents[1]
REWARDS = """
import os, time
def mine(prompt, completion, reference):
    if completion == "hang": time.sleep(1000)
    if completion == "die": os._exit(1)
    return float(len(completion))
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SupervisedService]:
    """A supervised reward service: the nano base with a drawn head as `rm`, and a function with half a second."""
    from posttrain.data.chat import load_tokenizer

    folder = tmp_path_factory.mktemp("reward")
    model, _ = load_sequence_classifier(nano.BASE, seed=0)
    tokenizer = load_tokenizer(nano.BASE)
    align_special_tokens(model, tokenizer)
    save_checkpoint(model, tokenizer, folder / "rm")
    (folder / "rewards.py").write_text(REWARDS)
    arguments = ["reward", str(folder / "rm"), "--source", f"mine={folder / 'rewards.py'}:mine"]
    arguments += ["--function-seconds", "0.5", "--threads", "1"]
    with SupervisedService("reward", arguments, folder / "log") as running:
        yield running


def items(*completions: str) -> list[dict]:
    return [{"prompt": "How long?", "completion": completion, "finish_reason": "stop"} for completion in completions]


def processes(service: SupervisedService, part: str) -> list[psutil.Process]:
    """Processes below the service whose command line has `part`."""
    found = psutil.Process(service.pid).children(recursive=True)
    return [process for process in found if part in " ".join(process.cmdline())]


def wait(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"not within a minute: {what}"
        time.sleep(0.1)


def metric(service: SupervisedService, line: str) -> float:
    """A metric's value, 0 where it has none yet."""
    text = httpx.get(f"{service.url}/metrics", trust_env=False).text
    found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def test_a_hanging_and_a_dying_item_cost_themselves_only_while_others_are_answered(service: SupervisedService):
    with closing(RewardClient(service.url)) as client, ThreadPoolExecutor(8) as many:
        bad = many.submit(client.score, ["mine"], items("hang", "a", "die", "bb", "hang"), on_error=-1.0)
        good = [many.submit(client.score, ["rm", "mine"], items("x" * n)) for n in range(1, 20)]
        assert [one.result().scores[0]["mine"] for one in good] == [float(n) for n in range(1, 20)]
        result = bad.result()
    assert [scores["mine"] for scores in result.scores] == [-1.0, 1.0, -1.0, 2.0, -1.0]
    assert [error.index for error in result.errors] == [0, 2, 4]
    assert metric(service, 'posttrain_reward_failed_items_total{source="mine"}') == 3


def test_a_client_that_goes_away_ends_its_work(service: SupervisedService):
    body = json.dumps({"sources": ["mine"], "items": items(*["hang"] * 100)}).encode()
    gone = 'posttrain_reward_requests_total{outcome="gone"}'
    before = metric(service, gone)
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        head = f"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        time.sleep(1)
    wait(lambda: metric(service, gone) == before + 1, "the request is counted as gone")
    start = time.monotonic()
    with closing(RewardClient(service.url)) as client:
        assert client.score(["mine"], items("a")).scores == [{"mine": 1.0}]
    assert time.monotonic() - start < 20, "a hundred items that hang are fifty seconds of both processes"


def test_concurrent_clients_of_random_sizes_get_their_own_scores(service: SupervisedService):
    texts = [f"#### {n}" for n in range(60)]
    with closing(RewardClient(service.url)) as client:
        alone = {text: client.score(["rm"], items(text)).scores[0]["rm"] for text in texts}

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=service.url, trust_env=False, timeout=60) as http:

            async def ask(number: int) -> None:
                mine = [texts[(number * 7 + n) % 60] for n in range(1 + number % 30)]
                answer = (await http.post("/score", json={"sources": ["rm"], "items": items(*mine)})).json()
                assert [s["rm"] for s in answer["scores"]] == pytest.approx([alone[text] for text in mine], abs=1e-4)

            await asyncio.gather(*map(ask, range(64)))

    asyncio.run(scenario())


def test_mutated_requests_never_break_it(service: SupervisedService):
    assert _mutate(service, 500)["failures"] == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_mutated_requests_never_break_it(service: SupervisedService):
    assert _mutate(service, 100_000)["failures"] == 0


def _mutate(service: SupervisedService, count: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.faults.mutated_requests", "--service", "reward"]
    command += ["--url", service.url, "--count", str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_kill_9_leaves_no_process_and_the_client_is_answered_by_the_next_one(service: SupervisedService):
    with closing(RewardClient(service.url)) as client, ThreadPoolExecutor(1) as other:
        before = client.score(["rm", "mine"], items("abc"))
        busy = other.submit(client.score, ["mine"], items("hang", "hang", "a"), on_error=0.0)
        wait(lambda: processes(service, "functions.worker"), "the function runs")
        below = psutil.Process(service.pid).children(recursive=True)
        os.kill(service.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(below, timeout=20)
        assert not alive
        # Both were asked again, of a service that was started anew.
        assert busy.result().scores[2] == {"mine": 1.0}
        assert client.score(["rm", "mine"], items("abc")) == before


def test_its_log_holds_no_text_of_any_request(service: SupervisedService):
    secret = "the-text-of-the-item"
    with closing(RewardClient(service.url)) as client:
        client.score(["rm", "mine"], items(secret))
    httpx.post(f"{service.url}/score", content=f'{{"{secret}": 1}}', trust_env=False)
    httpx.post(f"{service.url}/{secret}?{secret}", trust_env=False)
    assert secret not in service.log.read_text()

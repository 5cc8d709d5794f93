"""How a container ends: requests that are under way are answered, quickly, and no process is left unreaped."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from tests.containers.conftest import KEY
from tests.containers.driver import Container, Launch, Mount, run
from tests.containers.services import FUNCTIONS, hardened, judge, keyed, policy, reward, scripted_judge, serving

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]
END_SECONDS = 10.0
"""What `docker stop` waits for before it kills."""
LONG_SECONDS = 3.0
"""Of the requests that are under way."""
ORPHANS = """
import json, os, pathlib, time
reading, writing = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:  # the grandchild, whose parent ends at once
        while os.getppid() != 1:
            time.sleep(0.01)
        os.write(writing, str(os.getpid()).encode())
        os._exit(0)
    os._exit(0)
os.wait()
orphan = int(os.read(reading, 20))
deadline = time.monotonic() + 10
while pathlib.Path(f"/proc/{orphan}").exists() and time.monotonic() < deadline:
    time.sleep(0.05)
print(json.dumps({"reaped": not pathlib.Path(f"/proc/{orphan}").exists()}))
"""


def ended_under_a_request(container: Container, path: str, body: dict) -> tuple[int, httpx.Response]:
    """Exit status of a service that is told to end in the middle of a request, and what the request was answered."""

    def ask() -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.post(container.url + path, json=body, headers=headers, timeout=120, trust_env=False)

    with ThreadPoolExecutor(1) as other:
        asked = other.submit(ask)
        time.sleep(LONG_SECONDS / 6)
        assert not asked.done(), "the request was to last longer"
        container.signal(signal.SIGTERM)
        assert container.ended(END_SECONDS), container.logs()
        return container.wait(120), asked.result()


def test_a_policy_service_finishes_the_generation_that_is_under_way(driver, image, models, key_file):
    with serving(driver, hardened(keyed(policy(image("rollout"), models), key_file))) as container:
        samples = samples_for(container, LONG_SECONDS / 2)
        status, answer = ended_under_a_request(container, "/v1/completions", sampling(samples))
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["choices"]) == samples
    assert status == 0, container.logs()


def sampling(samples: int) -> dict:
    """A request for so many completions of full length: at a high temperature few end by themselves."""
    return {"model": "policy", "prompt": "The", "max_tokens": 128, "n": samples, "temperature": 2.0, "seed": 0}


def samples_for(container: Container, seconds: float) -> int:
    """How many samples last so long, by what a few took: in a container's share of this machine that is not known."""
    headers = {"Authorization": f"Bearer {KEY}"}
    for _ in range(2):  # the first one warms up
        began = time.monotonic()
        httpx.post(f"{container.url}/v1/completions", json=sampling(256), headers=headers, timeout=120, trust_env=False)
        took = time.monotonic() - began
    return min(8192, int(256 * seconds / took))


def test_a_reward_service_answers_the_scoring_that_is_under_way(driver, image, models, key_file):
    with serving(driver, hardened(keyed(reward(image("reward-model"), models, *FUNCTIONS), key_file))) as container:
        item = {"prompt": "a", "completion": "bcd", "finish_reason": "stop"}
        status, answer = ended_under_a_request(container, "/score", {"sources": ["slow"], "items": [item]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["scores"] == [{"slow": 3.0}]
    assert status == 0, container.logs()


def test_a_judge_service_answers_the_judging_that_is_under_way(driver, image, work, key_file):
    target = image("llm-judge")
    slow = scripted_judge(target, "--latency", str(LONG_SECONDS))
    with serving(driver, hardened(keyed(slow, key_file))) as asked:
        launch = hardened(keyed(judge(target, "--judge", asked.inside_url), key_file))
        launch = replace(launch, mounts=(*launch.mounts, Mount(work, "/data")))
        with serving(driver, launch) as container:
            comparison = {"instruction": "Which?", "output_1": "this one", "output_2": "that one"}
            status, answer = ended_under_a_request(container, "/judge", {"comparisons": [comparison]})
    assert answer.status_code == 200, answer.text
    assert status == 0, container.logs()


def test_a_stage_that_is_stopped_says_that_it_resumes_and_does(driver, image, models, work):
    """`docker stop` of a trainer: nothing looks finished, and the same command ends what was begun."""
    words = ("stage", "sft", "--from", "/models/policy", "--data", "nano", "--out", "/data/sft")
    words += ("--data-rows", "2048", "--threads", "1", "--set", "epochs=1")
    mounts = (Mount(models, "/models", read_only=True), Mount(work, "/data"))
    launch = hardened(Launch(image("trainers"), words, mounts=mounts))
    container = driver.start(launch)
    try:
        metrics = work / "sft" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert container.running(), container.logs()
            assert time.monotonic() < deadline, container.logs()
            time.sleep(0.1)
        container.signal(signal.SIGTERM)
        assert container.ended(END_SECONDS)
        assert container.wait(60) != 0
        assert not (work / "sft" / "provenance.json").exists()
    finally:
        container.remove()
    ran = run(driver, launch, 300)
    assert ran.status == 0, ran.output
    provenance = json.loads((work / "sft" / "provenance.json").read_text())
    assert provenance["stage"] == "sft"
    assert (work / "sft" / "checkpoint" / "model.safetensors").is_file()


def test_the_first_process_reaps_what_others_left(driver, image):
    """A grandchild whose parent has ended becomes the first process's: a zombie, unless that waits for it."""
    launch = Launch(image("data"), ("-c", ORPHANS), ("tini", "--", "python"))
    assert driver.config(launch.image).entrypoint[:2] == launch.entrypoint[:2]
    ran = run(driver, launch)
    assert json.loads(ran.output.strip().splitlines()[-1]) == {"reaped": True}

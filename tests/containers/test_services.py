"""The services as containers with a read-only root and their key as a secret, asked from outside."""

from collections.abc import Iterator
from dataclasses import replace

import httpx
import openai
import pytest

from delivery.targets import TARGETS
from posttrain.core.clients import RewardClient
from posttrain.core.errors import RequestError
from posttrain.core.serving import check_address
from posttrain.core.wire import CONTRACT_HEADER
from tests.containers.conftest import KEY
from tests.containers.driver import Container, Launch, Mount, run
from tests.containers.services import FUNCTIONS, hardened, judge, keyed, policy, reward, scripted_judge, serving

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]
AUTHORISED = {"Authorization": f"Bearer {KEY}"}
SHORT_SECONDS = 60.0


@pytest.fixture(scope="module")
def policy_service(driver, image, models, key_file) -> Iterator[Container]:
    with serving(driver, hardened(keyed(policy(image("rollout"), models), key_file))) as container:
        yield container


@pytest.fixture(scope="module")
def reward_service(driver, image, models, key_file) -> Iterator[Container]:
    with serving(driver, hardened(keyed(reward(image("reward-model"), models, *FUNCTIONS), key_file))) as container:
        yield container


@pytest.fixture(scope="module")
def judge_service(driver, image, key_file, tmp_path_factory) -> Iterator[Container]:
    work = tmp_path_factory.mktemp("work")
    work.chmod(0o777)
    target = image("llm-judge")
    with serving(driver, hardened(keyed(scripted_judge(target), key_file))) as asked:
        launch = hardened(keyed(judge(target, "--judge", asked.inside_url), key_file))
        with serving(driver, replace(launch, mounts=(*launch.mounts, Mount(work, "/data")))) as container:
            yield container


def test_the_policy_answers_the_stock_openai_client(policy_service):
    client = openai.OpenAI(base_url=f"{policy_service.url}/v1", api_key=KEY, max_retries=0)
    said = client.completions.create(model="policy", prompt="2 + 3 =", max_tokens=4, temperature=0)
    assert said.model == "policy@0"
    assert 1 <= said.usage.completion_tokens <= 4
    talk = client.chat.completions.create(
        model="policy", messages=[{"role": "user", "content": "What is 2 + 3?"}], max_tokens=4, stream=True
    )
    assert [choice.finish_reason for chunk in talk for choice in chunk.choices][-1] in ("stop", "length")


def test_the_reward_service_scores_by_a_model_a_verifier_and_a_function(reward_service):
    item = {"prompt": "2 + 3?", "completion": "#### 5", "finish_reason": "stop", "reference": "5"}
    body = {"sources": ["rm", "gsm8k", "length"], "items": [item]}
    response = httpx.post(
        f"{reward_service.url}/score", json=body, headers=AUTHORISED, timeout=SHORT_SECONDS, trust_env=False
    )
    assert response.status_code == 200, response.text
    (scores,) = response.json()["scores"]
    assert scores["length"] == 6.0
    assert scores["gsm8k"] == 1.2
    assert isinstance(scores["rm"], float)


def test_the_judge_prefers_an_answer_and_keeps_what_it_said_on_its_volume(judge_service):
    comparison = {"instruction": "Which?", "output_1": "this one", "output_2": "that one"}
    response = httpx.post(
        f"{judge_service.url}/judge",
        json={"comparisons": [comparison]},
        headers=AUTHORISED,
        timeout=SHORT_SECONDS,
        trust_env=False,
    )
    assert response.status_code == 200, response.text
    (judged,) = response.json()["comparisons"]
    assert 0 <= judged["preference"] <= 1


@pytest.mark.parametrize("name", ["policy", "reward", "judge"])
def test_without_the_key_in_the_secrets_file_everything_but_readiness_is_refused(request, name):
    container = request.getfixturevalue(f"{name}_service")
    refused = httpx.get(f"{container.url}/metrics", trust_env=False)
    assert refused.status_code == 401
    assert "POSTTRAIN_API_KEY" in refused.json()["error"]["message"]
    assert httpx.get(f"{container.url}/metrics", headers=AUTHORISED, trust_env=False).status_code == 200
    assert httpx.get(f"{container.url}/readyz", trust_env=False).status_code == 200


@pytest.mark.parametrize("name", ["policy", "reward", "judge"])
def test_a_client_of_another_contract_is_told_which_one_is_spoken(request, name):
    container = request.getfixturevalue(f"{name}_service")
    path = {"policy": "/v1/models", "reward": "/v1/sources", "judge": "/v1/judges"}[name]
    headers = {**AUTHORISED, CONTRACT_HEADER: "99"}
    refused = httpx.get(container.url + path, headers=headers, trust_env=False)
    assert 400 <= refused.status_code < 500
    assert "99" in refused.json()["error"]["message"]
    assert httpx.get(container.url + path, headers={**AUTHORISED, CONTRACT_HEADER: "1"}, trust_env=False).is_success


def test_this_projects_client_reads_its_key_from_a_file_too(reward_service, key_file, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_API_KEY_FILE", str(key_file))
    client = RewardClient(reward_service.url, patience=20)
    assert {"rm", "gsm8k", "length"} <= set(client.sources())
    client.close()


@pytest.mark.parametrize("target", ["rollout", "reward-model"])
def test_the_images_own_command_serves_at_its_own_port(driver, image, models, key_file, target):
    port = TARGETS[target].port
    try:
        check_address("127.0.0.1", port)
    except RequestError as error:
        pytest.skip(str(error))
    launch = Launch(image(target), mounts=(Mount(models, "/models", read_only=True),), port=port)
    with serving(driver, hardened(keyed(launch, key_file))) as container:
        path = {"rollout": "/v1/models", "reward-model": "/v1/sources"}[target]
        assert httpx.get(container.url + path, headers=AUTHORISED, trust_env=False).status_code == 200


@pytest.mark.parametrize("name", ["policy", "reward", "judge"])
def test_the_health_check_tells_a_ready_service_from_none(request, driver, image, name):
    """The command of the image's own HEALTHCHECK, at the address of the service instead of the default one."""
    container = request.getfixturevalue(f"{name}_service")
    target = image({"policy": "rollout", "reward": "reward-model", "judge": "llm-judge"}[name])
    check = driver.config(target).healthcheck
    if check is None:
        pytest.skip(f"{driver.name} does not tell health checks")
    program, *words = check
    asked = [container.inside_url if word.startswith("http://") else word for word in words]
    assert asked != words
    ran = run(driver, Launch(target, tuple(asked), (program,)))
    assert ran.status == 0, ran.output
    none = run(driver, Launch(target, tuple(words), (program,)))
    assert none.status == 1
    assert len(none.output.strip().splitlines()) == 1, none.output

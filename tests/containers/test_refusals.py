"""What cannot work is said in one line and an exit status, and nothing half-written passes for done."""

from dataclasses import replace

import httpx
import pytest

from tests.containers.conftest import KEY
from tests.containers.driver import Launch, Mount, run
from tests.containers.services import SECRET, hardened, judge, keyed, policy, reward, scripted_judge, serving

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]
TARGETS = {"policy": "rollout", "reward": "reward-model", "judge": "llm-judge"}
OTHER_CONTRACT = """
import http.server, sys
class Other(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("X-Posttrain-Contract", "2")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    do_POST = do_GET
http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Other).serve_forever()
"""


@pytest.fixture
def launch(request, image, models) -> Launch:
    """The service that the test's parameter names, without a key."""
    target = image(TARGETS[request.param])
    if request.param == "judge":
        return judge(target, "--reward", "http://127.0.0.1:9")
    return (policy if request.param == "policy" else reward)(target, models)


every_service = pytest.mark.parametrize("launch", list(TARGETS), indirect=True)


@every_service
def test_a_secrets_file_that_is_not_there_is_named(driver, launch):
    ran = run(driver, replace(launch, environment={"POSTTRAIN_API_KEY_FILE": SECRET}))
    assert ran.status == 2, ran.output
    (line,) = ran.errors
    assert SECRET in line


def test_an_empty_secrets_file_is_named(driver, image, models, tmp_path):
    empty = tmp_path / "key"
    empty.touch()
    ran = run(driver, keyed(policy(image("rollout"), models), empty))
    assert ran.status == 2, ran.output
    (line,) = ran.errors
    assert SECRET in line


def test_without_a_key_a_service_answers_nobody_from_outside_and_says_why(driver, image, models):
    with serving(driver, hardened(policy(image("rollout"), models))) as container:
        assert "POSTTRAIN_API_KEY" in container.logs()
        # On this machine's own network the tests are no strangers; the Host that they name is.
        refused = httpx.get(f"{container.url}/v1/models", headers={"Host": "policy.example"}, trust_env=False)
        assert refused.status_code == 403
        assert "set a key" in refused.json()["error"]["message"]


def test_a_key_that_is_wrong_is_refused(driver, image, models, key_file):
    with serving(driver, hardened(keyed(reward(image("reward-model"), models), key_file))) as container:
        headers = {"Authorization": f"Bearer {KEY}x"}
        refused = httpx.get(f"{container.url}/v1/sources", headers=headers, trust_env=False)
        assert refused.status_code == 401
        assert KEY not in container.logs()


@pytest.mark.parametrize("target", ["rollout", "reward-model"])
def test_a_checkpoint_that_is_not_there_is_named(driver, image, key_file, target):
    """As it is when somebody runs the image with an empty volume: the policy's own command names /models/policy."""
    command = () if target == "rollout" else ("serve", "reward", "/models/reward", "--host", "0.0.0.0")
    ran = run(driver, hardened(keyed(Launch(image(target), command), key_file)))
    assert ran.status == 2, ran.output
    (line,) = ran.errors
    assert f"/models/{'policy' if target == 'rollout' else 'reward'}" in line


def test_a_stage_from_a_checkpoint_that_is_not_there_names_it(driver, image, work):
    words = ("stage", "sft", "--from", "/models/none", "--data", "nano", "--out", "/data/sft")
    ran = run(driver, hardened(Launch(image("trainers"), words, mounts=(Mount(work, "/data"),))))
    assert ran.status == 2, ran.output
    (line,) = ran.errors
    assert "/models/none" in line
    assert list(work.iterdir()) == []


def test_a_trainer_stops_at_a_service_of_another_contract_and_leaves_nothing(driver, image, models, work):
    stub = policy(image("data"), models)  # for its port
    stub = replace(stub, entrypoint=("tini", "--", "python"), command=("-c", OTHER_CONTRACT, str(stub.port)))
    with serving(driver, stub) as other:
        urls = ("--policy-url", other.inside_url, "--reward-url", other.inside_url)
        words = ("stage", "ppo", "--from", "/models/policy", "--data", "nano", "--out", "/data/ppo", *urls)
        mounts = (Mount(models, "/models", read_only=True), Mount(work, "/data"))
        ran = run(driver, hardened(Launch(image("trainers"), words, mounts=mounts)))
    assert ran.status == 1, ran.output
    (line,) = ran.errors
    assert "contract 2" in line
    assert not list(work.glob("**/provenance.json"))


def test_a_trainer_on_a_full_volume_says_so_and_nothing_there_looks_finished(driver, image, models):
    words = "stage sft --from /models/policy --data nano --data-rows 64 --out /full/sft --threads 1 --set epochs=1"
    looking = "status=$?; find /full -name provenance.json -o -name model.safetensors; exit $status"
    launch = Launch(
        image("trainers"),
        ("-c", f"posttrain {words}; {looking}"),
        ("tini", "--", "sh"),
        mounts=(Mount(models, "/models", read_only=True),),
        tmpfs={"/full": "2m"},
    )
    ran = run(driver, hardened(launch), 300)
    assert ran.status == 1, ran.output
    (line,) = ran.errors
    assert "no space left to write /full/sft" in line
    assert not [line for line in ran.output.splitlines() if line.startswith("/full")]


def test_a_judge_on_a_full_volume_refuses_and_keeps_what_it_had_said_to_be_stored(driver, image, key_file):
    target = image("llm-judge")
    authorised = {"Authorization": f"Bearer {KEY}"}

    def ask(url: str, number: int, length: int) -> httpx.Response:
        texts = {f"output_{side}": f"{number} {side} " + "x" * length for side in (1, 2)}
        body = {"comparisons": [{"instruction": f"Number {number}?", **texts}]}
        return httpx.post(f"{url}/judge", json=body, headers=authorised, timeout=120, trust_env=False)

    with serving(driver, hardened(keyed(scripted_judge(target), key_file))) as asked:
        folders = [word for name in ("store", "runs", "records") for word in ("--set", f"{name}=/full/{name}")]
        launch = hardened(keyed(judge(target, "--judge", asked.inside_url, *folders), key_file))
        with serving(driver, replace(launch, tmpfs={**launch.tmpfs, "/full": "4m"})) as container:
            kept = ask(container.url, 0, 1)
            assert kept.status_code == 200, kept.text
            answers = [ask(container.url, number, 400_000) for number in range(1, 12)]
            refused = [answer for answer in answers if answer.status_code != 200]
            assert refused, "a volume of 4 MB took 9 MB"
            assert all(500 <= answer.status_code < 600 for answer in refused)
            assert "no space left" in refused[0].json()["error"]["message"]
            assert httpx.get(f"{container.url}/readyz", trust_env=False).status_code == 200
            # The same question again costs nothing: what was acknowledged is on the volume still.
            again = ask(container.url, 0, 1)
            assert again.status_code == 200
            assert again.json()["usage"]["asked"] == 0
            assert again.json()["comparisons"][0]["preference"] == kept.json()["comparisons"][0]["preference"]

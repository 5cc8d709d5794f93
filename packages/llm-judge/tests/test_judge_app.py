"""`POST /judge` in process: both orders, the store, policies by name only, and errors that repeat nothing."""

import asyncio
import json
import logging
import math
import re
import sys
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from tenacity import wait_none

from posttrain.core.asgi import ServiceMiddleware
from posttrain.llm_judge.comparisons import Comparison, Game
from posttrain.llm_judge.judges import completions
from posttrain.llm_judge.judges.script import Script
from posttrain.llm_judge.judges.scripted import ScriptedJudge
from posttrain.llm_judge.protocols import load_protocol
from posttrain.llm_judge.serving.app import create_app

sys.path.insert(0, str(Path(__file__).parent))
from judge_service import (
    KEY,
    SECRET,
    Policy,
    Reward,
    Scripted,
    item,
    items,
    judged,
    refused,
    served,
    service,
    settings,
)

BIASED = Script(position_bias=0.7)


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(completions, "_BACK_OFF", wait_none())
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def scripted():
    return Scripted(BIASED)


@pytest.fixture
def url(scripted: Scripted):
    with served(scripted) as address:
        yield address


@pytest.fixture
def client(url: str, tmp_path: Path):
    with service(settings(tmp_path, url, max_comparisons=50, max_body_bytes=100_000)) as connected:
        yield connected


def by_the_script(number: int, protocol: str = "alpaca") -> list[float]:
    """P(B is better) in both orders, as the scripted judge says without a server."""
    judge = ScriptedJudge(load_protocol(protocol), BIASED)
    plain = item(number)
    asked = Comparison(
        questions=(plain["instruction"],), answers_a=(plain["output_1"],), answers_b=(plain["output_2"],)
    )
    ab, ba = (asyncio.run(judge.decide(Game(asked, order))).value for order in ("ab", "ba"))
    return [ab, 1 - ba]


def test_a_comparison_is_judged_in_both_orders(client: TestClient, scripted: Scripted):
    answer = judged(client, item())
    (comparison,) = answer["comparisons"]
    ab, ba = comparison["games"]
    assert [ab["order"], ba["order"]] == ["ab", "ba"]
    assert [ab["preference"], ba["preference"]] == pytest.approx(by_the_script(0))
    assert ba["value"] == pytest.approx(1 - ba["preference"])
    assert comparison["preference"] == pytest.approx(sum(by_the_script(0)) / 2)
    assert {ab["label"], ba["label"]} <= {"m", "M"}
    assert answer["rates"] is None
    assert (answer["judge"], answer["protocol"]) == ("scripted", "alpaca")
    assert answer["identity"]["request"]["model"] == "scripted"
    usage = answer["usage"]
    assert (usage["asked"], usage["stored"], usage["failed"], usage["unparsed"]) == (2, 0, 0, 0)
    tokens = usage["prompt_tokens"] + usage["completion_tokens"]
    assert tokens == sum(game["prompt_tokens"] + game["completion_tokens"] for game in comparison["games"]) > 0
    # A unit for a million tokens.
    assert usage["cost"] == pytest.approx(tokens / 1e6)
    assert scripted.asked == 2


def test_what_was_judged_is_not_asked_again(client: TestClient, scripted: Scripted):
    first = judged(client, item(0), item(1))
    again = judged(client, item(1), item(0), item(2))
    assert scripted.asked == 6
    assert [[game["stored"] for game in one["games"]] for one in again["comparisons"]] == [
        [True] * 2,
        [True] * 2,
        [False] * 2,
    ]
    assert again["comparisons"][1]["preference"] == first["comparisons"][0]["preference"]
    assert (again["usage"]["asked"], again["usage"]["stored"]) == (2, 4)
    # What the stored ones cost is told, and not paid.
    assert again["comparisons"][0]["games"][0]["cost"] > 0
    assert again["usage"]["cost"] == pytest.approx(sum(game["cost"] for game in again["comparisons"][2]["games"]))


def test_several_comparisons_have_rates(client: TestClient):
    answer = judged(client, *items(8))
    preferences = [one["preference"] for one in answer["comparisons"]]
    assert preferences == pytest.approx([sum(by_the_script(number)) / 2 for number in range(8)])
    assert answer["rates"]["win_rate"] == pytest.approx(100 * sum(preferences) / 8)
    assert answer["rates"]["n_total"] == 8
    assert answer["rates"]["bias"]["pairs"] == 8


def test_a_game_without_a_verdict_is_told_and_its_comparison_has_no_preference(tmp_path: Path):
    with served(Scripted(Script(garbage_rate=0.5, stubborn=1.0))) as url, service(settings(tmp_path, url)) as client:
        answer = judged(client, *items(10))
    games = [game for one in answer["comparisons"] for game in one["games"]]
    unparsed = [game for game in games if game["label"] is None]
    assert 0 < len(unparsed) == answer["usage"]["unparsed"] < 20
    assert all(game["value"] is game["preference"] is game["error"] is None for game in unparsed)
    for one in answer["comparisons"]:
        has_both = all(game["label"] for game in one["games"])
        assert (one["preference"] is not None) == has_both


def test_a_conversation_is_judged_after_each_turn_and_grades_have_no_preference(client: TestClient):
    talk = {"questions": ["One?", "Two?"], "output_1": ["a", "b"], "output_2": ["c", "d"]}
    (comparison,) = judged(client, talk, protocol="mt_bench")["comparisons"]
    places = [(game["turn"], game["order"]) for game in comparison["games"]]
    assert sorted(places) == [(1, "ab"), (1, "ba"), (2, "ab"), (2, "ba")]
    known = [game["preference"] for game in comparison["games"]]
    assert comparison["preference"] == pytest.approx(sum(known) / 4)
    answer = judged(client, talk, item(), protocol="mt_bench_grade")
    assert [game["order"] for game in answer["comparisons"][1]["games"]] == ["a", "b"]
    assert all(1 <= game["value"] <= 10 for game in answer["comparisons"][0]["games"])
    assert answer["comparisons"][0]["preference"] is answer["rates"] is None


def test_replicates_are_opinions_of_their_own(client: TestClient, scripted: Scripted):
    (comparison,) = judged(client, item(), replicates=3)["comparisons"]
    assert [game["replicate"] for game in comparison["games"]] == [0, 0, 1, 1, 2, 2]
    assert scripted.asked == 6


LONG = "x" * 60
BODIES = [
    (b"{", "not valid JSON"),
    (b"\xff\xfe", "not valid JSON"),
    (b"[" * 50_000, "not valid JSON"),
    (json.dumps({"comparisons": [item(output_1="@")]}).replace("@", "\\ud83d"), "not valid JSON"),
    ([], "the body: "),
    ({}, "comparisons is missing"),
    ({"comparisons": []}, "comparisons: "),
    ({"comparisons": [item()] * 51}, "51 comparisons are more than the 50 of one request"),
    (
        {"comparisons": [item()] * 26, "replicates": 2},
        "26 comparisons, 52 with their turns and replicates, are more than the 50 of one request",
    ),
    (
        {"comparisons": [item(history=[{"role": "user", "content": "x", "nam": "y"}])]},
        r"comparisons\[0\]\.history\[0\] has the unknown key 'nam' \(choose from: content, role\)",
    ),
    ({"comparisons": [item()], "jugde": "x"}, r"the request has the unknown key 'jugde' \(did you mean 'judge'"),
    ({"comparisons": [item()], LONG: 1}, f"the unknown key '{LONG[:40]}'"),
    ({"comparisons": [item(), item(ouput_1="x")]}, r"comparisons\[1\] has the unknown key 'ouput_1' .*'output_1'"),
    ({"comparisons": [item(output_1={"polcy": "p"})]}, r"\[0\]\.output_1 has the unknown key 'polcy' .*'policy'"),
    ({"comparisons": [item(output_2=None)]}, r"comparisons\[0\]\.output_2 is missing"),
    ({"comparisons": [item(output_2=3)]}, r"comparisons\[0\]\.output_2: an output is a text, a list .* \{\"policy\""),
    ({"comparisons": [item(output_2=[3])]}, r"comparisons\[0\]\.output_2\[0\]"),
    ({"comparisons": [item(output_2=[])]}, r"comparisons\[0\]\.output_2"),
    ({"comparisons": [item(output_2=[SECRET, SECRET])]}, r"comparisons\[0\]: 1 questions have 2 texts in 'output_2'"),
    ({"comparisons": [item(instruction=" ")]}, r"comparisons\[0\]\.instruction holds no text"),
    ({"comparisons": [item(instruction=None)]}, r"comparisons\[0\]: it has either 'instruction' or 'questions'"),
    ({"comparisons": [item(questions=["a"])]}, r"comparisons\[0\]: it has either"),
    ({"comparisons": [item(human=2)]}, r"comparisons\[0\]\.human"),
    (json.dumps({"comparisons": [item(human=0.5)]}).replace("0.5", "1e999"), r"comparisons\[0\]\.human"),
    (json.dumps({"comparisons": [item(human=0.5)]}).replace("0.5", "NaN"), r"comparisons\[0\]\.human"),
    ({"comparisons": [item(history=[{"role": SECRET, "content": ""}])]}, r"comparisons\[0\]\.history\[0\]\.role"),
    ({"comparisons": [item()], "replicates": 10**30}, "replicates"),
    ({"comparisons": [item()], "replicates": "2"}, "replicates"),
    ({"comparisons": [item()], "judge": "scriptde"}, r"judge: 'scriptde' is none of this service's .*'scripted'"),
    ({"comparisons": [item()], "protocol": "alpacca"}, r"protocol: 'alpacca' .*'alpaca'"),
    ({"comparisons": [item(output_1={"policy": "sft"})]}, r"\[0\]\.output_1\.policy: 'sft' .*\(there are none\)"),
]  # fmt: skip


@pytest.mark.parametrize("path", ["/judge", "/runs"])
@pytest.mark.parametrize(("body", "says"), BODIES)
def test_a_wrong_request_is_400_with_the_place_and_none_of_its_texts(client, scripted, path, body, says):
    assert re.search(says, refused(client, 400, body, path)["message"])
    assert scripted.asked == 0
    assert client.get("/runs").json() == {"runs": []}


@pytest.mark.parametrize("path", ["/judge", "/runs"])
def test_a_body_beyond_the_limit_is_413_and_one_of_another_type_415(client: TestClient, path: str):
    assert "100000 bytes" in refused(client, 413, {"comparisons": [item(output_1="x" * 100_000)]}, path)["message"]
    # What a page in a browser may send without asking.
    response = client.post(path, content=json.dumps({"comparisons": [item()]}), headers={"Content-Type": "text/plain"})
    assert response.status_code == 415
    assert "application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nix", 404),
        ("POST", "/", 404),
        ("GET", "/judge", 405),
        ("DELETE", "/runs", 405),
        ("PUT", "/runs/x", 405),
        ("PROPFIND", "/runs", 405),
        ("PROPFIND", "/nix", 404),
    ],
)
def test_other_routes_answer_in_openais_form(client: TestClient, method: str, path: str, status: int):
    response = client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_names_are_listed(url: str, tmp_path: Path):
    house = tmp_path / "house.yaml"
    source = Path(sys.modules["posttrain.llm_judge.protocols"].__file__).parents[1] / "templates" / "alpaca.yaml"
    house.write_text(source.read_text().replace("name: alpaca", "name: house"))
    more = {"protocols": {"house": str(house)}, "default_protocol": "house", "policies": {"sft": "http://127.0.0.1:9"}}
    with service(settings(tmp_path, url, **more)) as client:
        assert client.get("/v1/judges").json() == {
            "judges": ["scripted"],
            "default_judge": "scripted",
            "protocols": ["alpaca", "arena_hard", "mt_bench", "mt_bench_grade", "house"],
            "default_protocol": "house",
            "policies": ["sft"],
        }


def test_missing_answers_come_from_a_policy_by_its_name(url: str, scripted: Scripted, tmp_path: Path):
    policy = Policy()
    with (
        served(policy.app) as address,
        service(settings(tmp_path, url, policies={"sft": {"url": address, "max_tokens": 7, "seed": 3}})) as client,
    ):
        talk = {"questions": ["Say moon", "Say sun"], "output_1": ["x", "y"], "output_2": {"policy": "sft"}}
        bad = item(1, instruction=f"Please refuse {SECRET}", output_2={"policy": "sft"})
        answer = judged(client, talk, bad, item(2))
    first, second, third = answer["comparisons"]
    assert first["output_2"] == ["noom", "nus"]
    assert first["output_1"] is None
    assert first["preference"] is not None
    turns = [body for body in policy.bodies if "Say" in body["messages"][0]["content"]]
    assert [message["content"] for message in turns[1]["messages"]] == ["Say moon", "noom", "Say sun"]
    assert (turns[0]["max_tokens"], turns[0]["seed"], turns[0]["model"]) == (7, 3, "policy")
    # One that has no answer is told without a word of the prompt, and the others are judged.
    assert second == {
        **second,
        "games": [],
        "preference": None,
        "error": "policy 'sft' refused to answer this (status 400)",
    }
    assert third["preference"] is not None
    assert SECRET not in json.dumps(answer)
    assert answer["rates"]["n_total"] == 2
    assert scripted.asked == 4


def test_an_answer_that_a_policy_was_cut_in_is_another_game_than_the_whole_one(tmp_path: Path):
    policy, reward = Policy(), Reward()
    rm = {"rm": {"reward": {"url": ""}}}
    with served(policy.app) as policy_url, served(reward.app) as reward_url:
        rm["rm"]["reward"]["url"] = reward_url
        with service(settings(tmp_path, "http://127.0.0.1:9", judges=rm, policies={"p": policy_url})) as client:
            whole = item(instruction="be cut", output_2="tuc")
            judged(client, whole)
            answer = judged(client, whole | {"output_2": {"policy": "p"}})
            assert [game["stored"] for game in answer["comparisons"][0]["games"]] == [False, False]
            again = judged(client, whole | {"cut_2": True})
            assert [game["stored"] for game in again["comparisons"][0]["games"]] == [True, True]


def test_no_address_that_a_client_names_is_called_and_no_path_opened(client: TestClient, tmp_path: Path):
    hits: list[str] = []

    async def canary(scope, receive, send):
        hits.append(scope["path"])

    secret = tmp_path / "template.yaml"
    secret.write_text("name: x")
    opened: list[str] = []
    watching = [True]
    sys.addaudithook(
        lambda event, arguments: opened.append(str(arguments[0])) if watching and event == "open" else None
    )
    secret.read_text()
    assert opened.pop() == str(secret), "the watch works"
    with served(canary) as address:
        for name in (address, f"{address}/v1", str(secret), f"file://{secret}", "../../etc/passwd"):
            message = refused(client, 400, {"comparisons": [item(output_1={"policy": name})]})["message"]
            assert "is none of this service's" in message
            refused(client, 400, {"comparisons": [item()], "judge": name})
            refused(client, 400, {"comparisons": [item()], "protocol": name})
            refused(client, 400, {"comparisons": [item(output_1={"policy": name})]}, "/runs")
            # Where a text is expected, an address is a text.
            fields = {"reference": name, "rubric": name, "category": name, "prompt_id": name}
            judged(client, item(instruction=name, output_1=name, **fields), generator_1=name)
            assert client.get(f"/runs/{name}").status_code == 404
    watching.clear()
    assert hits == []
    assert not [path for path in opened if secret.name in path or "passwd" in path]


def test_a_reward_source_judges_without_a_protocol(tmp_path: Path):
    reward = Reward()
    with served(reward.app) as address:
        judges = {
            "rm": {"reward": {"url": address}, "limits": {"concurrency": 64}},
            "sign": {"reward": {"url": address, "scale": "verifier"}},
            "gone": {"reward": {"url": address, "source": "nix"}},
        }
        with service(settings(tmp_path, address, judges=judges, default_judge="sign")) as client:
            answer = judged(client, item(output_1="four", output_2="five!"), judge="rm")
            # σ(5 − 4) in both orders.
            assert answer["comparisons"][0]["preference"] == pytest.approx(1 / (1 + math.exp(-1)))
            assert answer["protocol"] is None
            assert answer["identity"]["digest"] == "d1"
            assert judged(client, item(output_1="four", output_2="five!"))["comparisons"][0]["preference"] == 1.0
            assert (
                "takes no protocol"
                in refused(client, 400, {"comparisons": [item()], "judge": "rm", "protocol": "alpaca"})["message"]
            )
            # The service need not be started again for another model behind the same name.
            reward.digest = "d2"
            assert judged(client, item(output_1="a", output_2="bb"), judge="rm")["identity"]["digest"] == "d2"
            # Nor told what is a verifier.
            reward.digest = "1"
            assert judged(client, item(output_1="a", output_2="bbb"), judge="rm")["comparisons"][0]["preference"] == 1.0
            wrong = refused(client, 500, {"comparisons": [item()], "judge": "gone"})
            assert wrong["code"] == "judge_refused"
            assert address not in wrong["message"]


def test_a_policy_service_judges_by_the_weights_that_it_has_at_the_time(scripted: Scripted, tmp_path: Path):
    served_now = {"id": "policy@0", "root": "policy", "sha256": "a" * 64}

    async def models(request: Request) -> Response:
        return JSONResponse({"data": [served_now]})

    with served(Starlette(routes=[Route("/v1/models", models), Mount("/", scripted)])) as address:
        chat = {"model": "policy@0", "sha256": "a" * 64, "base_url": address}
        with service(settings(tmp_path, address, judges={"p": {"chat": chat}})) as client:
            first, again = judged(client, item()), judged(client, item())
            assert (first["usage"]["asked"], again["usage"]["asked"]) == (2, 0)
            served_now |= {"id": "policy@7", "sha256": "b" * 64}
            pushed = judged(client, item())
            assert pushed["usage"]["asked"] == 2
            assert [(one["identity"]["request"]["model"], one["identity"]["sha256"][0]) for one in (again, pushed)] == [
                ("policy@0", "a"),
                ("policy@7", "b"),
            ]
            served_now["root"] = served_now["id"] = "other"
            assert refused(client, 500, {"comparisons": [item(1)]})["code"] == "judge_refused"


def test_a_stranger_is_refused_without_a_key_and_everybody_without_the_right_one(url: str, tmp_path: Path):
    app = create_app(settings(tmp_path, url))
    stranger = TestClient(ServiceMiddleware(app, api_key=""), base_url="http://localhost", client=("192.0.2.1", 1))
    assert stranger.post("/judge", json={}).status_code == 403
    assert stranger.get("/runs").json()["error"]["code"] == "loopback_only"
    local = TestClient(ServiceMiddleware(app, api_key="sesame"), base_url="http://localhost", client=("127.0.0.1", 1))
    assert local.post("/judge", json={}).json()["error"]["code"] == "invalid_api_key"
    with service(settings(tmp_path, url), key="sesame") as client:
        assert judged(client, item())["comparisons"][0]["preference"] is not None


def test_a_judges_series_begin_before_its_first_game(client: TestClient):
    judges = client.get("/v1/judges").json()["judges"]
    assert judges
    for judge in judges:
        assert REGISTRY.get_sample_value("posttrain_judge_cost_total", {"judge": judge}) is not None
        ended = {"judge": judge, "state": "cancelled"}
        assert REGISTRY.get_sample_value("posttrain_judge_runs_total", ended) is not None
    assert (
        REGISTRY.get_sample_value("posttrain_judge_requests_total", {"route": "/judge", "outcome": "budget"})
        is not None
    )


def test_metrics_count_games_tokens_and_requests_without_a_text(client: TestClient):
    judged(client, item(instruction=SECRET), item(1))
    judged(client, item(1))
    refused(client, 400, {})
    text = generate_latest().decode()
    assert SECRET not in text
    for line in (
        r'posttrain_judge_games_total\{judge="scripted",outcome="asked"\} [1-9]',
        r'posttrain_judge_games_total\{judge="scripted",outcome="stored"\} [1-9]',
        r'posttrain_judge_tokens_total\{judge="scripted",kind="prompt"\} [1-9]',
        r'posttrain_judge_cost_total\{judge="scripted"\} 0*\.?0*[1-9e]',
        r'posttrain_judge_requests_total\{outcome="ok",route="/judge"\} [1-9]',
        r'posttrain_judge_requests_total\{outcome="refused",route="/judge"\} [1-9]',
        r'posttrain_judge_request_seconds_count\{route="/judge"\} [1-9]',
    ):
        assert re.search(line, text), line


def test_nothing_of_a_request_or_a_key_is_logged_at_the_default_level(url, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with caplog.at_level(logging.INFO), service(settings(tmp_path, url)) as client:
        judged(client, item(instruction=SECRET, output_1=SECRET, output_2=SECRET, reference=SECRET))
        refused(client, 400, {"comparisons": [item(output_1=SECRET, human=SECRET)]})
    assert not [secret for secret in (SECRET, KEY) if secret in caplog.text]

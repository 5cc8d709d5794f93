"""`POST /score` in process: contract 1, refusals with an index, and errors that repeat nothing of the request."""

import asyncio
import json
import re
import threading
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from posttrain.core.asgi import ServiceMiddleware
from posttrain.reward_model.app import create_app
from posttrain.reward_model.scoring import Scoring
from posttrain.reward_model.settings import RewardServiceSettings
from posttrain.reward_model.sources import load_sources

SECRET = "the-text-of-the-item"
FUNCTIONS = """
import threading
started, go = threading.Event(), threading.Event()

def length(prompt, completion, reference):
    return len(completion)

def roles(prompt, completion, reference):
    return float([m["role"] for m in prompt] == ["system", "user"])

def raises(prompt, completion, reference):
    raise ValueError(completion)

def infinite(prompt, completion, reference):
    return 1.0 if completion == "fine" else float("inf")

def text(prompt, completion, reference):
    return completion

def waits(prompt, completion, reference):
    started.set()
    assert go.wait(10)
    return 0.0
"""
NAMES = ("length", "roles", "raises", "infinite", "text", "waits")


@pytest.fixture(scope="module")
def app(reward_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    """The service's application with its middleware, a reward model and functions; at most 50 items and 100 kB."""
    file = tmp_path_factory.mktemp("functions") / "functions.py"
    file.write_text(FUNCTIONS)
    sources = {"rm": str(reward_checkpoint)} | {name: f"{file}:{name}" for name in NAMES}
    settings = RewardServiceSettings(sources=sources, max_items=50, max_waiting_items=60)
    app = create_app()
    app.state.scoring = Scoring(load_sources(settings), settings)
    return app


@pytest.fixture(scope="module")
def client(app) -> TestClient:
    served = ServiceMiddleware(app, api_key="", max_body_bytes=100_000)
    return TestClient(served, base_url="http://localhost", client=("127.0.0.1", 1), raise_server_exceptions=False)


def item(**changes: object) -> dict:
    return {"prompt": "2+2?", "completion": "#### 4", "finish_reason": "stop", "reference": {"gsm8k": "4"}} | changes


def refused(client: TestClient, status: int, body: object) -> str:
    """The message of the error that the request must get."""
    content = body if isinstance(body, bytes | str) else json.dumps(body)
    response = client.post("/score", content=content)
    assert response.status_code == status, response.text
    assert response.headers["X-Posttrain-Contract"] == "1"
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "code"}
    assert SECRET not in response.text
    return response.json()["error"]["message"]


def test_scores_come_in_the_order_of_the_items_with_every_sources_digest(client: TestClient, app):
    items = [item(completion=f"#### {n}") for n in (3, 4, 5)]
    answer = client.post("/score", json={"sources": ["length", "gsm8k", "rm"], "items": items}).json()
    assert [list(scores) for scores in answer["scores"]] == [["length", "gsm8k", "rm"]] * 3
    assert [scores["gsm8k"] for scores in answer["scores"]] == [0.2, 1.2, 0.2]
    assert [scores["length"] for scores in answer["scores"]] == [6.0] * 3
    model = app.state.scoring.sources["rm"].model
    expected = model.score([model.encode("2+2?", f"#### {n}", True) for n in (3, 4, 5)])
    assert [scores["rm"] for scores in answer["scores"]] == pytest.approx(expected, abs=1e-4)
    listed = client.get("/v1/sources").json()["sources"]
    assert answer["sources"] == {name: listed[name] for name in ("length", "gsm8k", "rm")}
    assert listed["gsm8k"] == "1"


def test_a_function_gets_messages_as_they_were_sent(client: TestClient):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    answer = client.post("/score", json={"sources": ["roles"], "items": [item(prompt=messages)]}).json()
    assert answer["scores"] == [{"roles": 1.0}]


def test_finish_reason_decides_whether_the_reward_model_sees_an_end(client: TestClient):
    items = [item(), item(finish_reason="length")]
    stop, length = client.post("/score", json={"sources": ["rm"], "items": items}).json()["scores"]
    assert abs(stop["rm"] - length["rm"]) > 1e-3


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 50_000, "not valid JSON"),
        ([], "the body"),
        ({"sources": ["gsm8k"]}, "items: field required"),
        ({"sources": [], "items": [item()]}, "sources: "),
        ({"sources": ["gsm8k"], "items": []}, "items: "),
        ({"sources": ["gsm8k"], "items": [item()], SECRET: 1}, "the request has an unknown key"),
        ({"sources": ["gsm8k"], "items": [item(), item() | {SECRET: 1}]}, r"items\[1\] has an unknown key"),
        ({"sources": ["gsm8k"], "items": [item(), item(finish_reason=SECRET)]}, r"items\[1\]\.finish_reason"),
        ({"sources": ["gsm8k"], "items": [item(), item(completion=[SECRET])]}, r"items\[1\]\.completion"),
        ({"sources": ["gsm8k"], "items": [item(prompt=[{"role": SECRET, "content": ""}])]}, r"items\[0\]\.prompt"),
        ({"sources": ["gsm8k", "gsm9k"], "items": [item()]}, r"sources\[1\] .*did you mean 'gsm8k'"),
        ({"sources": ["gsm8k"], "items": [item(), item(reference=SECRET)]}, r"items\[1\], source 'gsm8k'"),
        ({"sources": ["verifier"], "items": [item(reference={SECRET: 1})]}, r"items\[0\], source 'verifier'"),
        ({"sources": ["rm"], "items": [item(), item(completion=SECRET * 20)]}, r"items\[1\], source 'rm': it has"),
        ({"sources": ["rm"], "items": [item(prompt=[])]}, r"items\[0\], source 'rm'"),
        ({"sources": ["gsm8k"], "items": [item()] * 51}, "51 items are more than the 50"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_400_with_the_place_and_none_of_its_text(client: TestClient, body: object, says: str):
    assert re.search(says, refused(client, 400, body))


def test_nothing_is_scored_when_a_later_item_is_refused(client: TestClient, app, monkeypatch: pytest.MonkeyPatch):
    scored = []
    source = app.state.scoring.sources["length"]
    monkeypatch.setattr(source, "submit", lambda prepared: scored.append(prepared))
    refused(client, 400, {"sources": ["length", "gsm8k"], "items": [item(), item(reference=None)]})
    assert scored == []


def test_a_body_beyond_the_limit_is_413(client: TestClient):
    assert "100000 bytes" in refused(client, 413, {"sources": ["length"], "items": [item(completion="x" * 100_000)]})


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raises", "'raises' failed on items[1]: it raised ValueError"),
        ("infinite", "'infinite' failed on items[1]: it returned inf"),
        ("text", "'text' failed on items[0]: it returned a str"),
    ],
)
def test_a_function_that_fails_is_named_with_the_item(client: TestClient, source: str, says: str):
    items = [item(completion="fine"), item(completion=SECRET)]
    if source == "raises":
        says = says.replace("items[1]", "items[0]")
    assert says in refused(client, 500, {"sources": [source], "items": items})
    assert client.post("/score", json={"sources": ["length"], "items": items}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nix", 404), ("POST", "/", 404), ("GET", "/score", 405)]
)
def test_unknown_routes_answer_in_openais_form(client: TestClient, method: str, path: str, status: int):
    response = client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_an_unexpected_failure_is_500_in_openais_form(client: TestClient, app, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app.state.scoring.sources["length"], "submit", lambda prepared: 1 / 0)
    assert "its log has the traceback" in refused(client, 500, {"sources": ["length"], "items": [item()]})


def test_a_stranger_is_refused_without_a_key(app):
    stranger = TestClient(ServiceMiddleware(app, api_key=""), base_url="http://localhost", client=("192.0.2.1", 1))
    assert stranger.post("/score", json={}).status_code == 403


def test_a_slow_function_blocks_neither_the_loop_nor_other_sources_and_too_much_waiting_is_503(app):
    module = app.state.scoring.sources["waits"].verifier.score.__globals__
    started: threading.Event = module["started"]

    async def scenario() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            slow = asyncio.create_task(http.post("/score", json={"sources": ["waits"], "items": [item()] * 30}))
            while not started.is_set():
                await asyncio.sleep(0.01)
            quick = await http.post("/score", json={"sources": ["rm", "length"], "items": [item()]})
            assert quick.status_code == 200
            too_much = await http.post("/score", json={"sources": ["length"], "items": [item()] * 31})
            assert too_much.status_code == 503
            assert too_much.json()["error"]["code"] == "overloaded"
            module["go"].set()
            assert (await slow).status_code == 200
            again = await http.post("/score", json={"sources": ["length"], "items": [item()] * 31})
            assert again.status_code == 200

    asyncio.run(scenario())


def test_concurrent_requests_to_a_reward_model_share_batches_and_keep_their_scores(app, monkeypatch):
    source = app.state.scoring.sources["rm"]
    alone = {n: source.model.score([source.model.encode("2+2?", f"#### {n}", True)])[0] for n in range(20)}
    sizes = []
    forward = source.model._forward

    def counted(batch):
        sizes.append(len(batch))
        return forward(batch)

    monkeypatch.setattr(source.model, "_forward", counted)

    async def scenario() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            bodies = [{"sources": ["rm"], "items": [item(completion=f"#### {n}")]} for n in range(20)]
            return await asyncio.gather(*(http.post("/score", json=body) for body in bodies))

    for n, response in enumerate(asyncio.run(scenario())):
        assert response.json()["scores"] == [{"rm": pytest.approx(alone[n], abs=1e-4)}]
    assert sum(sizes) == 20

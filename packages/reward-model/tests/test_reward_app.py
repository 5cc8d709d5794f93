"""`POST /score` in process: contract 1, refusals with an index, and errors that repeat nothing of the request."""

import asyncio
import json
import re
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from starlette.testclient import TestClient

from posttrain.core.asgi import ResponseTimeout, ServiceMiddleware
from posttrain.reward_model.app import create_app
from posttrain.reward_model.functions import FunctionLimits
from posttrain.reward_model.scoring import Scoring
from posttrain.reward_model.settings import RewardServiceSettings
from posttrain.reward_model.sources import load_sources
from posttrain.reward_model.telemetry import SCORES, Distribution, telemetry

SECRET = "the-text-of-the-item"
FUNCTIONS = """
import os, time
from pathlib import Path
started, go = Path(__file__).parent / "started", Path(__file__).parent / "go"

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
    started.touch()
    while not go.exists():
        time.sleep(0.01)
    return 0.0

def crashes(prompt, completion, reference):
    os._exit(3) if completion == "crash" else None
    return 1.0

def hangs(prompt, completion, reference):
    time.sleep(60 if completion == "hang" else 0)
    return 1.0
"""
NAMES = ("length", "roles", "raises", "infinite", "text", "waits", "crashes", "hangs")


@pytest.fixture(scope="module")
def app(reward_checkpoint: Path, make_reward_model, tmp_path_factory: pytest.TempPathFactory):
    """The service's application with its middleware, a reward model and functions; at most 50 items and 100 kB."""
    file = tmp_path_factory.mktemp("functions") / "functions.py"
    file.write_text(FUNCTIONS)
    other = make_reward_model(file.parent / "other", initializer_range=0.2)
    models = {"rm": str(reward_checkpoint), "other": str(other)}
    settings = RewardServiceSettings(
        sources=models | {name: f"{file}:{name}" for name in NAMES},
        ensembles={"both": ["rm", "other"]},
        max_items=50,
        max_waiting_items=60,
        function_seconds=1.0,
        function_processes=1,
    )
    app = create_app()
    app.state.scoring = Scoring(load_sources(settings), settings)
    app.state.folder = file.parent
    yield app
    app.state.scoring.close()


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
    monkeypatch.setattr(source, "submit", lambda prepared, until: scored.append(prepared))
    refused(client, 400, {"sources": ["length", "gsm8k"], "items": [item(), item(reference=None)]})
    assert scored == []


def test_a_body_beyond_the_limit_is_413(client: TestClient):
    assert "100000 bytes" in refused(client, 413, {"sources": ["length"], "items": [item(completion="x" * 100_000)]})


@pytest.mark.parametrize(
    ("source", "completion", "says"),
    [
        ("raises", SECRET, r"it raised ValueError at functions\.py:\d+"),
        ("infinite", SECRET, "it returned inf, which is not finite"),
        ("text", SECRET, "it returned a str, not a number"),
        ("crashes", "crash", r"it ended its process \(exit status 3\)"),
        ("hangs", "hang", "it took more than 1 s and was ended"),
    ],
)
def test_an_item_that_a_function_fails_on_costs_that_item_its_score(
    client: TestClient, source: str, completion: str, says: str, caplog: pytest.LogCaptureFixture
):
    items = [item(completion="fine"), item(completion=completion), item(completion="fine")]
    response = client.post("/score", json={"sources": ["gsm8k", source], "items": items})
    assert response.status_code == 200
    answer = response.json()
    assert [scores["gsm8k"] for scores in answer["scores"]] == [0.0] * 3
    assert answer["scores"][1][source] is None
    failed = {error["index"]: error for error in answer["errors"]}
    assert failed[1]["source"] == source
    assert re.fullmatch(says, failed[1]["message"])
    good = [scores[source] for index, scores in enumerate(answer["scores"]) if index not in failed]
    assert good == ([] if source in ("raises", "text") else [1.0, 1.0])
    assert SECRET not in response.text + caplog.text
    assert "errors" not in client.post("/score", json={"sources": ["length"], "items": items}).json()


def test_an_ensemble_is_the_mean_the_least_and_the_disagreement_of_its_models(client: TestClient, app):
    names = ["both.mean", "both.min", "both.std", "rm", "other"]
    items = [item(completion=f"#### {n}") for n in range(5)]
    answer = client.post("/score", json={"sources": names, "items": items}).json()
    assert max(abs(scores["rm"] - scores["other"]) for scores in answer["scores"]) > 0.1
    for scores in answer["scores"]:
        a, b = scores["rm"], scores["other"]
        expected = {"both.mean": (a + b) / 2, "both.min": min(a, b), "both.std": abs(a - b) / 2, "rm": a, "other": b}
        assert scores == {name: pytest.approx(expected[name], abs=1e-12) for name in names}
    assert answer["sources"] == {name: client.get("/v1/sources").json()["sources"][name] for name in names}
    assert len(set(answer["sources"].values())) == 5


def test_members_of_an_ensemble_are_scored_once_and_not_told_unless_asked(client: TestClient, app, monkeypatch):
    calls = []
    for name in ("rm", "other"):
        queue = app.state.scoring.sources[name].model.queue
        monkeypatch.setattr(queue, "_forward", lambda batch, forward=queue._forward: calls.append(1) or forward(batch))
    answer = client.post("/score", json={"sources": ["both.mean", "both.std"], "items": [item()]}).json()
    assert list(answer["scores"][0]) == list(answer["sources"]) == ["both.mean", "both.std"]
    assert len(calls) == 2


def test_no_path_that_a_client_names_is_opened(client: TestClient, app, tmp_path: Path):
    secret = tmp_path / "functions.py"
    secret.write_text("raise SystemExit")
    opened: list[str] = []
    watching = [True]
    sys.addaudithook(
        lambda event, arguments: opened.append(str(arguments[0])) if watching and event == "open" else None
    )
    secret.read_text()
    assert opened.pop() == str(secret), "the watch works"
    names = [str(secret), f"{secret}:f", f"file://{secret}", "../../etc/passwd", str(app.state.folder / "other")]
    for name in names:
        refused(client, 400, {"sources": [name], "items": [item()]})
        body = {"sources": ["rm", "gsm8k"], "items": [item(prompt=name, completion=name, reference={"gsm8k": name})]}
        assert client.post("/score", json=body).status_code in (200, 400)
    watching.clear()
    assert not [path for path in opened if any(name in path for name in (*names, secret.name))]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nix", 404), ("POST", "/", 404), ("GET", "/score", 405)]
)
def test_unknown_routes_answer_in_openais_form(client: TestClient, method: str, path: str, status: int):
    response = client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_an_unexpected_failure_is_500_and_the_log_says_where_but_not_what(
    client: TestClient, app, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fails(prepared, until):
        raise ValueError(prepared)

    monkeypatch.setattr(app.state.scoring.sources["length"], "submit", fails)
    body = {"sources": ["length"], "items": [item(completion=SECRET)]}
    assert "its log says where" in refused(client, 500, body)
    assert "ValueError" in caplog.text
    assert "in fails" in caplog.text
    assert SECRET not in caplog.text


def test_a_stranger_is_refused_without_a_key(app):
    stranger = TestClient(ServiceMiddleware(app, api_key=""), base_url="http://localhost", client=("192.0.2.1", 1))
    assert stranger.post("/score", json={}).status_code == 403


def test_a_slow_function_blocks_neither_the_loop_nor_other_sources_and_too_much_waiting_is_503(app, monkeypatch):
    monkeypatch.setattr(app.state.scoring.sources["waits"]._pool, "limits", FunctionLimits(seconds=30, processes=1))

    async def scenario() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            slow = asyncio.create_task(http.post("/score", json={"sources": ["waits"], "items": [item()] * 30}))
            while not (app.state.folder / "started").exists():
                await asyncio.sleep(0.01)
            quick = await http.post("/score", json={"sources": ["rm", "length"], "items": [item()]})
            assert quick.status_code == 200
            too_much = await http.post("/score", json={"sources": ["length"], "items": [item()] * 31})
            assert too_much.status_code == 503
            assert too_much.headers["Retry-After"] == "1"
            assert too_much.json()["error"]["code"] == "overloaded"
            (app.state.folder / "go").touch()
            assert (await slow).status_code == 200
            again = await http.post("/score", json={"sources": ["length"], "items": [item()] * 31})
            assert again.status_code == 200

    asyncio.run(scenario())


def test_concurrent_requests_to_a_reward_model_keep_their_scores_and_are_scored_once(app, monkeypatch):
    source = app.state.scoring.sources["rm"]
    alone = {n: source.model.score([source.model.encode("2+2?", f"#### {n}", True)])[0] for n in range(20)}
    sizes = []
    forward = source.model.queue._forward

    def counted(batch):
        sizes.append(len(batch))
        return forward(batch)

    monkeypatch.setattr(source.model.queue, "_forward", counted)

    async def scenario() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            bodies = [{"sources": ["rm"], "items": [item(completion=f"#### {n}")]} for n in range(20)]
            return await asyncio.gather(*(http.post("/score", json=body) for body in bodies))

    for n, response in enumerate(asyncio.run(scenario())):
        assert response.json()["scores"] == [{"rm": pytest.approx(alone[n], abs=1e-4)}]
    assert sum(sizes) == 20


def test_a_client_that_goes_away_takes_its_work_with_it(app, monkeypatch):
    source, seen = app.state.scoring.sources["rm"], threading.Event()
    forward, batches = source.model.queue._forward, []
    monkeypatch.setattr(source.model.queue, "batch_tokens", 1)

    def slow(batch):
        batches.append(batch)
        seen.set()
        time.sleep(0.05)
        return forward(batch)

    monkeypatch.setattr(source.model.queue, "_forward", slow)
    body = json.dumps({"sources": ["rm"], "items": [item()] * 50}).encode()

    async def scenario() -> int:
        events = [{"type": "http.request", "body": body, "more_body": False}]
        sent = []

        async def receive():
            if events:
                return events.pop()
            await asyncio.to_thread(seen.wait, 10)
            return {"type": "http.disconnect"}

        async def send(event):
            sent.append(event)

        scope = {"type": "http", "method": "POST", "path": "/score", "headers": [], "query_string": b""}
        await app(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(scenario()) == 499
    assert app.state.scoring.waiting_items == 0
    source.model.score([[5, 2]])
    assert len(batches) < 10


def test_an_answer_that_takes_too_long_is_504_and_its_work_ends(app, monkeypatch):
    source = app.state.scoring.sources["rm"]
    monkeypatch.setattr(source.model.queue, "batch_tokens", 1)
    forward, batches = source.model.queue._forward, []

    def slow(batch):
        batches.append(batch)
        time.sleep(0.05)
        return forward(batch)

    monkeypatch.setattr(source.model.queue, "_forward", slow)

    async def scenario() -> httpx.Response:
        transport = httpx.ASGITransport(ResponseTimeout(app, 0.2))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.post("/score", json={"sources": ["rm"], "items": [item()] * 50})

    response = asyncio.run(scenario())
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    source.model.score([[5, 2]])
    assert len(batches) < 20


def test_items_that_a_function_is_not_asked_for_in_time_are_failed_items_not_a_lost_request(app, monkeypatch):
    settings = app.state.scoring.settings.model_copy(update={"deadline_seconds": 2.5})
    monkeypatch.setattr(app.state.scoring, "settings", settings)
    items = [item(completion="hang")] * 20
    answer = asyncio.run(app.state.scoring.score(json.dumps({"sources": ["hangs"], "items": items}).encode()))
    messages = [error.message for error in answer.errors]
    assert len(messages) == 20
    assert messages[0] == "it took more than 1 s and was ended"
    assert messages[-1] == "it was not reached before the request's deadline"


def test_many_values_at_once_are_the_histogram_of_each_value_alone():
    values = [-11.0, -10.0, -0.3, 0.0, 0.1, 0.125, 0.2, 1.0, 1.2, 9.0, 10.0, 10.5, 0.2]
    registries = CollectorRegistry(), CollectorRegistry()
    together, alone = (Distribution("score", "Scores.", buckets=SCORES, registry=registry) for registry in registries)
    together.observe_all(values)
    for value in values:
        alone.observe(value)
    samples = [
        [(one.name, one.labels, one.value) for metric in registry.collect() for one in metric.samples
         if not one.name.endswith("_created")]
        for registry in registries
    ]  # fmt: skip
    assert samples[0] == samples[1]


def test_metrics_tell_how_the_scores_of_each_source_are_distributed(client: TestClient):
    def counted(bound: str) -> float:
        found = REGISTRY.get_sample_value("posttrain_reward_score_bucket", {"source": "gsm8k", "le": bound})
        return found or 0.0

    before = {bound: counted(bound) for bound in ("0.1", "0.2", "1.0", "1.2", "+Inf")}
    # Right and well formed 1.2, wrong and well formed 0.2, neither 0.
    items = [item(completion=text) for text in ("#### 4", "#### 5", "#### 5", "five")]
    client.post("/score", json={"sources": ["gsm8k"], "items": items})
    risen = {bound: counted(bound) - count for bound, count in before.items()}
    assert risen == {"0.1": 1, "0.2": 3, "1.0": 3, "1.2": 4, "+Inf": 4}
    mean = REGISTRY.get_sample_value("posttrain_reward_request_mean_score", {"source": "gsm8k"})
    assert mean == pytest.approx((1.2 + 0.2 + 0.2 + 0) / 4)


def test_an_item_that_a_source_failed_on_is_no_score(client: TestClient):
    items = [item(completion="fine"), item(completion="infinite")]
    client.post("/score", json={"sources": ["infinite"], "items": items})
    assert REGISTRY.get_sample_value("posttrain_reward_request_mean_score", {"source": "infinite"}) == 1.0


def test_a_source_has_its_series_before_it_is_asked():
    telemetry().expect(["never-asked"])
    for name in ("items_total", "failed_items_total", "score_count"):
        assert REGISTRY.get_sample_value(f"posttrain_reward_{name}", {"source": "never-asked"}) == 0
    assert REGISTRY.get_sample_value("posttrain_reward_requests_total", {"outcome": "overloaded"}) is not None


def test_metrics_count_items_failures_batches_and_waits_without_a_text(client: TestClient, app):
    items = [item(completion=SECRET), item(completion="fine")]
    client.post("/score", json={"sources": ["rm", "infinite"], "items": items})
    text = generate_latest().decode()
    assert SECRET not in text
    for line in (
        r'posttrain_reward_items_total\{source="infinite"\} [1-9]',
        r'posttrain_reward_failed_items_total\{source="infinite"\} [1-9]',
        r'posttrain_reward_requests_total\{outcome="ok"\} [1-9]',
        r"posttrain_reward_request_seconds_count [1-9]",
    ):
        assert re.search(line, text), line

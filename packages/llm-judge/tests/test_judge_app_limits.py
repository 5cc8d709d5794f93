"""The judge service when a judge fails, money or time runs out, clients leave or too many come: nothing is lost or
repeated."""

import asyncio
import json
import logging
import sys
import threading
from pathlib import Path

import httpx
import pytest
from tenacity import wait_none

from posttrain.core.asgi import ServiceMiddleware
from posttrain.core.errors import StorageError
from posttrain.llm_judge.judges import completions
from posttrain.llm_judge.judges.scripted_server import Faults
from posttrain.llm_judge.running import asking
from posttrain.llm_judge.serving.app import create_app
from posttrain.llm_judge.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from judge_service import KEY, SECRET, Scripted, item, items, judged, refused, served, service, settings, wait


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(completions, "_BACK_OFF", wait_none())
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def scripted():
    return Scripted()


@pytest.fixture
def url(scripted: Scripted):
    with served(scripted) as address:
        yield address


@pytest.fixture
def client(url: str, tmp_path: Path):
    with service(settings(tmp_path, url)) as connected:
        yield connected


def test_a_judge_that_answers_not_one_of_a_few_games_is_503(url, scripted, tmp_path):
    with service(settings(tmp_path, url)) as client:
        scripted.refusal = 500
        error = refused(client, 503, {"comparisons": items(2)})
        assert error["code"] == "judge_unavailable"
        assert "'scripted' gave no answer (status 500) to any of 4 games" in error["message"]


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (401, "judge_refused", "status 401"),
        (404, "judge_refused", "status 404"),
        (500, "judge_unavailable", "status 500"),
    ],
)
def test_a_judge_that_cannot_be_had_is_told_without_key_address_or_text(
    url, scripted, tmp_path, monkeypatch, caplog, status, code, says
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    scripted.refusal = status
    body = {"comparisons": [item(number, output_1=f"{SECRET} {number}") for number in range(8)]}
    with caplog.at_level(logging.INFO), service(settings(tmp_path, url)) as client:
        error = refused(client, 503 if status == 500 else 500, body)
        assert (error["code"], says in error["message"]) == (code, True)
        assert url not in error["message"]
        # Healed, it goes on.
        scripted.refusal = None
        assert judged(client, item())["comparisons"][0]["preference"] is not None
    assert says in caplog.text
    assert not [secret for secret in (SECRET, KEY) if secret in caplog.text]


def test_a_game_that_is_refused_alone_is_told_alone(url, scripted, tmp_path, caplog):
    scripted.refusal = 400
    with caplog.at_level(logging.INFO), service(settings(tmp_path, url)) as client:
        answer = judged(client, item(output_1=SECRET))
        assert [game["error"] for game in answer["comparisons"][0]["games"]] == [
            "judge 'scripted' refused to answer this (status 400)"
        ] * 2
        assert answer["usage"]["failed"] == 2
    assert SECRET not in caplog.text + json.dumps(answer)


def test_a_judge_that_is_away_is_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("posttrain.llm_judge.serving.judges.PATIENCE", 0.1)
    judges = {"rm": {"reward": {"url": "http://127.0.0.1:9"}}}
    with service(settings(tmp_path, "", judges=judges)) as client:
        response = client.post("/judge", json={"comparisons": [item()]})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "judge_unavailable")
        assert response.headers["Retry-After"] == "1"
        assert refused(client, 503, {"comparisons": [item()]}, "/runs")["code"] == "judge_unavailable"


def test_a_reward_service_that_does_not_answer_holds_up_nobody_else_and_is_asked_once_for_all(tmp_path: Path):
    asked: list[str] = []
    until = threading.Event()

    async def hangs(scope, receive, send):
        asked.append(scope["path"])
        while not until.is_set():
            await asyncio.sleep(0.01)

    with served(Scripted()) as url, served(hangs) as away:
        judges = {"rm": {"reward": {"url": away}}, "scripted": settings(tmp_path, url).judges["scripted"].model_dump()}
        app = create_app(settings(tmp_path, url, judges=judges))

        async def scenario(address: str) -> None:
            async with httpx.AsyncClient(base_url=address, timeout=10) as http:
                body = {"comparisons": items(2), "judge": "rm"}
                waiting = [asyncio.create_task(http.post("/judge", json=body)) for _ in range(40)]
                while app.state.judging.waiting < 80:
                    await asyncio.sleep(0.01)
                response = await http.post("/judge", json={"comparisons": items(2), "judge": "scripted"})
                assert response.status_code == 200
                for one in waiting:
                    one.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)

        with served(ServiceMiddleware(app, api_key=""), "on") as address:
            asyncio.run(scenario(address))
            assert asked == ["/v1/sources"]
            until.set()


def test_a_store_that_cannot_be_written_is_507_with_the_reason_and_the_service_lives_on(client, monkeypatch):
    async def full(*_, **__):
        raise StorageError("no space left to write store.db; free some and start again")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "aput", full)
        error = refused(client, 507, {"comparisons": [item()]})
    assert (error["code"], error["message"].partition(";")[0]) == ("no_space", "no space left to write store.db")
    assert client.post("/judge", json={"comparisons": [item()]}).status_code == 200


def test_an_unforeseen_failure_is_500_and_the_log_says_where_but_not_what(client, monkeypatch, caplog):
    def fails(*_):
        raise ValueError(SECRET)

    monkeypatch.setattr("posttrain.llm_judge.serving.judging.comparison_answer", fails)
    error = refused(client, 500, {"comparisons": [item(output_1=SECRET)]})
    assert error["code"] == "internal_error"
    assert "ValueError" in caplog.text
    assert "in fails" in caplog.text
    assert SECRET not in caplog.text


def test_money_that_is_spent_is_402_and_what_was_judged_is_kept(url: str, scripted: Scripted, tmp_path: Path):
    plain = settings(tmp_path, url)
    judges = {"scripted": plain.judges["scripted"].model_dump() | {"limits": {"max_cost": 0.005, "concurrency": 1}}}
    with service(settings(tmp_path, url, judges=judges)) as client:
        error = refused(client, 402, {"comparisons": items(40)})
        assert error["code"] == "budget_spent"
        asked = scripted.asked
        assert 0 < asked < 80
        # The same money for all requests.
        refused(client, 402, {"comparisons": [item(99)]})
        assert scripted.asked == asked
        assert judged(client, item(0))["usage"]["stored"] == 2


@pytest.fixture
def slow(tmp_path: Path):
    """A judge that takes a tenth of a second, and settings for two requests to it at once."""
    scripted = Scripted(faults=Faults(latency=0.1))
    with served(scripted) as url:
        judge = settings(tmp_path, url).judges["scripted"].model_dump() | {"limits": {"concurrency": 2}}
        yield scripted, lambda **more: settings(tmp_path, url, judges={"scripted": judge}, **more)


def test_an_answer_that_takes_too_long_is_504_and_what_was_judged_is_kept(scripted, url, tmp_path, monkeypatch):
    # What is left waiting does not arrive.
    monkeypatch.setattr(asking, "GRACE", 0.2)
    scripted.last = 6
    with service(settings(tmp_path, url, deadline_seconds=1.5)) as client:
        error = refused(client, 504, {"comparisons": items(20)})
        assert error["code"] == "deadline_exceeded"
        wait(lambda: client.app.app.state.judging.waiting == 0, "it has ended")
    assert scripted.answered == 6
    scripted.last = None
    with service(settings(tmp_path, url)) as client:
        assert judged(client, *items(20))["usage"]["stored"] == 6
    assert scripted.answered == 40


def test_a_client_that_goes_away_has_what_was_in_flight_kept(slow):
    scripted, options = slow
    app = create_app(options())
    with served(ServiceMiddleware(app, api_key=""), "on") as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/judge", json={"comparisons": items(30)}, timeout=1.0)
        wait(lambda: app.state.judging.waiting == 0, "it has ended")
        asked = scripted.asked
        assert 0 < asked < 60
        again = httpx.post(f"{url}/judge", json={"comparisons": items(30)}, timeout=60).json()
    assert again["usage"]["stored"] == asked
    assert scripted.asked == 60


def test_too_much_at_once_is_503_and_limits_are_of_all_requests_together(slow):
    scripted, options = slow
    app = create_app(options(max_waiting_comparisons=12))

    async def scenario(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            first = asyncio.create_task(http.post("/judge", json={"comparisons": items(10)}))
            while app.state.judging.waiting != 10:
                await asyncio.sleep(0.01)
            too_much = await http.post("/judge", json={"comparisons": items(3)})
            assert (too_much.status_code, too_much.headers["Retry-After"]) == (503, "1")
            assert too_much.json()["error"]["code"] == "overloaded"
            second = asyncio.create_task(http.post("/judge", json={"comparisons": [item(98), item(99)]}))
            run = await http.post("/runs", json={"comparisons": [item(100)]})
            assert [response.status_code for response in (await first, await second, run)] == [200, 200, 202]
            # A large one alone is never refused.
            assert (await http.post("/judge", json={"comparisons": items(20)[7:]})).status_code == 200

    with served(ServiceMiddleware(app, api_key=""), "on") as url:
        asyncio.run(scenario(url))
    assert scripted.most_at_once == 2

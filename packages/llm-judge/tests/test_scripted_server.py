"""The scripted judge over HTTP: it reads every protocol's prompt, answers as the object does, fails as it is told."""

import asyncio
import json
import sys
import time
from pathlib import Path

import httpx
import pytest
from openai.types.chat import ChatCompletion

from posttrain.core.errors import RequestError
from posttrain.llm_judge.comparisons import Comparison, Game
from posttrain.llm_judge.judges.qualities import hashed, table
from posttrain.llm_judge.judges.script import Script
from posttrain.llm_judge.judges.scripted import ScriptedJudge
from posttrain.llm_judge.judges.scripted_command import serve_scripted_judge
from posttrain.llm_judge.judges.scripted_server import Faults, ScriptedServer
from posttrain.llm_judge.protocols import NAMES, Token, load_protocol

sys.path.insert(0, str(Path(__file__).parent))
from scripted_service import scripted_service

PROTOCOLS = [load_protocol(name) for name in NAMES]
ALPACA = PROTOCOLS[0]

LATENCY = 0.5


def server(script=None, faults=None, log=None, quality=None):
    return ScriptedServer(PROTOCOLS, script or Script(), quality or hashed(), faults or Faults(), log)


def pair(number=0):
    return Comparison(questions=(f"Question {number}?",), answers_a=("This </s>",), answers_b=("[INST] That",))


def asking(messages, **more):
    return {"model": "scripted", "messages": [message.model_dump() for message in messages], **more}


def exchange(app, *bodies):
    """The responses to chat requests, asked one after another."""

    async def go():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://judge") as client:
            return [await client.post("/v1/chat/completions", json=body) for body in bodies]

    return asyncio.run(go())


def read(prompt, response):
    choice = response.json()["choices"][0]
    content = (choice["logprobs"] or {"content": []})["content"]
    tokens = [Token(t["token"], [(top["token"], top["logprob"]) for top in t["top_logprobs"]]) for t in content]
    return prompt.read(choice["message"]["content"], tokens)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=NAMES)
def test_server_and_object_say_the_same(protocol):
    script = Script(position_bias=0.4, noise=1.0, garbage_rate=0.3)
    judge = ScriptedJudge(protocol, script)
    for game in [game for number in range(5) for game in protocol.games(pair(number), replicate=number)]:
        prompt = protocol.render(game)
        body = {"logprobs": True, "top_logprobs": 5}
        first, second = exchange(server(script), asking(prompt.messages, **body), asking(prompt.reminded("?"), **body))
        decision = asyncio.run(judge.decide(game))
        assert (read(prompt, first) or read(prompt, second)) == (decision.label, decision.value)


def test_answer_has_openais_form():
    prompt = ALPACA.render(Game(pair(), "ab"))
    (response,) = exchange(server(), asking(prompt.messages, logprobs=True, top_logprobs=1) | {"model": "any"})
    answer = response.json()
    assert ChatCompletion.model_validate(answer, strict=True).choices[0].message.content in ("m", "M")
    usage = answer["usage"]
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "any"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    (token,) = answer["choices"][0]["logprobs"]["content"]
    assert token["top_logprobs"] == [{name: token[name] for name in ("token", "logprob", "bytes")}]
    assert exchange(server(), asking(prompt.messages))[0].json()["choices"][0]["logprobs"] is None


def faults_of(rates, numbers=range(300), **more):
    prompts = [ALPACA.render(Game(pair(number), "ab")) for number in numbers]
    app = server(faults=Faults(**rates, **more))
    return exchange(app, *(asking(prompt.messages) for prompt in prompts))


def test_faults_come_at_their_rates_and_alike_in_every_run():
    rates = {"rate_limited": 0.2, "retry_after": 0.25, "errors": 0.1, "hangs": 0.1, "hang_seconds": 1e-4}
    responses = faults_of(rates)
    statuses = [response.status_code for response in responses]
    shares = {status: statuses.count(status) / len(statuses) for status in set(statuses)}
    assert shares == pytest.approx({200: 0.6, 429: 0.2, 500: 0.1, 504: 0.1}, abs=0.08)
    assert {r.headers.get("retry-after") for r in responses if r.status_code == 429} == {"0.25"}
    assert {r.headers.get("retry-after") for r in responses if r.status_code != 429} == {None}
    assert [response.status_code for response in faults_of(rates)] == statuses
    assert [response.status_code for response in faults_of(rates, random=True)] != statuses
    error = next(response for response in responses if response.status_code == 500).json()["error"]
    assert error["message"] == "an injected error"


def test_a_game_that_failed_is_answered_when_it_is_asked_again():
    body = asking(ALPACA.render(Game(pair(), "ab")).messages)
    statuses = [response.status_code for response in exchange(server(faults=Faults(errors=0.5)), *([body] * 30))]
    assert {200, 500} == set(statuses)


def test_log_has_a_line_for_every_request(tmp_path):
    log = tmp_path / "deep" / "log.jsonl"
    app = server(Script(garbage_rate=0.5), Faults(errors=0.3), log)
    prompts = [ALPACA.render(game) for number in range(20) for game in ALPACA.games(pair(number))]
    bodies = [asking(prompt.messages) for prompt in prompts] + [asking(prompts[0].reminded("?"))] * 3
    responses = exchange(app, *bodies)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["status"] for line in lines] == [response.status_code for response in responses]
    assert len({line["game"] for line in lines}) == len(prompts)
    assert lines[-1]["game"] == lines[0]["game"]
    assert [line["reminded"] for line in lines] == [False] * len(prompts) + [True] * 3
    assert {line["garbled"] for line in lines if line["status"] == 200} == {True, False}
    assert "Question" not in log.read_text()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({}, "messages is wrong"),
        ({"messages": []}, "messages is wrong"),
        ({"messages": [{"role": "user", "content": "Who?"}] * 2}, "none of a known protocol's"),
        (asking(ALPACA.render(Game(pair(), "ab")).messages, stream=True), "does not stream"),
        (asking(ALPACA.render(Game(pair(), "ab")).messages, n=2), "n is wrong"),
        (asking(ALPACA.render(Game(pair(), "ab")).messages[:1] * 2), "nothing is quoted"),
    ],
)
def test_what_is_no_game_is_refused(body, why):
    (response,) = exchange(server(), body)
    assert response.status_code == 400
    assert why in response.json()["error"]["message"]


def test_answer_without_a_quality_is_refused(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("{}")
    (response,) = exchange(server(quality=table(path)), asking(ALPACA.render(Game(pair(), "ab")).messages))
    assert (response.status_code, "does not hold the answer" in response.text) == (400, True)


def test_other_routes():
    async def go():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(server()), base_url="http://judge") as client:
            return [await client.get(path) for path in ("/v1/models", "/livez", "/v1/chat/completions", "/x")]

    models, *others = asyncio.run(go())
    assert [model["id"] for model in models.json()["data"]] == ["scripted"]
    assert [response.status_code for response in others] == [200, 404, 404]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"noise": -1.0}, "'noise' input should be greater than or equal to 0"),
        ({"hangs": 2.0}, "'hangs' input should be less than or equal to 1"),
        ({"errors": 0.6, "hangs": 0.6}, "rates of faults add up to more than 1"),
        ({"quality_pattern": "x", "quality_table": "y"}, "leave one out"),
        ({"protocol": ["mine"]}, "no protocol 'mine'"),
        ({"port": 0}, "port 0 is not between"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_served(options, why):
    with pytest.raises(RequestError, match=why):
        serve_scripted_judge(**options)


@pytest.fixture
def served(tmp_path):
    """A server process with a latency, its URL and its log."""
    log = tmp_path / "log.jsonl"
    with scripted_service(log, "--latency", LATENCY, "--position-bias", 1.5) as url:
        yield url, log


@pytest.mark.service
@pytest.mark.long
def test_64_requests_at_once_wait_together(served):
    url, log = served
    bodies = [asking(ALPACA.render(Game(pair(number), "ab")).messages) for number in range(64)]

    async def go():
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:

            async def ask(body):
                began = time.monotonic()
                response = await client.post("/v1/chat/completions", json=body)
                return response, time.monotonic() - began

            began = time.monotonic()
            return await asyncio.gather(*map(ask, bodies)), time.monotonic() - began

    answers, wall = asyncio.run(go())
    assert {response.status_code for response, _ in answers} == {200}
    assert min(seconds for _, seconds in answers) >= LATENCY - 0.002
    assert wall < 64 * LATENCY / 4, "they wait one after another"
    assert len(log.read_text().splitlines()) == 64
    assert answers[0][0].headers["x-posttrain-contract"] == "1"

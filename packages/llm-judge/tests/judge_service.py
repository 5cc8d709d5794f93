"""The judge service in process, and the servers that it asks, each on a port of its own in a thread."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from posttrain.core.asgi import ServiceMiddleware
from posttrain.llm_judge.judges.qualities import hashed
from posttrain.llm_judge.judges.script import Script
from posttrain.llm_judge.judges.scripted_server import Faults, ScriptedServer
from posttrain.llm_judge.protocols import NAMES, load_protocol
from posttrain.llm_judge.serving.app import create_app
from posttrain.llm_judge.serving.settings import JudgeServiceSettings

PROTOCOLS = [load_protocol(name) for name in NAMES]
KEY = "sk-secret-of-the-tests"
SECRET = "zebra-crossing-7141"
"""In texts that must not be repeated anywhere."""


@contextmanager
def served(app: Any, lifespan: str = "off") -> Iterator[str]:
    """The address of an ASGI application."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan=lifespan, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait(lambda: server.started or not thread.is_alive(), "the server listens")
    assert server.started
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def wait(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return found


class Scripted:
    """A scripted judge that may be told to refuse or to leave requests waiting, and knows what it was asked."""

    def __init__(self, script: Script = Script(), faults: Faults = Faults()) -> None:
        self.asked = self.answered = self.at_once = self.most_at_once = 0
        self.refusal: int | None = None
        """A status to answer everything with, quoting it."""
        self.last: int | None = None
        """How many requests are answered; the others wait until this changes, or their client leaves."""
        self._server = ScriptedServer(PROTOCOLS, script, hashed(), faults)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        number = self.asked
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self._respond(number, scope, receive, send)
        finally:
            self.at_once -= 1

    async def _respond(self, number: int, scope: Any, receive: Any, send: Any) -> None:
        body = await Request(scope, receive).body()
        leaving = asyncio.ensure_future(receive())
        while self.last is not None and number > self.last and not leaving.done():
            await asyncio.sleep(0.01)
        if leaving.done():
            return
        leaving.cancel()
        self.answered += 1
        if self.refusal:
            answer = JSONResponse({"error": {"message": body.decode(), "code": None}}, self.refusal)
            await answer(scope, receive, send)
        else:
            await self._server(scope, _replay(body), send)


def _replay(body: bytes) -> Any:
    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


class Policy:
    """Answers a question with its last word, turned round; refuses one that says so, and quotes it."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.app = Starlette(routes=[Route("/v1/chat/completions", self.complete, methods=["POST"])])

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        question = body["messages"][-1]["content"]
        if "refuse" in question:
            return JSONResponse({"error": {"message": f"cannot answer {question}"}}, 400)
        cut = "length" if "cut" in question else "stop"
        message = {"role": "assistant", "content": self.answer(question)}
        return JSONResponse({"choices": [{"message": message, "finish_reason": cut}]})

    @staticmethod
    def answer(question: str) -> str:
        """What it answers."""
        return question.split()[-1][::-1]


class Reward:
    """A reward service whose source rm scores an answer by its number of characters."""

    def __init__(self) -> None:
        self.digest, self.items = "d1", 0
        self.app = Starlette(routes=[Route("/v1/sources", self.sources), Route("/score", self.score, methods=["POST"])])

    async def sources(self, request: Request) -> Response:
        return JSONResponse({"sources": {"rm": self.digest}})

    async def score(self, request: Request) -> Response:
        items = (await request.json())["items"]
        self.items += len(items)
        scores = [{"rm": float(len(item["completion"]))} for item in items]
        return JSONResponse({"scores": scores, "sources": {"rm": self.digest}})


def settings(folder: Path, url: str, **more: Any) -> JudgeServiceSettings:
    """Of a service with the scripted judge at `url`, and its files in `folder`."""
    chat = {"model": "scripted", "base_url": url, "price": {"input": 1.0, "output": 1.0}}
    plain = {
        "judges": {"scripted": {"chat": chat}},
        "store": str(folder / "store.db"),
        "runs": str(folder / "runs"),
        "records": str(folder / "records"),
    }
    return JudgeServiceSettings.model_validate(plain | more)


@contextmanager
def service(settings: JudgeServiceSettings, key: str = "") -> Iterator[TestClient]:
    """A client of the service with its middleware."""
    app = ServiceMiddleware(create_app(settings), api_key=key, max_body_bytes=settings.max_body_bytes)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with TestClient(
        app, base_url="http://localhost", client=("127.0.0.1", 1), raise_server_exceptions=False, headers=headers
    ) as client:
        yield client


def item(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A comparison as it is sent."""
    plain = {"instruction": f"Question {number}?", "output_1": f"one {number}", "output_2": f"another {number}"}
    return {name: value for name, value in (plain | changes).items() if value is not None}


def items(count: int) -> list[dict[str, Any]]:
    """So many."""
    return [item(number) for number in range(count)]


def judged(client: TestClient, *comparisons: dict, **more: Any) -> dict:
    """The answer of POST /judge."""
    response = client.post("/judge", json={"comparisons": list(comparisons), **more})
    assert response.status_code == 200, response.text
    assert response.headers["X-Posttrain-Contract"] == "1"
    return response.json()


def refused(client: TestClient, status: int, body: object, path: str = "/judge") -> dict:
    """The error that the request must get."""
    content = body if isinstance(body, bytes | str) else json.dumps(body)
    response = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert response.headers["X-Posttrain-Contract"] == "1"
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "code"}
    assert SECRET not in response.text
    return response.json()["error"]

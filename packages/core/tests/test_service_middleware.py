"""The manners of every service: key or loopback, body limits, contract header."""

import asyncio

import httpx
import pytest

from posttrain.core import asgi
from posttrain.core.asgi import ResponseTimeout, ServiceMiddleware, seeing_only


async def echo(scope, receive, send):
    body = b""
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        body += event.get("body", b"")
        more = event.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


def ask(path="/x", *, peer="127.0.0.1", host="127.0.0.1:8001", method="GET", headers=None, content=None, **options):
    async def go():
        app = ServiceMiddleware(echo, **options)
        transport = httpx.ASGITransport(app, client=(peer, 123))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.request(method, path, headers=headers, content=content)

    return asyncio.run(go())


@pytest.mark.parametrize("host", ["127.0.0.1:8001", "localhost:8001", "localhost", "[::1]:8001", "127.1.2.3"])
def test_without_a_key_loopback_is_answered(host):
    assert ask(host=host, api_key="").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8001", "10.0.0.1"])
def test_without_a_key_another_host_is_refused(host):
    response = ask(host=host, api_key="")
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "loopback_only"


def test_without_a_key_a_foreign_peer_is_refused():
    assert ask(peer="10.0.0.7", api_key="").status_code == 403


@pytest.mark.parametrize("given", [None, "Bearer wrong", "secret", "Basic secret", "Bearer "])
def test_with_a_key_everybody_needs_it(given):
    response = ask(api_key="secret", headers={"Authorization": given} if given else {})
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"


def test_a_page_is_read_without_the_key_and_nothing_else_of_it():
    assert ask("/chat", api_key="secret", pages=["/chat"]).status_code == 200
    assert ask("/chat", method="POST", api_key="secret", pages=["/chat"]).status_code == 401
    assert ask("/chat/votes", api_key="secret", pages=["/chat"]).status_code == 401


def test_without_a_key_a_page_too_is_for_loopback_only():
    assert ask("/chat", host="evil.example", api_key="", pages=["/chat"]).status_code == 403


def test_with_the_key_a_foreign_peer_is_answered():
    headers = {"Authorization": "Bearer secret"}
    assert ask(peer="10.0.0.7", host="policy", api_key="secret", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
def test_health_is_open_to_all(path):
    assert ask(path, peer="10.0.0.7", host="policy", api_key="secret").status_code == 200


def test_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("POSTTRAIN_API_KEY", "secret")
    assert ask().status_code == 401


@pytest.mark.parametrize("options", [{"api_key": ""}, {"api_key": "secret"}])
def test_every_response_names_the_contract(options):
    assert ask(**options).headers["X-Posttrain-Contract"] == "1"


@pytest.mark.parametrize("spoken", [None, "1"])
def test_who_speaks_this_contract_or_names_none_is_answered(spoken):
    assert ask(api_key="", headers={"X-Posttrain-Contract": spoken} if spoken else {}).status_code == 200


@pytest.mark.parametrize(("spoken", "told"), [("2", "2"), ("0", "0"), ("1.0", "that is no number"), ("9" * 99, "that")])
@pytest.mark.parametrize("key", ["", "secret"])
def test_who_speaks_another_contract_is_refused_with_both_numbers(spoken, told, key):
    headers = {"X-Posttrain-Contract": spoken, "Authorization": f"Bearer {key}"}
    response = ask(api_key=key, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "contract_mismatch")
    assert error["message"].startswith(f"the client speaks contract {told}")
    assert error["message"].endswith("this service 1; install matching versions of both")


def test_health_is_open_whatever_the_contract_and_the_key_comes_first():
    headers = {"X-Posttrain-Contract": "2"}
    assert [ask(path, headers=headers).status_code for path in ("/livez", "/readyz", "/healthz")] == [200] * 3
    assert ask(api_key="secret", headers=headers).status_code == 401


def test_announced_body_beyond_the_limit_is_413():
    response = ask(method="POST", content=b"x" * 101, api_key="", max_body_bytes=100)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_body_of_unknown_length_beyond_the_limit_is_413():
    async def pieces():
        for _ in range(11):
            yield b"x" * 10

    response = ask(method="POST", content=pieces(), api_key="", max_body_bytes=100)
    assert response.status_code == 413


def test_body_at_the_limit_passes():
    assert ask(method="POST", content=b"x" * 100, api_key="", max_body_bytes=100).text == "100"


def test_uploads_have_their_own_limit():
    options = {"api_key": "", "max_body_bytes": 10, "upload_limits": {"/v1/models/": 100}}
    assert ask("/v1/models/policy@1", method="PUT", content=b"x" * 50, **options).status_code == 200
    assert ask("/v1/completions", method="POST", content=b"x" * 50, **options).status_code == 413


def test_malformed_length_is_refused():
    response = ask(method="POST", headers={"Content-Length": "-5"}, api_key="")
    assert response.status_code == 413


def test_body_that_hardly_comes_is_ended_with_408(monkeypatch):
    monkeypatch.setattr(asgi, "BODY_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(asgi, "SLOWEST_BODY", 1000)

    sent = []

    async def receive():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(event):
        sent.append(event)

    scope = {"type": "http", "path": "/x", "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1)}
    asyncio.run(asyncio.wait_for(ServiceMiddleware(echo, api_key="")(scope, receive, send), 5))
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


def test_body_that_comes_steadily_has_all_the_time_it_needs(monkeypatch):
    monkeypatch.setattr(asgi, "BODY_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(asgi, "SLOWEST_BODY", 1000)

    async def pieces():
        for _ in range(15):
            yield b"x" * 100
            await asyncio.sleep(0.02)

    assert ask(method="POST", content=pieces(), api_key="").text == "1500"


def test_bodies_in_memory_are_bounded_over_all_requests(monkeypatch):
    monkeypatch.setattr(asgi, "BODIES_AT_ONCE", 2)
    release = asyncio.Event()

    async def holding(scope, receive, send):
        if (await receive())["type"] == "http.disconnect":
            return
        await release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def go():
        app = ServiceMiddleware(holding, api_key="", max_body_bytes=100)
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            held = [asyncio.create_task(client.post("/x", content=b"x" * 100)) for _ in range(2)]
            await asyncio.sleep(0.05)
            refused = await client.post("/x", content=b"x" * 100)
            release.set()
            done = await asyncio.gather(*held)
            again = await client.post("/x", content=b"x" * 100)
            return [
                refused.status_code,
                refused.headers["retry-after"],
                *(d.status_code for d in done),
                again.status_code,
            ]

    assert asyncio.run(go()) == [503, "1", 200, 200, 200]


def test_answer_that_does_not_begin_in_time_is_504_and_its_work_is_cancelled():
    ended = []

    async def silent(scope, receive, send):
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(True)

    async def go(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/x")

    response = asyncio.run(go(ResponseTimeout(silent, 0.05)))
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert response.headers["X-Posttrain-Contract"] == "1"
    assert ended == [True]


def test_no_timer_outlives_its_request():
    async def go():
        app = ResponseTimeout(echo, 600)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for _ in range(300):
                await client.get("/x")
        # A cancelled timer stays until half of them are; BentoML's would all be waiting.
        return sum(not timer.cancelled() for timer in asyncio.get_running_loop()._scheduled)

    assert asyncio.run(go()) < 5


def test_a_middleware_that_counts_paths_sees_known_ones_and_the_application_sees_all():
    counted, reached = [], []

    class Counting:
        def __init__(self, app, namespace):
            self.app = app

        async def __call__(self, scope, receive, send):
            counted.append(scope["path"])
            await self.app(scope, receive, send)

    async def application(scope, receive, send):
        reached.append(scope["path"])
        await echo(scope, receive, send)

    async def go():
        app = seeing_only(Counting, ["/v1/models", "/v1/models/", "/metrics"])(application, namespace="x")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            for path in paths:
                await client.get(path)

    paths = ["/v1/models", "/v1/models/policy@1", "/v1/models/policy@2", "/metrics", "/made/up", "/metricsx"]
    asyncio.run(go())
    assert reached == paths
    assert counted == ["/v1/models", "/v1/models/", "/v1/models/", "/metrics", "other", "other"]


def test_upload_may_take_longer_than_an_answer():
    async def slow(scope, receive, send):
        await asyncio.sleep(0.2)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"taken"})

    async def go(method):
        transport = httpx.ASGITransport(ResponseTimeout(slow, 0.05))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.request(method, "/v1/models/policy@1")).status_code

    assert (asyncio.run(go("PUT")), asyncio.run(go("GET"))) == (200, 504)

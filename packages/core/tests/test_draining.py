"""A service that is told to end: what is in flight is answered, what comes is refused, what hangs is ended."""

import asyncio
import json
import os
import signal

import httpx
import pytest

from posttrain.core import draining
from posttrain.core.asgi import ServiceMiddleware


class Served:
    """An application with an answer that waits, under a server that notes what signals come through to it."""

    def __init__(self, drains=True):
        self.app = ServiceMiddleware(self.answer, api_key="", drains=drains)
        self.go, self.began, self.ended, self.cancelled = asyncio.Event(), asyncio.Event(), [], 0
        self._stop = asyncio.Event()

    async def answer(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self._stop.wait()
            return
        kind = {"/stream": b"text/event-stream", "/page": b"text/html"}.get(scope["path"])
        start = {"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", kind or b"text/plain")]}
        try:
            if kind:
                await send(start)
                await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            self.began.set()
            if scope["path"] not in ("/livez", "/readyz"):
                await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if not kind:
            await send(start)
        await send({"type": "http.response.body", "body": b"whole"})

    async def __aenter__(self):
        self._before = signal.signal(signal.SIGTERM, lambda number, _: self.ended.append(number))
        self._lifespan = asyncio.create_task(self.app({"type": "lifespan"}, None, None))
        await asyncio.sleep(0)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://127.0.0.1")
        return self

    async def __aexit__(self, *_):
        self._stop.set()
        await self._lifespan
        assert signal.getsignal(signal.SIGTERM).__name__ == "<lambda>", "the server has its handler again"
        signal.signal(signal.SIGTERM, self._before)
        await self.http.aclose()

    async def ask(self, path):
        self.began.clear()
        asking = asyncio.create_task(self.http.get(path))
        await self.began.wait()
        return asking


@pytest.fixture(autouse=True)
def alarms(monkeypatch):
    """What the kernel is asked for, and does not do to the tests."""
    asked = []
    monkeypatch.setattr(signal, "alarm", asked.append)
    return asked


async def signalled():
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.01)


def test_a_service_without_requests_ends_at_once():
    async def go():
        async with Served() as served:
            await signalled()
            assert served.ended == [signal.SIGTERM]

    asyncio.run(go())


def test_a_request_in_flight_is_answered_before_the_server_hears_of_the_signal():
    async def go():
        async with Served() as served:
            asking = await served.ask("/x")
            await signalled()
            assert served.ended == []
            served.go.set()
            assert (await asking).text == "whole"
            assert served.ended == [signal.SIGTERM]

    asyncio.run(go())


def test_what_comes_meanwhile_is_refused_and_not_ready_but_alive():
    async def go():
        async with Served() as served:
            asking = await served.ask("/x")
            await signalled()
            for path in ("/x", "/readyz", "/metrics"):
                refused = await served.http.get(path)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
                assert (refused.headers["Retry-After"], refused.headers["Connection"]) == ("1", "close")
            assert (await served.http.get("/livez")).status_code == 200
            assert served.ended == []
            served.go.set()
            await asking

    asyncio.run(go())


@pytest.mark.parametrize(("path", "status"), [("/x", 503), ("/stream", 200)])
def test_what_hangs_is_cancelled_and_told_in_the_form_of_its_answer(monkeypatch, path, status):
    monkeypatch.setattr(draining, "ANSWER_SECONDS", 0.05)

    async def go():
        async with Served() as served:
            asking = await served.ask(path)
            await signalled()
            answer = await asking
            assert answer.status_code == status
            assert (served.cancelled, served.ended) == (1, [signal.SIGTERM])
            return answer.text

    error = json.loads(asyncio.run(go()).removeprefix("data: 1\n\n").removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == ("shutting_down", "server_error")


def test_an_answer_in_another_form_that_is_sent_in_part_breaks_off(monkeypatch):
    monkeypatch.setattr(draining, "ANSWER_SECONDS", 0.05)

    async def go():
        async with Served() as served:
            asking = await served.ask("/page")
            await signalled()
            with pytest.raises(AssertionError):  # of httpx: it has no end
                await asking
            assert (served.cancelled, served.ended) == (1, [signal.SIGTERM])

    asyncio.run(go())


def test_a_second_signal_insists_and_the_first_is_passed_on_once(monkeypatch):
    monkeypatch.setattr(draining, "ANSWER_SECONDS", 0.05)

    async def go():
        async with Served() as served:
            asking = [await served.ask("/x") for _ in range(2)]
            await signalled()
            await signalled()
            assert served.ended == [signal.SIGTERM]
            await asyncio.gather(*asking)
            assert served.ended == [signal.SIGTERM] * 2

    asyncio.run(go())


def test_the_kernel_ends_a_process_of_a_service_that_hangs(alarms):
    async def go():
        async with Served():
            assert alarms == []
            await signalled()

    asyncio.run(go())
    assert alarms == [draining.KILL_SECONDS]


def test_a_server_that_has_ways_of_its_own_hears_of_the_signal_at_once(alarms):
    """As the chat page of the command line, which Ctrl-C ends within seconds whatever is being answered."""

    async def go():
        async with Served(drains=False) as served:
            asking = await served.ask("/x")
            await signalled()
            assert (served.ended, alarms) == ([signal.SIGTERM], [])
            served.go.set()
            assert (await asking).status_code == 200

    asyncio.run(go())


def test_an_application_that_no_server_runs_leaves_signals_alone():
    async def go():
        served = Served()
        before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
        lifespan = asyncio.create_task(served.app({"type": "lifespan"}, None, None))
        await asyncio.sleep(0)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        served._stop.set()
        await lifespan
        signal.signal(signal.SIGTERM, before)

    asyncio.run(go())

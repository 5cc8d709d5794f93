"""How a service ends: what is in flight is answered, what comes is refused, and ten seconds are enough.

SIGTERM or Ctrl-C reach the server (uvicorn, BentoML's worker) only when the last request in flight has its answer.
Meanwhile it goes on listening, and new requests get 503 at once, which clients repeat elsewhere or later, where a
closed door would leave them waiting. What still runs after `ANSWER_SECONDS` is cancelled: 503, or an error event at the
end of a stream that has begun.
"""

import asyncio
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

from posttrain.core.asgi_answers import App, Event, Receive, Scope, Send, respond
from posttrain.core.wire import error_body

ANSWER_SECONDS = 8.0
"""What requests in flight have to end by themselves."""
KILL_SECONDS = 9
"""Then the kernel ends a process that hangs in what cannot be cancelled, such as a computation in C. Docker gives a
container ten seconds before it does so."""
SHUTTING_DOWN = "shutting_down"
SAYS = "the service is shutting down; send the request again, here later or to another one"


class Draining:
    """Around an ASGI application whose process has nothing left to do when it has ended, and may be killed; its server
    must run the lifespan protocol in the main thread to be heeded."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._running: set[asyncio.Timeout] = set()
        self._stopping = False
        self._end: Callable[[], Any] | None = None
        """What the signal is to do to the server, once."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            with self._heeding_signals():
                await self.app(scope, receive, send)
        elif scope["type"] != "http" or scope["path"] == "/livez":
            await self.app(scope, receive, send)
        elif self._stopping:
            await respond(send, 503, SAYS, SHUTTING_DOWN, close=True)
        else:
            await self._in_flight(scope, receive, _Answer(send))

    async def _in_flight(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        try:
            async with asyncio.timeout(None) as timer:
                self._running.add(timer)
                try:
                    await self.app(scope, receive, answer.send)
                finally:
                    self._running.discard(timer)
        except TimeoutError:
            if not timer.expired():
                raise
            await answer.end()
        finally:
            self._end_when_idle()

    @contextmanager
    def _heeding_signals(self) -> Iterator[None]:
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        main = threading.current_thread() is threading.main_thread()
        # Where no server has taken SIGTERM there is none to end: a test that runs the application itself.
        if not main or not callable(before[signal.SIGTERM]):
            yield
            return
        loop = asyncio.get_running_loop()
        for number, servers in before.items():
            signal.signal(number, partial(self._signalled, loop, servers))
        try:
            yield
        finally:
            for number, servers in before.items():
                signal.signal(number, servers)

    def _signalled(self, loop: asyncio.AbstractEventLoop, servers: Any, number: int, frame: FrameType | None) -> None:
        if self._stopping:  # a second signal insists
            servers(number, frame)
            return
        signal.alarm(KILL_SECONDS)
        self._stopping, self._end = True, partial(servers, number, frame)
        loop.call_soon_threadsafe(self._begin, loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        for timer in self._running:
            timer.reschedule(loop.time() + ANSWER_SECONDS)
        self._end_when_idle()

    def _end_when_idle(self) -> None:
        if self._end and not self._running:
            end, self._end = self._end, None
            end()


class _Answer:
    """Knows how far an answer has come, to end it in its form."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = self._streams = self._ended = False

    async def send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self._started = True
            self._streams = any(
                name.lower() == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in event.get("headers", [])
            )
        elif event["type"] == "http.response.body":
            self._ended = not event.get("more_body", False)
        await self._send(event)

    async def end(self) -> None:
        """Says that the service ends. An answer in another form that is sent in part breaks off."""
        if not self._started:
            await respond(self._send, 503, SAYS, SHUTTING_DOWN, close=True)
        elif self._streams and not self._ended:
            event = f"data: {json.dumps(error_body(SAYS, 'server_error', SHUTTING_DOWN))}\n\n"
            await self._send({"type": "http.response.body", "body": event.encode()})

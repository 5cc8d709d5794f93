"""An OpenAI-compatible server for tests of the chat: it streams a scripted answer word by word."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeServer(ThreadingHTTPServer):
    """Answers with `reply(messages)`, a word each `pause` seconds, and keeps what it was asked.

    A reply that is a tuple is a status and its error, bytes are what follows half an answer.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, reply, pause=0.0, models=("fake",), contract=None, ending="stop"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.pause, self.models = reply, pause, models
        self.ending = ending  # reason to finish
        self.contract = contract  # what a service of ours says that it speaks
        self.asked, self.headers_seen = [], []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass  # a client that goes away is what some tests are about


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def send_json(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.server.contract:
            self.send_header("X-Posttrain-Contract", self.server.contract)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.send_json(
            200, {"object": "list", "data": [{"id": name, "sha256": "0" * 64} for name in self.server.models]}
        )

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
        answer = self.server.reply(body["messages"])
        if isinstance(answer, tuple):
            status, message = answer
            self.send_json(status, {"error": {"message": message, "type": "x", "code": None}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if isinstance(answer, bytes):  # a stream that is none
            self.event({"content": "half of"}, None, body["model"])
            self.wfile.write(answer)
            return
        for number, word in enumerate(answer.split(" ")):
            self.event({"content": word if number == 0 else f" {word}"}, None, body["model"])
            time.sleep(self.server.pause)
        self.event({}, self.server.ending, body["model"])
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, delta, finish_reason, model):
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": model, "choices": [choice]}
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.flush()


@contextmanager
def serving(reply, **options):
    """A running `FakeServer`."""
    with FakeServer(reply, **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def parrot(messages):
    """A model that repeats the last message."""
    return f"you said {messages[-1]['content']}"

"""What a request may cost: deadlines, hostile bodies, streams nobody reads, BentoML's own ways, over ASGI."""

import asyncio
import errno
import hashlib
import json
import os
import tempfile
import threading
import time
from io import FileIO
from pathlib import Path

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from posttrain.core.errors import WorkError
from posttrain.rollout import streaming, upload
from posttrain.rollout.requests import ChatRequest, CompletionRequest
from posttrain.rollout.scheduler import Job
from posttrain.rollout.text import TextWatcher, _matched, decode

LONG = {"prompt": [[5]] * 8, "max_tokens": 250, "ignore_eos": True}


def test_request_past_its_deadline_is_504_and_its_samples_are_ended(client, policy):
    response = client.complete(**LONG, headers={"X-Posttrain-Timeout": "0.05"})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert response.headers["x-should-retry"] == "false"
    deadline = time.monotonic() + 10
    while policy.engine.running or policy.scheduler.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_deadline_holds_while_a_request_waits(client, policy, monkeypatch):
    free = policy.scheduler.engine.__class__.free
    monkeypatch.setattr(policy.scheduler.engine.__class__, "free", 0)
    response = client.complete(prompt=[[5]], headers={"X-Posttrain-Timeout": "0.05"})
    assert response.status_code == 504
    assert policy.scheduler.waiting == 0
    monkeypatch.setattr(policy.scheduler.engine.__class__, "free", free)
    assert client.complete(prompt=[[5]]).status_code == 200


def test_the_services_own_limit_holds_where_a_request_asks_for_more(client, policy, monkeypatch):
    object.__setattr__(policy.settings, "max_seconds", 0.05)
    assert client.complete(**LONG, headers={"X-Posttrain-Timeout": "1000"}).status_code == 504
    assert client.complete(**LONG).status_code == 504


def test_stream_past_its_deadline_ends_with_an_error_event(client):
    response = client.complete(**LONG, stream=True, headers={"X-Posttrain-Timeout": "0.1"})
    last = response.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "", "1e999"])
def test_deadlines_that_are_none_are_refused(client, value):
    response = client.complete(prompt="a", headers={"X-Posttrain-Timeout": value})
    assert response.status_code == 400
    assert "X-Posttrain-Timeout must hold a positive number" in response.json()["error"]["message"]


def test_a_stream_that_nobody_reads_lets_go(policy, monkeypatch):
    """The client keeps the connection and takes nothing; its samples end, and so does its request."""
    monkeypatch.setattr(streaming, "STALLED_SECONDS", 0.1)
    from posttrain.rollout.app import create_app, serve

    app = create_app()
    serve(app, policy)
    body = json.dumps({"model": "policy", **LONG, "stream": True}).encode()

    async def stalled():
        async def receive():
            if bodies:
                return {"type": "http.request", "body": bodies.pop()}
            return await asyncio.sleep(3600)

        async def send(event):
            if event["type"] == "http.response.body":
                await asyncio.sleep(3600)

        bodies = [body]
        headers = [(b"content-type", b"application/json"), (b"x-posttrain-timeout", b"0.1")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"", "query_string": b""}
        scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "server": ("x", 1), "client": ("x", 1)}
        await asyncio.wait_for(app(scope, receive, send), 20)

    asyncio.run(stalled())


def test_a_page_in_a_browser_cannot_send_requests_unasked(client):
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        body = b'{"model": "policy", "prompt": "a"}'
        response = client.send("POST", "/v1/completions", content=body, headers={"Content-Type": kind})
        assert response.status_code == 415


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{",
        b'{"model": "policy", "prompt": "\xc3\x28"}',
        b'{"model": "policy", "prompt": "\\ud83d"}',
        b'{"model": "policy", "prompt": [NaN]}',
        b'{"model": "policy", "prompt": "a", "temperature": NaN}',
        b'{"model": "policy", "prompt": "a", "temperature": 1e999}',
        b'{"model": "policy", "prompt": "a", "temperature": -Infinity}',
        b'{"model": "policy", "prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "policy", "prompt": "a", "n": 1000000000000000000}',
        b'{"model": "policy", "prompt": "a", "n": 1e18}',
        b'{"model": "policy", "prompt": "a", "max_tokens": 9223372036854775807}',
        b'{"model": "policy", "prompt": "a", "prompt": [-1]}',
        b'{"model": "policy", "prompt": [[2147483648]]}',
        b"[" * 100_000,
        b'{"model": "policy", "prompt": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}",
        b'{"model": "policy", "user": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b', "prompt": ""}',
    ],
)
def test_hostile_json_is_400(client, body):
    response = client.send("POST", "/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]
    assert len(response.content) < 1000


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [-1] * 1_000_000},
        {"prompt": [1.5] * 300_000},
        {"prompt": [[-1] * 1000] * 300},
        {"prompt": ["a", *[1] * 300_000]},
        {"prompt": "a", "stop": [1] * 300_000},
        {"prompt": "a", "logit_bias": {str(i): "x" for i in range(300_000)}},
        {"prompt": "a", **{f"x{i}": 1 for i in range(300_000)}},
    ],
)
def test_wrong_items_by_the_million_are_few_errors(body):
    with pytest.raises(ValidationError) as error:
        CompletionRequest.model_validate({"model": "policy", **body})
    assert error.value.error_count() < 10


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": 1}] * 3000},
        {"messages": [{"role": "user", "content": "a"}] * 300_000},
        {"messages": [{"role": "user", "content": [{"type": "text"}] * 3000}]},
        {"messages": [{"role": "user", "content": "a", **{f"x{i}": 1 for i in range(300_000)}}]},
    ],
)
def test_wrong_turns_by_the_thousand_are_few_errors(body):
    with pytest.raises(ValidationError) as error:
        ChatRequest.model_validate({"model": "policy", **body})
    assert error.value.error_count() < 10


def test_a_million_ids_are_refused_by_the_context_and_a_million_prompts_by_the_limit(client):
    assert "context of 256" in client.complete(prompt=[5] * 1_000_000).json()["error"]["message"]
    assert "more than 64 sequences" in client.complete(prompt=[[5]] * 200_000).json()["error"]["message"]


def test_a_text_that_cannot_fit_is_not_tokenized_first(client, policy, monkeypatch):
    monkeypatch.setattr(policy, "tokenizer", None)
    message = client.complete(prompt="word " * 400_000).json()["error"]["message"]
    assert message == "a prompt of 2000000 characters does not fit the context of 256 tokens"
    messages = [{"role": "user", "content": "word " * 400_000}]
    assert "does not fit the context" in client.chat(messages=messages).json()["error"]["message"]


def test_duplicate_keys_mean_the_last(client):
    body = b'{"model": "policy", "prompt": "a", "n": 64, "n": 1}'
    response = client.send("POST", "/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert len(response.json()["choices"]) == 1


def test_uploads_at_a_time_are_bounded(client, monkeypatch):
    monkeypatch.setattr(upload, "MOST_UPLOADS", 2)

    async def crowd():
        async def slowly(release):
            yield b"x"
            await release.wait()
            yield b"x"

        release = asyncio.Event()
        transport = httpx.ASGITransport(client.app)
        headers = {"X-Content-SHA256": hashlib.sha256(b"xx").hexdigest()}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            held = [
                asyncio.create_task(http.put("/v1/models/policy@1", content=slowly(release), headers=headers))
                for _ in range(2)
            ]
            await asyncio.sleep(0.1)
            refused = await http.put("/v1/models/policy@1", content=b"xx", headers=headers)
            release.set()
            ended = await asyncio.gather(*held)
            again = await http.put("/v1/models/policy@1", content=b"xx", headers=headers)
            return refused, [*ended, again]

    refused, others = asyncio.run(crowd())
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert [response.status_code for response in others] == [400] * 3  # two bytes are no weights


def test_an_upload_has_no_name_on_the_disk_that_a_killed_service_could_leave(client, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = []

    async def body():
        yield b"x" * 100_000
        names.extend(tmp_path.iterdir())
        yield b"x"

    async def put():
        transport = httpx.ASGITransport(client.app)
        headers = {"X-Content-SHA256": hashlib.sha256(b"x" * 100_001).hexdigest()}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.put("/v1/models/policy@1", content=body(), headers=headers)

    response = asyncio.run(put())
    assert names == []
    assert "not a safetensors file" in response.json()["error"]["message"]  # it was whole


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full here")
def test_a_full_disk_is_told_and_the_old_weights_serve_on(client, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda buffering: FileIO("/dev/full", "w"))
    headers = {"X-Content-SHA256": hashlib.sha256(b"x").hexdigest()}
    response = client.send("PUT", "/v1/models/policy@1", content=b"x", headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (507, "no_space")
    assert client.complete(prompt=[[5]]).status_code == 200


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.EDQUOT, "no space is left on the service's disk for the weights; the old ones serve on"),
        (errno.EROFS, "the weights cannot be written on the service's disk (Read-only file system); the old ones"),
    ],
)
@pytest.mark.parametrize("when", ["at the start", "in the middle"])
def test_a_disk_that_refuses_is_told_with_its_reason_and_not_with_its_folders(client, monkeypatch, code, says, when):
    class Refusing(FileIO):
        def write(self, _):
            raise OSError(code, os.strerror(code), "/some/folder")

    def make(buffering):
        if when == "at the start":
            raise OSError(code, os.strerror(code), "/some/folder")
        return Refusing(os.devnull, "w")

    monkeypatch.setattr(tempfile, "TemporaryFile", make)
    headers = {"X-Content-SHA256": hashlib.sha256(b"x").hexdigest()}
    response = client.send("PUT", "/v1/models/policy@1", content=b"x", headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (507, "no_space")
    assert error["message"].startswith(says)
    assert "/some/folder" not in error["message"]
    assert client.complete(prompt=[[5]]).json()["model"] == "policy@0"


class Bytes:
    """A tokenizer whose tokens are bytes; it counts what it decodes."""

    def __init__(self):
        self.backend_tokenizer, self.decoded = self, 0

    def decode(self, ids, skip_special_tokens):
        self.decoded += len(ids)
        return bytes(ids).decode(errors="replace")


@settings(deadline=None, max_examples=300)
@given(
    data=st.lists(
        st.binary(min_size=1, max_size=40)
        | st.text(min_size=1, max_size=10).map(str.encode)
        | st.integers(1, 60).map(lambda n: b"\x80" * n),
        max_size=6,
    ).map(b"".join)
)
def test_bytes_that_are_no_text_come_out_as_they_would_at_the_end(data):
    pieces = []
    watcher = TextWatcher(Bytes(), on_token=lambda token, piece: pieces.append(piece))
    for byte in data:
        watcher.push(byte)
    pieces.append(watcher.finish())
    assert "".join(pieces) == watcher.text == data.decode(errors="replace")


def test_following_what_never_becomes_text_costs_the_same_a_token():
    tokenizer = Bytes()
    watcher = TextWatcher(tokenizer, ("stop",))
    for _ in range(3000):
        watcher.push(0x80)
    assert tokenizer.decoded < 3000 * 60


@settings(deadline=None, max_examples=300)
@given(
    stop=st.text(alphabet="ab", min_size=1, max_size=6),
    pieces=st.lists(st.text(alphabet="abc", max_size=5), max_size=8),
)
def test_what_is_held_back_is_the_longest_beginning_of_the_stop_string(stop, pieces):
    matched, text = 0, ""
    for piece in pieces:
        text += piece
        if stop in text:
            return
        matched = _matched(stop, matched, piece)
        assert matched == next(n for n in range(min(len(stop), len(text)), -1, -1) if text.endswith(stop[:n]))


def test_fast_decoding_is_the_tokenizers_own(tokenizer):
    ids = [*tokenizer("hello world, what is 2")["input_ids"], 0, 2, 77, 200]
    own = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert decode(tokenizer, ids) == own


def test_logprobs_over_json_are_the_engines_own_floats(client, policy):
    wish = {"prompt": [[5, 6], [7]], "max_tokens": 40, "seed": 1, "logprobs": 0, "ignore_eos": True}
    sent = [c["logprobs"]["token_logprobs"] for c in orjson.loads(client.complete(**wish).content)["choices"]]
    request = CompletionRequest(model="policy", **wish)
    samples = policy.samples(request)
    job = Job(samples)
    policy.scheduler.submit(job)  # the engine is the worker's; this thread must not step it
    job.finished.result(60)
    assert sent == [sample.logprobs for sample in samples]


def test_bentoml_neither_batches_nor_sheds_nor_keeps_timers_here():
    """Traps of known.md: our routes are mounted, so nothing is batched; the queue is ours; so is the timer."""
    pytest.importorskip("bentoml")
    from bentoml._internal.server.http import traffic

    from posttrain.core.asgi import ResponseTimeout
    from posttrain.rollout.service import PolicyService
    from posttrain.rollout.settings import PolicyServiceSettings

    assert traffic.TimeoutMiddleware is ResponseTimeout
    assert not PolicyService.apis
    limits = PolicyService.config["traffic"]
    assert "max_concurrency" not in limits
    assert limits["timeout"] > PolicyServiceSettings(checkpoint="x").max_seconds
    assert PolicyService.config["workers"] == 1


@pytest.mark.parametrize("temperature", [1e-40, 1e-38, 0.0099])
def test_temperature_that_fp32_cannot_divide_by_is_refused(client, temperature):
    response = client.complete(prompt=[5], temperature=temperature, logprobs=1)
    assert response.status_code == 400
    assert "temperature must be 0, which is greedy, or at least 0.01" in response.json()["error"]["message"]


def test_failure_that_has_no_status_of_its_own_is_told_in_openais_form(client, policy, monkeypatch):
    def fail(*_):
        raise WorkError("vLLM failed to load weights before; restart the service")

    monkeypatch.setattr(policy.scheduler, "submit", fail)
    response = client.complete(prompt=[5])
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
    assert "restart the service" in response.json()["error"]["message"]


def test_push_whose_client_leaves_holds_the_lock_until_its_weights_are_in():
    began, may_end, ended = threading.Event(), threading.Event(), []

    def swap():
        began.set()
        assert may_end.wait(10)
        ended.append(True)

    async def go():
        push = asyncio.create_task(upload._to_the_end(swap))
        assert await asyncio.to_thread(began.wait, 10)
        push.cancel()
        await asyncio.sleep(0.05)
        assert not push.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await push
        assert ended

    asyncio.run(go())

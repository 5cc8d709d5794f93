"""Streams between the worker that notes and the loop that writes: nothing is lost, nobody is left generating."""

import asyncio
import json
import threading

import pytest
from starlette.requests import ClientDisconnect

from posttrain.rollout import streaming
from posttrain.rollout.requests import CompletionRequest
from posttrain.rollout.text import TextWatcher


def test_piece_noted_while_the_loop_takes_the_others_out_is_not_lost(policy):
    request = CompletionRequest(model="policy", prompt=[5], max_tokens=4, stream=True)
    (sample,) = policy.samples(request)
    entered, taken = threading.Event(), threading.Event()

    class Slow(TextWatcher):
        def finish(self):
            entered.set()
            assert taken.wait(10)
            return "held back"

    async def go():
        stream = streaming._Stream(policy, request, [sample])
        sample.watcher = Slow(policy.tokenizer, ())
        sample.logprobs, sample.finish_reason = [-0.5], "length"
        stream._on_token(0, sample, 7, "first")
        worker = threading.Thread(target=stream._on_sample, args=(sample,))
        worker.start()
        assert await asyncio.to_thread(entered.wait, 10)
        events = stream.events({}, due=float("inf"))
        first = await anext(events)
        taken.set()
        worker.join()
        stream.job.finished.set_result(None)
        return first + b"".join([event async for event in events])

    said = [line[6:] for line in asyncio.run(go()).decode().split("\n\n") if line]
    choices = [json.loads(line)["choices"][0] for line in said[:-1]]
    assert [(c["text"], c["finish_reason"]) for c in choices] == [("first", None), ("held back", "length")]


def test_stream_that_nobody_begins_to_read_is_cancelled():
    async def never():
        yield b""

    async def gone(*_):
        raise OSError("the client has left")

    async def go(cancelled):
        events = streaming._Events(never(), float("inf"), lambda: cancelled.append(True))
        with pytest.raises(ClientDisconnect):
            await events({"type": "http", "asgi": {"spec_version": "2.4"}}, gone, gone)

    asyncio.run(go(cancelled := []))
    assert cancelled

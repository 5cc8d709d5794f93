"""Contract 1 over ASGI, without a server: routes, errors, weights, streams, versions."""

import asyncio
import hashlib
import json

import httpx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from posttrain.rollout.policy import Policy
from posttrain.rollout.settings import PolicyServiceSettings
from posttrain.rollout.torch_engine import TorchEngine

END = 2


def weights(make_model, seed):
    state = make_model(seed=seed).state_dict()
    return save({name: tensor.clone() for name, tensor in state.items() if name != "lm_head.weight"})


def assert_error(response, status, message, code=None):
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"message", "type", "code"}
    assert message in response.json()["error"]["message"]
    assert response.json()["error"]["code"] == code
    assert response.headers["x-posttrain-contract"] == "1"


def test_ids_in_and_out_with_logprobs_as_trainers_ask(client, policy):
    prompts = [[5, 6, 7], [8, 9]]
    answer = client.complete(
        model="policy@0", prompt=prompts, n=2, max_tokens=6, seed=3, logprobs=0, return_token_ids=True
    ).json()
    assert answer["model"] == "policy@0"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [[5, 6, 7], [5, 6, 7], [8, 9], [8, 9]]
    for choice in answer["choices"]:
        ids = torch.tensor([choice["prompt_token_ids"] + choice["token_ids"]])
        expected = policy.engine.model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        expected = expected[len(choice["prompt_token_ids"]) - 1 :]
        assert torch.allclose(torch.tensor(choice["logprobs"]["token_logprobs"]), expected, atol=1e-4)
    generated = sum(len(choice["token_ids"]) for choice in answer["choices"])
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": generated, "total_tokens": 5 + generated}


def test_text_and_its_ids_are_the_same_prompt(client, tokenizer):
    text = "hello world"
    by_text = client.complete(prompt=text, seed=1).json()["choices"][0]["text"]
    by_ids = client.complete(prompt=tokenizer(text)["input_ids"], seed=1).json()["choices"][0]["text"]
    in_list = client.complete(prompt=[text], seed=1).json()["choices"][0]["text"]
    assert by_text == by_ids == in_list


def test_seed_repeats_and_no_seed_does_not(client):
    def texts(**wish):
        return [
            c["text"]
            for c in client.complete(prompt="hello", n=3, max_tokens=12, temperature=2, **wish).json()["choices"]
        ]

    assert texts(seed=7) == texts(seed=7)
    assert texts(seed=7) != texts(seed=8)
    assert texts() != texts()


def test_texts_of_tokens_can_be_left_out_of_logprobs(client):
    wish = {"prompt": "hello world", "max_tokens": 6, "logprobs": 0, "seed": 3, "return_token_ids": True}
    full, short = (client.complete(**wish, **more).json()["choices"][0] for more in ({}, {"return_tokens": False}))
    assert full["logprobs"].pop("tokens")
    assert full["logprobs"].pop("text_offset")[0] == 0
    assert short["logprobs"].pop("tokens") is short["logprobs"].pop("text_offset") is None
    assert short == full


def test_echo_gives_the_prompts_logprobs_as_lm_eval_reads_them(client, policy, tokenizer):
    answer = client.complete(
        prompt="hello world, four", max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1
    ).json()
    choice = answer["choices"][0]
    ids = tokenizer("hello world, four")["input_ids"]
    reported = choice["logprobs"]
    assert choice["text"].startswith("hello world, four")
    assert len(reported["tokens"]) == len(reported["token_logprobs"]) == len(reported["top_logprobs"]) == len(ids) + 1
    assert reported["token_logprobs"][0] is None
    with torch.no_grad():
        logprobs = policy.engine.model(torch.tensor([ids])).logits.log_softmax(-1)[0]
    expected = logprobs[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]
    assert torch.allclose(torch.tensor(reported["token_logprobs"][1:-1]), expected, atol=1e-4)
    for place, top in enumerate(reported["top_logprobs"][1:]):
        assert max(top.values()) == pytest.approx(logprobs[place].max().item(), abs=1e-4)
    alone = client.complete(prompt="hello world, four", max_tokens=0, logprobs=1, echo=True, temperature=0).json()
    assert alone["choices"][0]["text"] == "hello world, four"
    assert alone["choices"][0]["logprobs"]["token_logprobs"] == reported["token_logprobs"][:-1]


def test_stop_string_ends_and_is_not_shown(client):
    full = client.complete(prompt="hello", max_tokens=30, seed=2, return_token_ids=True).json()["choices"][0]
    stop = full["text"][5:7]
    cut = client.complete(prompt="hello", max_tokens=30, seed=2, stop=stop, return_token_ids=True).json()["choices"][0]
    assert cut["text"] == full["text"].partition(stop)[0]
    assert cut["finish_reason"] == "stop"
    assert full["token_ids"][: len(cut["token_ids"])] == cut["token_ids"]
    assert len(cut["token_ids"]) < len(full["token_ids"])


def test_chat_goes_through_the_template(client, tokenizer):
    messages = [{"role": "user", "content": "hello"}]
    answer = client.chat(
        messages=messages, max_tokens=5, seed=1, logprobs=True, top_logprobs=2, return_token_ids=True
    ).json()
    choice = answer["choices"][0]
    assert (
        answer["prompt_token_ids"][:2]
        == tokenizer.convert_tokens_to_ids(["<|im_start|>"]) + tokenizer("u")["input_ids"]
    )
    assert choice["message"]["role"] == "assistant"
    content = choice["logprobs"]["content"]
    assert len(content) == len(choice["token_ids"])
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)
    assert answer["usage"]["prompt_tokens"] == len(answer["prompt_token_ids"])


def events(response):
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("stop", [None, ["e", "th"]])
def test_stream_adds_up_to_the_answer(client, stop):
    wish = {"prompt": ["hello", "two"], "n": 2, "max_tokens": 20, "seed": 4, "logprobs": 1, "return_token_ids": True}
    whole = client.complete(**wish, stop=stop).json()
    streamed = events(client.complete(**wish, stop=stop, stream=True, stream_options={"include_usage": True}))
    assert streamed[-1]["usage"] == whole["usage"]
    assert {event["model"] for event in streamed} == {"policy@0"}
    for choice in whole["choices"]:
        own = [e["choices"][0] for e in streamed if e["choices"] and e["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert [i for part in own for i in part.get("token_ids", [])] == choice["token_ids"]
        values = [v for part in own if part["logprobs"] for v in part["logprobs"]["token_logprobs"]]
        assert values == choice["logprobs"]["token_logprobs"]
        assert [part["finish_reason"] for part in own if part["finish_reason"]] == [choice["finish_reason"]]


def test_chat_stream_adds_up_to_the_answer(client):
    wish = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, "seed": 4}
    whole = client.chat(**wish).json()["choices"][0]
    streamed = events(client.chat(**wish, stream=True))
    assert streamed[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in streamed) == whole["message"]["content"]
    assert streamed[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]


@pytest.mark.parametrize("model", ["policy@17", "policy@", "policy@01", "policy@-1", "gpt", ""])
def test_other_models_and_versions_are_not_found(client, model):
    assert_error(client.complete(model=model, prompt="a"), 404, "", "model_not_found")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": "a", "max_tokens": -1}, "'max_tokens'"),
        ({"prompt": "a", "temperature": 1000}, "'temperature'"),
        ({"prompt": "a", "top_p": 0}, "'top_p'"),
        ({"prompt": "a", "n": 0}, "'n'"),
        ({"prompt": "a", "n": 65}, "more than 64 sequences"),
        ({"prompt": "a", "max_tokens": 1000}, "1000 exceed the context of 256"),
        ({"prompt": [5] * 300}, "300 tokens, more than the context of 256"),
        ({"prompt": [5, 4000]}, "token id 4000"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": []}, "empty list"),
        ({"prompt": [[]]}, "the prompt is empty"),
        ({"prompt": [1.5]}, "'prompt' must be"),
        ({"prompt": [True]}, "'prompt' must be"),
        ({"prompt": {"secret": "words"}}, "'prompt' must be"),
        ({"prompt": "a", "best_of": 2}, "'best_of' is not supported"),
        ({"prompt": "a", "frequency_penalty": 0.5}, "'frequency_penalty' is not supported"),
        ({"prompt": "a", "temprature": 1}, "unknown parameter 'temprature'"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"99999": 1}}, "logit_bias"),
        ({"prompt": "a", "stop": ["x"] * 17}, "'stop"),
        ({"prompt": "a", "echo": True, "stream": True}, "echo cannot be streamed"),
        ({"prompt": "a", "logprobs": 21}, "'logprobs'"),
        ({}, "'prompt' must be"),
    ],
)
def test_impossible_requests_are_400_and_say_why(client, body, message):
    response = client.complete(**body)
    assert_error(response, 400, message)
    assert "words" not in response.text


def test_a_broken_body_is_400(client):
    response = client.send(
        "POST", "/v1/completions", content=b'{"model": ', headers={"Content-Type": "application/json"}
    )
    assert_error(response, 400, "not valid JSON")
    raw = b'{"model": "policy", "prompt": "\\ud800"}'
    response = client.send("POST", "/v1/completions", content=raw, headers={"Content-Type": "application/json"})
    assert_error(response, 400, "not valid JSON")


def test_harmless_parameters_are_ignored(client):
    response = client.complete(prompt="a", user="me", metadata={"a": "b"}, best_of=1, presence_penalty=0, suffix=None)
    assert response.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]},
        {"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2},
        {"messages": [{"role": "user", "content": "x" * 2000}]},
    ],
)
def test_impossible_chats_are_400(client, body):
    assert_error(client.chat(**body), 400, "")


@settings(deadline=None, max_examples=60)
@given(
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["model", "prompt", "n", "seed", "stop", "logit_bias", "max_tokens", "x"]),
                inner,
                max_size=5,
            )
        ),
        max_leaves=8,
    ),
    name=st.sampled_from(["completions", "chat/completions"]),
)
def test_no_body_makes_the_service_fail(shared_client, body, name):
    content = json.dumps(body).encode()
    response = shared_client.send("POST", f"/v1/{name}", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400, 404)
    if response.status_code != 200:
        assert response.json()["error"]["message"]


@pytest.fixture(scope="module")
def shared_client(tokenizer, make_model, app_client):
    engine = TorchEngine(make_model(), [END])
    policy = Policy(engine, tokenizer, PolicyServiceSettings(checkpoint="x"))
    yield app_client(policy)
    policy.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("DELETE", "/v1/models", 405), ("GET", "/v1/completions", 405)],
)
def test_unknown_routes_answer_in_openais_form(client, method, path, status):
    assert_error(client.send(method, path), status, "")


def test_pushed_weights_serve_under_their_version(client, app_client, tokenizer, make_model):
    wish = {"prompt": "hello", "max_tokens": 10, "temperature": 0, "logprobs": 0}
    before = client.complete(**wish).json()
    data = weights(make_model, seed=5)
    digest = hashlib.sha256(data).hexdigest()
    assert client.push(3, data).json() == {"id": "policy@3", "sha256": digest}
    after = client.complete(**wish).json()
    assert after["model"] == "policy@3"
    assert after["choices"][0]["logprobs"] != before["choices"][0]["logprobs"]
    listed = client.send("GET", "/v1/models").json()["data"][0]
    assert (listed["id"], listed["version"], listed["sha256"]) == ("policy@3", 3, digest)
    assert listed["dtype"] == "float32"
    assert_error(client.complete(**wish, model="policy@0"), 404, "current one is 3", "model_not_found")
    fresh = TorchEngine(make_model(seed=5), [END])
    other = app_client(Policy(fresh, tokenizer, PolicyServiceSettings(checkpoint="x")))
    assert other.complete(**wish).json()["choices"] == after["choices"]
    other.app.state.policy.close()


def test_versions_go_up_and_repeats_are_taken(client, tokenizer, make_model):
    data, other = weights(make_model, 5), weights(make_model, 6)
    assert client.push(2, data).status_code == 200
    assert client.push(2, data).status_code == 200
    assert_error(client.push(2, other), 409, "another digest", "version_conflict")
    assert_error(client.push(1, other), 409, "older", "version_conflict")
    assert client.push(7, other).json()["id"] == "policy@7"


@pytest.mark.parametrize(
    ("body", "digest", "status", "message"),
    [
        (b"junk", None, 400, "not a safetensors file"),
        (b"junk", "0" * 64, 400, "SHA-256"),
        (b"junk", "zz", 400, "X-Content-SHA256"),
        (save({"a": torch.zeros(2)}), None, 400, "is missing"),
        (b"x" * (66 << 20), None, 413, "larger than"),
    ],
)
def test_refused_weights_leave_the_old_ones_serving_to_the_bit(client, body, digest, status, message):
    wish = {"prompt": "hello", "max_tokens": 10, "seed": 1, "logprobs": 3}
    before = client.complete(**wish).json()
    assert_error(client.push(1, body, digest), status, message, "request_too_large" if status == 413 else None)
    after = client.complete(**wish).json()
    assert after["model"] == "policy@0"
    assert after["choices"] == before["choices"]


def test_a_push_needs_a_version_and_a_digest(client):
    headers = {"X-Content-SHA256": "0" * 64}
    assert_error(client.send("PUT", "/v1/models/policy", content=b"x", headers=headers), 400, "name a version")
    assert_error(client.send("PUT", "/v1/models/policy@1", content=b"x"), 400, "X-Content-SHA256")
    assert_error(client.send("PUT", "/v1/models/other@1", content=b"x", headers=headers), 404, "", "model_not_found")


def test_weights_swap_between_requests_never_inside_one(client, policy, tokenizer, make_model):
    async def race():
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as http:
            wish = {"model": "policy", "prompt": [[5, 6, 7]] * 8, "max_tokens": 60, "seed": 1, "ignore_eos": True}
            alone = (await http.post("/v1/completions", json=wish)).json()
            running = asyncio.create_task(http.post("/v1/completions", json=wish))
            await asyncio.sleep(0.02)
            data = weights(make_model, 5)
            headers = {"X-Content-SHA256": hashlib.sha256(data).hexdigest()}
            pushed = asyncio.create_task(http.put("/v1/models/policy@1", content=data, headers=headers))
            overlapped = (await running).json()
            assert (await pushed).status_code == 200
            return alone, overlapped, (await http.post("/v1/completions", json=wish)).json()

    alone, overlapped, after = asyncio.run(race())
    if overlapped["model"] == "policy@0":
        assert overlapped["choices"] == alone["choices"]
    assert after["model"] == "policy@1"
    assert after["choices"] != alone["choices"]


def test_concurrent_requests_get_their_own_answers(client):
    async def many():
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as http:
            wishes = [
                {"model": "policy", "prompt": [4 + i, 9], "max_tokens": 3 + i % 7, "seed": i, "return_token_ids": True}
                for i in range(24)
            ]
            together = await asyncio.gather(*(http.post("/v1/completions", json=wish) for wish in wishes))
            alone = [await http.post("/v1/completions", json=wish) for wish in wishes]
            return [(a.json()["choices"][0], b.json()["choices"][0]) for a, b in zip(together, alone, strict=True)]

    for together, alone in asyncio.run(many()):
        assert together["prompt_token_ids"] == alone["prompt_token_ids"]
        assert together["token_ids"] == alone["token_ids"]


def test_too_much_waiting_is_503(client, policy):
    policy.scheduler.max_waiting = 0

    async def crowd():
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as http:
            wish = {"model": "policy", "prompt": "hello", "n": 8, "max_tokens": 200, "ignore_eos": True}
            return await asyncio.gather(*(http.post("/v1/completions", json=wish) for _ in range(12)))

    responses = asyncio.run(crowd())
    assert {r.status_code for r in responses} <= {200, 503}
    refused = [r for r in responses if r.status_code == 503]
    assert all(r.headers["retry-after"] == "1" and r.json()["error"]["code"] == "overloaded" for r in refused)
    assert any(r.status_code == 200 for r in responses)


def test_a_client_that_goes_away_ends_its_samples(client, policy, monkeypatch):
    jobs = []
    submit = policy.scheduler.submit
    monkeypatch.setattr(
        policy.scheduler, "submit", lambda job, version=None: (jobs.append(job), submit(job, version))[1]
    )

    async def leave():
        body = json.dumps({"model": "policy", "prompt": [[5]] * 4, "max_tokens": 250, "ignore_eos": True}).encode()
        received = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"", "query_string": b""}
        scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "server": ("x", 1), "client": ("x", 1)}

        async def receive():
            return received.pop(0)

        async def send(event):
            pass

        await client.app(scope, receive, send)

    asyncio.run(leave())
    jobs[0].finished.result(timeout=30)
    assert all(sample.finish_reason == "cancelled" for sample in jobs[0].samples)
    assert client.complete(prompt="hello").status_code == 200


def test_openapi_describes_what_is_answered(client):
    description = client.send("GET", "/openapi.json").json()
    assert set(description["paths"]) == {
        "/v1/models",
        "/v1/models/{model_id}",
        "/v1/completions",
        "/v1/chat/completions",
    }
    for path in description["paths"].values():
        for operation in path.values():
            assert "422" not in operation["responses"]
            assert operation["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")

"""A stock vLLM server behind POLICY_URL: found out, told off in one line for what it lacks, never trusted blindly."""

import json

import httpx
import pytest
import respx

from posttrain.core.clients import PolicyClient, StaleVersion
from posttrain.core.errors import RequestError, WorkError
from posttrain.core.stock_vllm import StockVllm, connect_policy
from posttrain.core.wire import CONTRACT_HEADER

URL = "http://127.0.0.1:9"


def weights(*names: str) -> bytes:
    header = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()
    return len(header).to_bytes(8, "little") + header


def described(device="cuda", mode="processed_logprobs", chunked=True):
    return {
        "vllm_config": {
            "model_config": {"logprobs_mode": mode},
            "device_config": {"device": device},
            "scheduler_config": {"enable_chunked_prefill": chunked},
        }
    }


class Server:
    """vLLM's developer routes, and what was asked of them."""

    def __init__(self, **config):
        self.held, self.asked, self.fails = "default", [], False
        respx.get(f"{URL}/server_info").respond(json=described(**config))
        respx.get(f"{URL}/weight_info").mock(
            side_effect=lambda _: httpx.Response(200, json={"weight_version": self.held})
        )
        for path in ("pause", "resume", "reset_prefix_cache", "update_weight_version", "collective_rpc"):
            respx.post(f"{URL}/{path}").mock(side_effect=self.answer)
        respx.post(f"{URL}/v1/completions").mock(side_effect=self.complete)

    def answer(self, request):
        body, path = json.loads(request.content), request.url.path
        self.asked.append(path)
        if path == "/collective_rpc" and self.fails:
            return httpx.Response(500, json={"error": {"message": "no such folder"}})
        self.held = body.get("new_version", self.held)
        return httpx.Response(200, json={"success": True})

    def complete(self, request):
        body = json.loads(request.content)
        self.asked.append((body["seed"], body["top_k"], body["repetition_penalty"]))
        logprobs = {"token_logprobs": [-0.5]}
        choice = {"token_ids": [body["prompt"][0][0]], "logprobs": logprobs, "text": "", "finish_reason": "length"}
        choices = [choice | {"index": index} for index in range(body["n"])]
        return httpx.Response(200, json={"model": "m", "choices": choices})


@pytest.fixture
def client():
    client = StockVllm(URL, model="m", patience=1.0)
    yield client
    client.close()


@respx.mock
def test_what_serves_is_found_out_by_its_own_words():
    models = respx.get(f"{URL}/v1/models")
    models.respond(json={"data": [{"id": "policy@0"}]}, headers={CONTRACT_HEADER: "1"})
    assert type(connect_policy(URL)) is PolicyClient
    models.respond(json={"data": [{"id": "lora", "owned_by": "vllm", "parent": "m"}, {"id": "m", "owned_by": "vllm"}]})
    found = connect_policy(URL)
    assert isinstance(found, StockVllm)
    assert found.model == "m"
    models.respond(json={"data": [{"id": "gpt", "owned_by": "somebody"}]})
    with pytest.raises(RequestError, match="neither"):
        connect_policy(URL)


@respx.mock
def test_adapters_go_on_top_of_the_folder_that_the_server_was_started_with(client, tmp_path):
    lora = {"id": "m@3", "owned_by": "vllm", "parent": "m", "root": str(tmp_path)}
    base = {"id": "m", "owned_by": "vllm", "root": str(tmp_path / "start")}
    respx.get(f"{URL}/v1/models").respond(json={"data": [lora, base]})
    held = respx.get(f"{URL}/weight_info")
    for answer, expected in (
        (httpx.Response(404), True),  # nor the routes that change them
        (httpx.Response(200, json={"weight_version": "default"}), True),
        (httpx.Response(200, json={"weight_version": "m@4 0123456789abcdef"}), False),
    ):
        held.mock(return_value=answer)
        assert client.merges_into(tmp_path / "start") is expected
        assert not client.merges_into(tmp_path)


@respx.mock
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"mode": "raw_logprobs"}, "--logprobs-mode processed_logprobs"),
        ({"device": "cpu"}, "--no-enable-chunked-prefill"),
        ({"device": "cpu", "chunked": False}, "tied to the embedding"),
    ],
)
def test_what_a_server_lacks_is_said_in_one_line(client, config, said):
    server = Server(**config)
    with pytest.raises(RequestError, match=said) as refused:
        client.push(1, weights("model.embed_tokens.weight"))
    assert "\n" not in str(refused.value)
    assert server.asked == []


@respx.mock
def test_a_server_without_developer_routes_is_refused_before_training(client):
    respx.get(f"{URL}/server_info").respond(404)
    with pytest.raises(RequestError, match="VLLM_SERVER_DEV_MODE=1"):
        client.refuse_unless_trainable()


@respx.mock
def test_weights_are_loaded_while_nothing_runs_and_named_when_they_are_there(client):
    server = Server()
    client.push(3, weights("model.embed_tokens.weight"))
    name, load = "/update_weight_version", "/collective_rpc"
    assert server.asked == ["/pause", name, load, "/reset_prefix_cache", name, "/resume"]
    assert server.held.startswith("m@3 ")
    client.complete([[4]], version=3, max_tokens=1)


@respx.mock
def test_a_server_that_holds_other_weights_is_stale_even_under_the_same_number(client):
    server = Server()
    with pytest.raises(StaleVersion):
        client.complete([[4]], version=3, max_tokens=1)
    client.push(3, weights("a"))
    server.held = "m@3 of-somebody-else"
    with pytest.raises(StaleVersion, match="somebody"):
        client.complete([[4]], version=3, max_tokens=1)


@respx.mock
def test_a_failed_load_resumes_the_server_and_is_not_tried_again(client):
    server = Server()
    server.fails = True
    with pytest.raises(WorkError, match="no such folder.*TMPDIR"):
        client.push(3, weights("a"))
    assert server.asked[-1] == "/resume"
    server.fails = False
    with pytest.raises(WorkError, match="restart it"):
        client.push(4, weights("a"))


@respx.mock
def test_every_prompt_has_its_own_seed_and_no_default_of_the_checkpoint_applies(client):
    server = Server()
    groups = client.complete([[4], [5], [6]], version=None, n=2, max_tokens=1, seed=1)
    assert [[completion.token_ids for completion in group] for group in groups] == [[[4]] * 2, [[5]] * 2, [[6]] * 2]
    assert len({seed for seed, _, _ in server.asked}) == 3
    assert {asked[1:] for asked in server.asked} == {(0, 1.0)}

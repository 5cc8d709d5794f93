"""The HTTP clients: what heals is retried, what does not is one clear error, and the contract number is checked."""

import hashlib
import json
import time

import httpx
import pytest
import respx

from posttrain.core.clients import JudgeClient, PolicyClient, RewardClient, ServiceUnavailable, StaleVersion
from posttrain.core.errors import ContractError, RequestError, WorkError
from posttrain.core.hashing import digest_weights
from posttrain.core.wire import error_body

URL = "http://127.0.0.1:9"


def choice(index, ids, finish_reason="stop"):
    return {
        "index": index,
        "text": "t",
        "token_ids": ids,
        "logprobs": {"token_logprobs": [-0.5] * len(ids)},
        "finish_reason": finish_reason,
    }


@pytest.fixture
def policy():
    client = PolicyClient(URL, patience=2.0)
    yield client
    client.close()


@respx.mock
def test_completions_come_by_prompt_and_choice_whatever_their_order(policy):
    choices = [choice(i, [i]) for i in (3, 1, 0, 2)]
    respx.post(f"{URL}/v1/completions").respond(json={"model": "policy@4", "choices": choices})
    result = policy.complete([[1], [2]], version=4, n=2, max_tokens=5)
    assert [[completion.token_ids for completion in group] for group in result] == [[[0], [1]], [[2], [3]]]


@respx.mock
def test_request_asks_for_ids_and_the_exact_version(policy):
    route = respx.post(f"{URL}/v1/completions").respond(json={"model": "policy@4", "choices": [choice(0, [7])]})
    policy.complete([[1, 2]], version=4, max_tokens=5, seed=11)
    sent = json.loads(route.calls.last.request.content)
    assert sent["model"] == "policy@4"
    assert sent["prompt"] == [[1, 2]]
    assert (sent["return_token_ids"], sent["logprobs"], sent["seed"], sent["top_p"]) == (True, 0, 11, 1.0)


@respx.mock
def test_service_without_the_version_is_stale(policy):
    respx.post(f"{URL}/v1/completions").respond(404, json=error_body("no policy@4", code="model_not_found"))
    with pytest.raises(StaleVersion, match="no policy@4"):
        policy.complete([[1]], version=4, max_tokens=5)


@respx.mock
def test_answer_by_another_version_is_stale(policy):
    respx.post(f"{URL}/v1/completions").respond(json={"model": "policy@0", "choices": [choice(0, [7])]})
    with pytest.raises(StaleVersion, match="policy@0 instead of policy@4"):
        policy.complete([[1]], version=4, max_tokens=5)


@respx.mock
def test_missing_choices_are_an_error(policy):
    respx.post(f"{URL}/v1/completions").respond(json={"model": "policy@0", "choices": []})
    with pytest.raises(WorkError, match="0 choices for 1 prompts"):
        policy.complete([[1]], version=0, max_tokens=5)


@respx.mock
def test_broken_connections_and_503_are_retried(policy):
    answers = [
        httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("server disconnected"),
        httpx.Response(503, json=error_body("busy")),
        httpx.Response(200, json={"model": "policy@0", "choices": [choice(0, [7])]}),
    ]
    route = respx.post(f"{URL}/v1/completions")
    route.side_effect = answers
    assert policy.complete([[1]], version=0, max_tokens=5)[0][0].token_ids == [7]
    assert route.call_count == 4


@respx.mock
def test_request_that_took_too_long_is_not_asked_again(policy):
    route = respx.post(f"{URL}/v1/completions").respond(504, json=error_body("too long", code="deadline_exceeded"))
    with pytest.raises(WorkError, match="status 504"):
        policy.complete([[1]], version=0, max_tokens=5)
    assert route.call_count == 1


@respx.mock
def test_retry_after_is_waited_for(policy):
    answers = [
        httpx.Response(503, json=error_body("busy"), headers={"Retry-After": "1"}),
        httpx.Response(200, json={"model": "policy@0", "choices": [choice(0, [7])]}),
    ]
    respx.post(f"{URL}/v1/completions").side_effect = answers
    started = time.monotonic()
    policy.complete([[1]], version=0, max_tokens=5)
    assert time.monotonic() - started >= 1


@respx.mock
def test_patience_ends_with_the_address_and_the_reason():
    respx.post(f"{URL}/score").mock(side_effect=httpx.ConnectError("refused"))
    client = RewardClient(URL, patience=0.3)
    with pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1:9 did not answer within 0 s \(ConnectError: refused\)"):
        client.score(["rm"], [{"prompt": "p", "completion": "c"}])


@respx.mock
def test_time_that_the_service_worked_is_not_held_against_it():
    """A request that breaks after it took longer than the patience is asked again."""

    def dies_late(request):
        time.sleep(0.5)
        raise httpx.RemoteProtocolError("server disconnected")

    answers = [dies_late, lambda request: httpx.Response(200, json={"scores": [{"rm": 1.0}], "sources": {}})]
    respx.post(f"{URL}/score").mock(side_effect=lambda request: answers.pop(0)(request))
    client = RewardClient(URL, patience=0.3)
    assert client.score(["rm"], [{"prompt": "p", "completion": "c"}]).scores == [{"rm": 1.0}]


@respx.mock
def test_refusal_is_not_retried_and_says_why(policy):
    route = respx.post(f"{URL}/v1/completions").respond(400, json=error_body("prompt 0 is too long"))
    with pytest.raises(RequestError, match=r"status 400\): prompt 0 is too long"):
        policy.complete([[1]], version=0, max_tokens=5)
    assert route.call_count == 1


@respx.mock
def test_another_contract_number_stops_the_client(policy):
    respx.get(f"{URL}/v1/models").respond(json={"data": []}, headers={"X-Posttrain-Contract": "2"})
    with pytest.raises(ContractError, match="contract 2, this client 1"):
        policy.models()


@respx.mock
def test_service_without_a_contract_number_is_taken(policy):
    respx.get(f"{URL}/v1/models").respond(json={"data": []})
    assert policy.models() == {"data": []}


@respx.mock
def test_pushed_weights_carry_their_digest(policy):
    route = respx.put(f"{URL}/v1/models/policy@3").respond(json={"id": "policy@3", "sha256": "x"})
    policy.push(3, b"weights")
    request = route.calls.last.request
    assert request.content == b"weights"
    # printf weights | sha256sum
    assert request.headers["X-Content-SHA256"] == hashlib.sha256(b"weights").hexdigest()


@respx.mock
def test_a_file_of_weights_is_sent_in_pieces_and_whole_again_after_a_broken_attempt(policy, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(bytes(range(256)) * 10_000)  # three pieces of a MiB
    answers = [httpx.ConnectError("gone"), httpx.Response(503), httpx.Response(200, json={"id": "policy@3"})]
    route = respx.put(f"{URL}/v1/models/policy@3").mock(side_effect=answers)
    policy.push(3, file)
    assert len(route.calls) == 3
    request = route.calls.last.request
    assert request.read() == file.read_bytes()
    assert request.headers["Content-Length"] == "2560000"
    assert "Transfer-Encoding" not in request.headers
    assert request.headers["X-Content-SHA256"] == hashlib.sha256(file.read_bytes()).hexdigest()


@respx.mock
def test_adapters_are_for_the_checkpoint_that_the_service_started_with(policy, tmp_path):
    models = respx.get(f"{URL}/v1/models")
    (tmp_path / "model.safetensors").write_bytes(b"start")
    started_with = hashlib.sha256(b"start").hexdigest()
    for base, expected in ((started_with, True), ("0" * 64, False), ("", False), (None, False)):
        models.respond(json={"data": [{"id": "policy@7", "base_sha256": base}]})
        assert policy.merges_into(tmp_path) is expected
    models.respond(json={"data": [{"id": "policy@7", "base_sha256": ""}]})
    assert not policy.merges_into(tmp_path / "no such folder")


def test_the_digest_of_weights_in_several_files_counts_each_and_its_name(tmp_path):
    first, second = tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model-00002-of-00002.safetensors"
    first.write_bytes(b"a")
    second.write_bytes(b"b")
    before = digest_weights(tmp_path)
    second.write_bytes(b"c")
    assert len({before, digest_weights(tmp_path)}) == 2
    first.write_bytes(b"c")
    second.write_bytes(b"a")
    assert digest_weights(tmp_path) not in ("", before)


@respx.mock
def test_key_from_the_environment_is_sent_as_a_bearer_token(monkeypatch):
    monkeypatch.setenv("POSTTRAIN_API_KEY", "secret")
    route = respx.get(f"{URL}/v1/models").respond(json={"data": []})
    PolicyClient(URL).models()
    assert route.calls.last.request.headers["Authorization"] == "Bearer secret"


@respx.mock
def test_scores_keep_the_order_and_must_be_complete():
    client = RewardClient(URL)
    respx.post(f"{URL}/score").respond(json={"scores": [{"rm": 1.0}], "sources": {"rm": "d"}})
    assert client.score(["rm"], [{"prompt": "p", "completion": "c"}]).scores == [{"rm": 1.0}]
    with pytest.raises(WorkError, match="1 scores for 2 items"):
        client.score(["rm"], [{"prompt": "p", "completion": "c"}] * 2)


def test_malformed_address_is_refused():
    with pytest.raises(RequestError, match="is not a URL"):
        PolicyClient("http://[::1")


def test_proxy_of_the_environment_is_not_used_on_loopback(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert not PolicyClient(URL)._http._mounts
    assert PolicyClient("http://policy.example")._http._mounts


def test_address_without_a_scheme_is_refused():
    with pytest.raises(RequestError, match="must start with http"):
        PolicyClient("localhost:8001")


FAILED = {
    "scores": [{"mine": 0.5}, {"mine": None}],
    "sources": {"mine": "1"},
    "errors": [{"index": 1, "source": "mine", "message": "it raised ValueError"}],
}


@respx.mock
def test_item_that_a_reward_source_failed_on_is_an_error_that_names_it():
    respx.post(f"{URL}/score").respond(json=FAILED)
    with pytest.raises(WorkError, match=r"1 of 2 items: source 'mine' failed on items\[1\]: it raised ValueError"):
        RewardClient(URL).score(["mine"], [{}, {}])


@respx.mock
def test_item_that_a_reward_source_failed_on_may_have_a_score_of_the_callers_choice():
    respx.post(f"{URL}/score").respond(json=FAILED)
    result = RewardClient(URL).score(["mine"], [{}, {}], on_error=-1.0)
    assert result.scores == [{"mine": 0.5}, {"mine": -1.0}]
    assert [(error.index, error.source) for error in result.errors] == [(1, "mine")]


@respx.mock
def test_run_is_waited_for_and_one_that_failed_is_an_error():
    states = [{"state": state, "error": None} for state in ("queued", "running", "done")]
    respx.post(f"{URL}/runs").respond(202, json={"id": "r1"})
    route = respx.get(f"{URL}/runs/r1")
    route.side_effect = [httpx.Response(200, json=state) for state in states]
    client = JudgeClient(URL)
    assert client.submit([{"instruction": "q"}], protocol="alpaca") == {"id": "r1"}
    assert json.loads(respx.calls[0].request.content) == {"comparisons": [{"instruction": "q"}], "protocol": "alpaca"}
    assert client.wait("r1", every=0.01)["state"] == "done"
    assert route.call_count == 3
    route.side_effect = [httpx.Response(200, json={"state": "failed", "error": "the judge is away"})]
    with pytest.raises(WorkError, match="run r1 .* ended as failed: the judge is away"):
        client.wait("r1")

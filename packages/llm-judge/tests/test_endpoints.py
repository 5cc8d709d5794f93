"""Models at an address: found by the server's own list, and asked with the key of its kind only."""

import httpx
import pytest
import respx

from posttrain.core.clients import ServiceUnavailable
from posttrain.core.errors import ContractError, RequestError, WorkError
from posttrain.core.wire import CONTRACT_HEADER
from posttrain.llm_judge.endpoints import base_url, find_endpoint

KEYS = {"POSTTRAIN_API_KEY": "ours", "OPENAI_API_KEY": "theirs"}
POLICY = {"id": "policy@3", "root": "policy", "sha256": "0f"}


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@respx.mock
def found(*, model=None, data=({"id": "first"}, {"id": "second"}), status=200, ours=False, demands=None):
    """What is found at a server, and the keys that it was sent."""

    def answer(request):
        headers = {CONTRACT_HEADER: "1"} if ours else {}
        if demands and request.headers.get("authorization") != f"Bearer {demands}":
            return httpx.Response(401, json={"error": {"message": "no"}}, headers=headers)
        return httpx.Response(status, json={"data": list(data)}, headers=headers)

    route = respx.get("http://host:1/v1/models").mock(side_effect=answer)
    try:
        return find_endpoint("http://host:1", model), [
            call.request.headers.get("authorization") for call in route.calls
        ]
    except Exception as error:
        return error, [call.request.headers.get("authorization") for call in route.calls]


def test_addresses_with_and_without_a_path():
    assert base_url("http://host:1") == base_url("http://host:1/v1/") == "http://host:1/v1"
    assert base_url("https://host/openai/v2") == "https://host/openai/v2"
    with pytest.raises(RequestError, match="has no host"):
        base_url("http://")


def test_the_first_model_or_the_one_that_is_named():
    assert found()[0].model == "first"
    assert found(model="second")[0].model == "second"
    error, _ = found(model="secnd")
    assert isinstance(error, RequestError)
    assert "serves no model 'secnd' (did you mean 'second'?)" in str(error)


def test_a_policy_service_is_asked_for_the_weights_that_it_has_now():
    endpoint, _ = found(data=[POLICY], ours=True)
    assert endpoint.identity == {"url": "http://host:1/v1", "model": "policy@3", "sha256": "0f"}
    assert found(data=[POLICY], ours=True, model="policy")[0] == endpoint


def test_each_kind_of_server_gets_its_own_key_and_only_when_it_asks():
    for ours, key in ((True, "ours"), (False, "theirs")):
        endpoint, sent = found(ours=ours, demands=key)
        assert endpoint.api_key == key
        assert key not in repr(endpoint)
        assert sent == [None, f"Bearer {key}"]
    assert found()[1] == [None]


def test_what_is_wrong_with_a_server_is_said():
    assert "set OPENAI_API_KEY to a valid key" in str(found(demands="other")[0])
    assert "set POSTTRAIN_API_KEY to a valid key" in str(found(demands="other", ours=True)[0])
    assert isinstance(found(status=500)[0], WorkError)
    assert "serves no model" in str(found(data=[])[0])
    assert "is no list of models" in str(found(data=["x"])[0])
    # Not every server lists its models: one that is named is taken at its word.
    assert found(status=404, model="any")[0].model == "any"


@respx.mock
def test_another_contract_and_nobody_there():
    respx.get("http://host:1/v1/models").respond(200, headers={CONTRACT_HEADER: "2"}, json={})
    with pytest.raises(ContractError, match="speaks contract 2"):
        find_endpoint("http://host:1")
    respx.get("http://gone:1/v1/models").mock(side_effect=httpx.ConnectError("refused"))
    with pytest.raises(ServiceUnavailable, match="gone:1/v1 does not answer .*is the server running"):
        find_endpoint("http://gone:1")

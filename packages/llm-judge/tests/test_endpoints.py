"""Models at an address: found by the server's own list, and asked with the key of its kind only."""

import httpx
import pytest
import respx

from posttrain.core.clients import ServiceUnavailable
from posttrain.core.errors import ContractError, RequestError, WorkError
from posttrain.core.wire import CONTRACT_HEADER
from posttrain.llm_judge.endpoints import base_url, find_endpoint
from posttrain.llm_judge.judges.completions import ChatServer
from posttrain.llm_judge.running.limits import Limits

KEYS = {"POSTTRAIN_API_KEY": "ours", "OPENAI_API_KEY": "theirs"}
POLICY = {"id": "policy@3", "root": "policy", "sha256": "0f"}


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@respx.mock
def found(
    *,
    model=None,
    data=({"id": "first"}, {"id": "second"}),
    status=200,
    ours=False,
    demands=None,
    url="http://127.0.0.1:1",
):
    """What is found at a server, and the keys that it was sent."""

    def answer(request):
        headers = {CONTRACT_HEADER: "1"} if ours else {}
        if demands and request.headers.get("authorization") != f"Bearer {demands}":
            return httpx.Response(401, json={"error": {"message": "no"}}, headers=headers)
        return httpx.Response(status, json={"data": list(data)}, headers=headers)

    route = respx.get(f"{url}/v1/models").mock(side_effect=answer)
    try:
        return find_endpoint(url, model), [call.request.headers.get("authorization") for call in route.calls]
    except Exception as error:
        return error, [call.request.headers.get("authorization") for call in route.calls]


@pytest.mark.parametrize(("ours", "variable"), [(True, "POSTTRAIN_API_KEY"), (False, "OPENAI_API_KEY")])
def test_a_key_may_lie_in_a_file(monkeypatch, tmp_path, ours, variable):
    (tmp_path / "key").write_text("from-a-file\n")
    monkeypatch.delenv(variable)
    monkeypatch.setenv(f"{variable}_FILE", str(tmp_path / "key"))
    endpoint, sent = found(ours=ours, demands="from-a-file")
    assert (endpoint.api_key, sent) == ("from-a-file", [None, "Bearer from-a-file"])
    if not ours:
        assert ChatServer(Limits(), base_url="https://judges.example/v1")._key == "from-a-file"


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
    assert endpoint.identity == {"url": "http://127.0.0.1:1/v1", "model": "policy@3", "sha256": "0f"}
    assert found(data=[POLICY], ours=True, model="policy")[0] == endpoint


def test_each_kind_of_server_gets_its_own_key_and_only_when_it_asks():
    for ours, key in ((True, "ours"), (False, "theirs")):
        endpoint, sent = found(ours=ours, demands=key)
        assert endpoint.api_key == key
        assert key not in repr(endpoint)
        assert sent == [None, f"Bearer {key}"]
    endpoint, sent = found()
    assert sent == [None]
    # Nor later, with what is asked.
    assert endpoint.api_key is None
    assert found(status=404, model="any")[0].api_key is None


def test_a_server_that_the_environment_names_beside_the_key_gets_it(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://host:1/v1/")
    assert found(url="http://host:1")[0].api_key == "theirs"
    assert found(url="http://other:1")[0].api_key is None


def test_a_key_does_not_leave_the_machine_unencrypted():
    error, sent = found(url="http://host:1", demands="theirs")
    assert isinstance(error, RequestError)
    assert "OPENAI_API_KEY would travel unencrypted; use https" in str(error)
    assert sent == [None]
    assert found(url="https://host:1", demands="theirs")[0].api_key == "theirs"


@pytest.mark.parametrize("url", ["http://me:secret@host/v1", "https://host/v1?key=secret", "https://host/v1#secret"])
def test_an_address_with_a_secret_is_refused_and_not_repeated(url, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    for what, ask in (("the address", lambda: find_endpoint(url)), ("OPENAI_BASE_URL", lambda: ChatServer(Limits()))):
        with pytest.raises(RequestError, match=f"{what} has a user, .* put the key into OPENAI_API_KEY") as error:
            ask()
        assert "secret" not in str(error.value)


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

"""The chat page's service: models behind it, answers passed on as they come, votes kept as preference pairs."""

import json
import logging

import pytest
from starlette.testclient import TestClient

from packages.lab.tests.fake_chat_server import serving
from posttrain.core.errors import RequestError
from posttrain.data.sources import Source, load_pairs
from posttrain.lab.chat_models import ChatModel, distinct
from posttrain.lab.chat_web import VOTES_PATH, chat_app
from posttrain.llm_judge.endpoints import Endpoint


def model(label, url="http://127.0.0.1:9", key=None):
    return ChatModel(label, Endpoint(f"{url}/v1", "fake", key, "d" * 64, "OPENAI_API_KEY"))


@pytest.fixture
def votes(tmp_path):
    return tmp_path / "runs" / "chat" / "votes.jsonl"


@pytest.fixture
def start(votes):
    """A client of the service for these models; the peer is on loopback."""
    opened = []

    def client(*models, **headers):
        app = chat_app(list(models), votes)
        found = TestClient(app, base_url="http://127.0.0.1:8010", client=("127.0.0.1", 1), headers=headers)
        opened.append(found.__enter__())
        return found

    yield client
    for each in opened:
        each.__exit__(None, None, None)


def a_vote(vote="A", **changed):
    texts = {"A": ("four", "five"), "B": ("five", "four"), "tie": (None, None)}[vote]
    reasons = {"A": ("stop", "length"), "B": ("length", "stop"), "tie": (None, None)}[vote]
    return {
        "id": f"vote-{abs(hash((vote, str(changed)))) % 16**16:016x}",
        "prompt": [{"role": "user", "content": "2 + 2?"}],
        "chosen": texts[0],
        "rejected": texts[1],
        "chosen_finish_reason": reasons[0],
        "rejected_finish_reason": reasons[1],
        "tie": vote == "tie",
        "kind": "chat",
        "vote": vote,
        "answers": [
            {"model": "ours", "served_as": "policy@0", "content": "four", "finish_reason": "stop"},
            {"model": "theirs", "served_as": "fake", "content": "five", "finish_reason": "length"},
        ],
        "temperature": 0.7,
        "voted_at": "2026-01-01T00:00:00.000Z",
        **changed,
    }


def ask(client, label, **more):
    body = {"model": label, "messages": [{"role": "user", "content": "hello"}], **more}
    return client.post("/v1/chat/completions", json=body)


def test_an_answer_is_streamed_from_the_model_that_was_asked(start):
    with serving(lambda _: "left") as one, serving(lambda _: "right") as two:
        client = start(model("ours", one.url), model("theirs", two.url))
        assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == ["ours", "theirs"]
        assert '"right"' in ask(client, "theirs", temperature=0.5, n=3).text
    assert not one.asked
    assert two.asked[0]["model"] == "fake"
    assert two.asked[0]["temperature"] == 0.5
    assert two.asked[0]["stream"] is True
    assert "n" not in two.asked[0]


def test_the_models_key_is_sent_to_it_and_never_to_the_page(start):
    with serving(lambda _: "hello") as server:
        client = start(model("ours", server.url, key="sk-secret"))
        answers = [ask(client, "ours"), client.get("/v1/models"), client.get("/chat")]
    assert server.headers_seen[0]["authorization"] == "Bearer sk-secret"
    assert not any("sk-secret" in answer.text + str(answer.headers) for answer in answers)


def test_the_pages_key_is_not_sent_to_the_model(start, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_API_KEY", "ours-alone")
    with serving(lambda _: "hello") as server:
        client = start(model("ours", server.url), Authorization="Bearer ours-alone")
        assert ask(client, "ours").status_code == 200
    assert "authorization" not in server.headers_seen[0]


def test_with_a_key_the_page_opens_without_it_and_all_else_asks_for_it(start, monkeypatch, votes):
    monkeypatch.setenv("POSTTRAIN_API_KEY", "secret")
    client = start(model("ours"))
    assert client.get("/chat").status_code == client.get("/chat/page.js").status_code == 200
    assert client.get("/v1/models").status_code == ask(client, "ours").status_code == 401
    assert client.post(VOTES_PATH, json=a_vote()).status_code == 401
    assert not votes.exists()


def test_without_a_key_another_host_is_refused(start):
    client = start(model("ours"))
    assert client.get("/chat", headers={"Host": "evil.example"}).status_code == 403


def test_an_unknown_model_and_what_is_no_json_are_refused(start):
    client = start(model("ours"))
    assert ask(client, "other").status_code == 404
    assert client.post(VOTES_PATH, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    for body in (b"{", b"[]", b"[" * 100_000):
        refused = client.post(VOTES_PATH, content=body, headers={"Content-Type": "application/json"})
        assert refused.status_code == 400
        assert set(refused.json()["error"]) == {"message", "type", "code"}


@pytest.mark.parametrize(("status", "seen"), [(400, 400), (404, 404), (500, 500), (401, 502), (403, 502)])
def test_a_models_refusal_comes_through_but_not_as_one_of_the_pages_key(start, status, seen):
    with serving(lambda _: (status, "the context is full")) as server:
        found = ask(start(model("ours", server.url)), "ours")
    assert found.status_code == seen
    assert ("context is full" if seen == status else "does not take the key") in found.json()["error"]["message"]


def test_a_model_that_is_away_is_told(start):
    found = ask(start(model("ours")), "ours")
    assert found.status_code == 502
    assert "ours does not answer" in found.json()["error"]["message"]


def test_votes_are_preference_pairs_and_ties_are_left_out_of_them(start, votes, caplog):
    client = start(model("ours"), model("theirs"))
    for number, vote in enumerate([a_vote("A"), a_vote("tie"), a_vote("B")], start=1):
        assert client.post(VOTES_PATH, json=vote).json() == {"stored": number}
    with caplog.at_level(logging.WARNING):
        pairs = load_pairs(Source(path=str(votes)), seed=0)
    assert "left out 1 rows (1 with a tie)" in caplog.text
    assert sorted((p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in pairs) == [
        ("five", "four"),
        ("four", "five"),
    ]
    assert all(pair["prompt"] == [{"role": "user", "content": "2 + 2?"}] and pair["kind"] == "chat" for pair in pairs)
    tie = json.loads(votes.read_text().splitlines()[1])
    assert tie["tie"] is True
    assert [answer["content"] for answer in tie["answers"]] == ["four", "five"]
    assert tie["weights"] == {"ours": "d" * 64, "theirs": "d" * 64}


def test_a_vote_for_an_answer_cut_at_its_length_does_not_teach_that_it_ended(start, votes):
    client = start(model("ours"), model("theirs"))
    assert client.post(VOTES_PATH, json=a_vote("B")).status_code == 200
    (pair,) = load_pairs(Source(path=str(votes)), seed=0)
    assert pair["chosen"] == [{"role": "assistant", "content": "five", "interrupted": True}]
    assert pair["rejected"] == [{"role": "assistant", "content": "four"}]


def test_only_ties_teach_nothing_and_that_is_said(start, votes):
    start(model("ours"), model("theirs")).post(VOTES_PATH, json=a_vote("tie"))
    with pytest.raises(RequestError, match="no usable pair: 1 with a tie"):
        load_pairs(Source(path=str(votes)), seed=0)


@pytest.mark.parametrize(
    "changed",
    [
        {"chosen": "five", "rejected": "four"},  # not what A said
        {"rejected_finish_reason": "stop"},  # B's was cut
        {"tie": True},
        {"prompt": []},
        {"prompt": [{"role": "assistant", "content": "hello"}]},
        {"answers": []},
        {"vote": "C"},
        {"id": "../../etc"},
        {"more": 1},
    ],
)
def test_a_vote_that_contradicts_itself_is_refused_and_not_stored(start, votes, changed):
    refused = start(model("ours")).post(VOTES_PATH, json=a_vote() | changed)
    assert refused.status_code == 400
    assert "this is no vote" in refused.json()["error"]["message"]
    assert not votes.exists()


def test_votes_go_on_where_an_earlier_chat_ended(start, votes):
    start(model("ours")).post(VOTES_PATH, json=a_vote("A"))
    assert start(model("ours")).get("/v1/models").json()["votes"] == {"path": VOTES_PATH, "stored": 1}


def test_models_of_one_name_are_told_apart():
    assert [each.label for each in distinct([model("nano"), model("nano")])] == ["nano", "nano (2)"]

"""The chat judge against a local server that misbehaves on purpose: what is retried, what is not, what it costs."""

import asyncio
import json
import logging
import math
import time
from email.utils import formatdate

import pytest
from tenacity import wait_none

from posttrain.core.clients import ServiceUnavailable
from posttrain.core.errors import RequestError, WorkError
from posttrain.llm_judge.comparisons import Comparison, Game
from posttrain.llm_judge.judgements import JudgeRefused, judgement_key
from posttrain.llm_judge.judges import completions
from posttrain.llm_judge.judges.chat import TOP_LOGPROBS, ChatJudge, ChatSettings
from posttrain.llm_judge.judges.completions import ChatServer, retry_after
from posttrain.llm_judge.judges.prices import Price
from posttrain.llm_judge.protocols import load_protocol
from posttrain.llm_judge.protocols.verdicts import verdict_line
from posttrain.llm_judge.running.limits import BudgetSpent, Limits, LimitSettings

KEY = "sk-secret-of-the-tests"
GAME = Game(Comparison(questions=("Why?",), answers_a=("Because.",), answers_b=("For a reason.",)), "ab")


class Server:
    """Answers request n as `script(body, n)` says: (status, headers, JSON or bytes), or 'drop' or 'hang'."""

    def __init__(self, script):
        self.script, self.requests, self.headers = script, [], []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _serve(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
                body = json.loads(await reader.readexactly(int(lines["content-length"])))
                self.requests.append(body)
                self.headers.append(lines)
                action = self.script(body, len(self.requests))
                if action == "drop":
                    break
                if action == "hang":
                    await asyncio.sleep(30)
                status, headers, answer = action
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                start = f"HTTP/1.1 {status} x\r\ncontent-type: application/json\r\n{more}content-length: {len(data)}"
                writer.write(start.encode() + b"\r\n\r\n" + data)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def reply(text, top=None, usage=(100, 5), finish="stop"):
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    if top is not None:
        entries = [{"token": token, "logprob": logprob} for token, logprob in top]
        choice["logprobs"] = {"content": [{"token": text, "logprob": top[0][1], "top_logprobs": entries}]}
    body = {"choices": [choice]}
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return 200, {}, body


def refusal(status, message, code=None, headers=None):
    return status, headers or {}, {"error": {"message": message, "type": "x", "code": code}}


def labels(protocol):
    return list(load_protocol(protocol).template.scale)


def verdict(protocol="alpaca", game=GAME):
    """A reply with the last label of the scale, which is a win of the second answer shown."""
    loaded = load_protocol(protocol)
    label = labels(protocol)[-1]
    if loaded.verdict_tokens:
        return label
    return "Said at length.\n" + verdict_line(loaded.render(game).nonce, label)


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch):
    monkeypatch.setattr(completions, "_BACK_OFF", wait_none())
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def decide(script, *, protocol="alpaca", games=(GAME,), limits=None, price=None, timeout=5.0, **settings):
    """The decisions on the games, asked one after the other (or the error of the first that fails), and the server."""

    async def go():
        async with Server(script) as server:
            asked = ChatServer(
                Limits(LimitSettings(**(limits or {}))), base_url=server.url, api_key=KEY, price=price, timeout=timeout
            )
            async with ChatJudge(ChatSettings(model="m", **settings), load_protocol(protocol), asked) as judge:
                decisions = []
                try:
                    for game in games:
                        decisions.append(await judge.decide(game))
                except Exception as error:
                    decisions.append(error)
                return decisions, server, judge

    return asyncio.run(asyncio.wait_for(go(), 60))


def test_verdict_token_with_log_probabilities_gives_a_probability():
    first, second = labels("alpaca")
    # p(second) = 0.6 / (0.6 + 0.2): the rest of the mass is on no label.
    top = [(second, math.log(0.6)), (first, math.log(0.2)), ("the", math.log(0.1))]
    (decision,), server, _ = decide(lambda body, n: reply(second, top), price=Price(input=1, output=10))
    assert decision.label == second
    assert decision.value == pytest.approx(0.75)
    assert (decision.prompt_tokens, decision.completion_tokens) == (100, 5)
    assert decision.cost == pytest.approx(150e-6)
    assert decision.seconds > 0
    sent = server.requests[0]
    assert (sent["logprobs"], sent["top_logprobs"], sent["temperature"]) == (True, TOP_LOGPROBS, 0.0)
    assert server.headers[0]["authorization"] == f"bearer {KEY}"


@pytest.mark.parametrize(
    "refused",
    [
        refusal(403, "You are not allowed to request logprobs from this model"),
        refusal(400, "Unknown parameter: 'top_logprobs'."),
        refusal(501, "logprobs are not implemented"),
    ],
)
def test_log_probabilities_are_given_up_once_for_all(refused, caplog):
    second = labels("alpaca")[-1]
    script = lambda body, n: refused if "logprobs" in body else reply(second)  # noqa: E731
    with caplog.at_level(logging.WARNING):
        decisions, server, _ = decide(script, games=[GAME] * 3)
    assert [decision.value for decision in decisions] == [1.0] * 3
    assert ["logprobs" in request for request in server.requests] == [True, False, False, False]
    assert not any("top_logprobs" in request for request in server.requests[1:])
    assert len(caplog.records) == 1


def test_a_model_that_wants_the_newer_name_of_the_limit_gets_it():
    def script(body, n):
        if "max_tokens" in body:
            return refusal(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return reply(verdict())

    decisions, server, _ = decide(script, games=[GAME] * 2, max_tokens=77)
    assert [decision.value for decision in decisions] == [1.0, 1.0]
    assert [request.get("max_completion_tokens") for request in server.requests] == [None, 77, 77]


def test_what_cannot_be_read_is_asked_once_more_with_a_reminder():
    def script(body, n):
        return reply("Both are fine, I think.") if n == 1 else reply(verdict())

    (decision,), server, _ = decide(script, price=Price(input=1, output=1))
    assert decision.value == 1.0
    assert decision.raw.startswith("Both are fine")
    assert decision.raw.endswith(verdict())
    assert (decision.prompt_tokens, decision.cost) == (200, pytest.approx(210e-6))
    first, second = (request["messages"] for request in server.requests)
    assert second[: len(first)] == first
    assert second[len(first)] == {"role": "assistant", "content": "Both are fine, I think."}
    assert second[-1]["role"] == "user"


def test_what_cannot_be_read_twice_is_unparsed_and_never_guessed():
    (decision,), server, _ = decide(lambda body, n: reply("The second one is better."))
    assert (decision.label, decision.value) == (None, None)
    assert len(server.requests) == 2


@pytest.mark.parametrize("text", [None, "", "   "])
def test_an_empty_reply_is_one_without_a_verdict(text):
    (decision,), server, _ = decide(lambda body, n: reply(text))
    assert decision.label is None
    assert all(message["content"] for message in server.requests[1]["messages"])


def test_a_reply_that_was_cut_has_no_verdict():
    (decision,), _, _ = decide(lambda body, n: reply(verdict("arena_hard"), finish="length"), protocol="arena_hard")
    assert decision.label is None
    (decision,), server, _ = decide(lambda body, n: reply(verdict("arena_hard")), protocol="arena_hard")
    assert decision.value == 1.0
    assert "logprobs" not in server.requests[0]


def test_a_reply_cut_within_a_character_is_kept():
    broken = b'{"choices": [{"message": {"content": "so \\ud83d"}, "finish_reason": "length"}]}'
    (decision,), server, _ = decide(lambda body, n: (200, {}, broken), protocol="arena_hard")
    assert decision.label is None
    assert decision.raw.startswith("so ?")
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "trouble",
    [
        refusal(429, "slow down"),
        refusal(500, "oh"),
        refusal(503, "loading"),
        refusal(408, "late"),
        "drop",
        (200, {}, b"<html>welcome to the proxy</html>"),
        (200, {}, {"error": {"message": "upstream failed"}}),
        (200, {}, b""),
        (200, {}, []),
        (200, {}, {"choices": []}),
        (200, {}, {"choices": [{"message": None}]}),
    ],
)
def test_what_heals_by_itself_is_asked_again(trouble):
    (decision,), server, _ = decide(lambda body, n: trouble if n <= 2 else reply(verdict()))
    assert decision.value == 1.0
    assert len(server.requests) == 3


def test_a_server_that_hangs_is_asked_again():
    (decision,), server, _ = decide(lambda body, n: "hang" if n == 1 else reply(verdict()), timeout=0.5)
    assert decision.value == 1.0
    assert len(server.requests) >= 2


def test_attempts_are_bounded_and_the_last_trouble_is_told():
    (error,), server, _ = decide(lambda body, n: refusal(500, "all is lost"))
    assert isinstance(error, ServiceUnavailable)
    assert "status 500: all is lost" in str(error)
    assert len(server.requests) == completions.ATTEMPTS


def test_a_server_that_is_not_there_is_unavailable():
    async def go():
        judge = ChatJudge(
            ChatSettings(model="m"),
            load_protocol("alpaca"),
            ChatServer(Limits(), base_url="http://127.0.0.1:9/v1", attempts=2),
        )
        async with judge:
            await judge.decide(GAME)

    with pytest.raises(ServiceUnavailable, match="2 attempts"):
        asyncio.run(go())


def test_retry_after_is_waited_for():
    started = time.monotonic()
    script = lambda body, n: refusal(429, "slow", headers={"Retry-After": "0.6"}) if n == 1 else reply(verdict())  # noqa: E731
    (decision,), _, _ = decide(script)
    assert decision.value == 1.0
    assert decision.seconds >= 0.6
    assert time.monotonic() - started < 30


def test_retry_after_is_a_number_or_a_date_and_not_believed_beyond_a_minute():
    assert retry_after({"Retry-After": "2"}) == 2.0
    assert retry_after({"Retry-After": "86400"}) == 60.0
    assert retry_after({"Retry-After": "-3"}) == 0.0
    assert retry_after({"Retry-After": "nan"}) == 0.0
    assert retry_after({"Retry-After": "soon"}) == 0.0
    assert retry_after({}) == 0.0
    assert 3 <= retry_after({"Retry-After": formatdate(time.time() + 5, usegmt=True)}) <= 5


@pytest.mark.parametrize(
    ("refused", "kind", "says"),
    [
        (refusal(401, f"Incorrect API key provided: {KEY}"), JudgeRefused, "OPENAI_API_KEY"),
        (refusal(403, "not in your country"), JudgeRefused, "not in your country"),
        (refusal(404, "The model `m` does not exist"), JudgeRefused, "does not exist"),
        (refusal(429, "You exceeded your quota", "insufficient_quota"), JudgeRefused, "quota"),
        (refusal(400, "maximum context length is 10"), WorkError, "maximum context length"),
        (refusal(413, f"too large, {KEY}"), WorkError, "too large"),
        (refusal(422, "no"), WorkError, "status 422"),
    ],
)
def test_what_cannot_heal_is_told_at_once_and_never_with_the_key(refused, kind, says):
    (error,), server, _ = decide(lambda body, n: refused)
    assert type(error) is kind
    assert says in str(error)
    assert KEY not in str(error)
    assert len(server.requests) == 1


def test_without_usage_tokens_are_estimated():
    (decision,), _, judge = decide(lambda body, n: reply(verdict(), usage=None))
    assert 0.5 < decision.prompt_tokens / judge.expected(GAME)[0] < 2
    assert decision.completion_tokens >= 1


def test_expected_tokens_and_cost_go_with_the_length_of_the_texts():
    _, _, judge = decide(lambda body, n: reply(verdict()), price=Price(input=1, output=100), max_tokens=7)
    long = Game(Comparison(questions=("q" * 400,), answers_a=("a" * 4000,), answers_b=("b" * 4,)), "ab")
    prompt, completion, cost = judge.expected(long)
    assert prompt - judge.expected(GAME)[0] == pytest.approx(1100, abs=10)
    assert completion == 7
    assert cost == pytest.approx(judge.server.price.cost(prompt, 7))
    _, _, unpriced = decide(lambda body, n: reply(verdict()))
    assert unpriced.expected(GAME)[2] is None


def test_money_ends_before_the_request_that_may_exceed_it():
    price = Price(input=0, output=1_000_000)  # a unit a token of the answer
    decisions, server, _ = decide(
        lambda body, n: reply(verdict(), usage=(1, 3)),
        games=[GAME] * 9,
        limits={"max_cost": 20},
        price=price,
        max_tokens=5,
    )
    # 3 a game; before the sixth, 15 are spent and 5 more fit exactly; before the seventh they do not.
    assert len(server.requests) == 6
    assert isinstance(decisions[-1], BudgetSpent)


def test_identity_is_what_defines_verdicts_and_holds_neither_key_nor_address():
    _, server, plain = decide(lambda body, n: reply(verdict()))
    said = json.dumps(plain.identity)
    assert KEY not in said
    assert server.url not in said
    _, _, judge = decide(lambda body, n: reply(verdict()), sha256="d1")
    _, _, other = decide(lambda body, n: reply(verdict()), sha256="d1")
    assert judgement_key(judge.identity, GAME) == judgement_key(other.identity, GAME)
    for change in ({"temperature": 1.0}, {"max_tokens": 9}, {"seed": 1}, {"extra": {"reasoning_effort": "low"}}):
        _, _, changed = decide(lambda body, n: reply(verdict()), **{"sha256": "d1", **change})
        assert judgement_key(changed.identity, GAME) != judgement_key(judge.identity, GAME)
    _, _, asked = decide(lambda body, n: reply(verdict("arena_hard")), protocol="arena_hard", sha256="d1")
    assert judgement_key(asked.identity, GAME) != judgement_key(judge.identity, GAME)


def test_models_of_one_name_are_told_apart_by_their_weights_or_their_servers():
    judges = [decide(lambda body, n: reply(verdict()), sha256=weights)[2] for weights in ("d1", "d2", None, None)]
    assert len({judgement_key(judge.identity, GAME) for judge in judges}) == 4


def test_a_model_of_openai_has_neither_weights_nor_a_server_in_its_identity(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    judge = ChatJudge(ChatSettings(model="m"), load_protocol("alpaca"), ChatServer(Limits()))
    assert set(judge.identity) == {"judge", "request", "protocol"}


def test_extra_fields_and_what_is_left_out_reach_the_server():
    _, server, _ = decide(lambda body, n: reply(verdict()), temperature=None, seed=3, extra={"reasoning_effort": "low"})
    sent = server.requests[0]
    assert "temperature" not in sent
    assert (sent["seed"], sent["reasoning_effort"]) == (3, "low")


def test_key_and_address_come_from_the_environment(monkeypatch):
    with pytest.raises(RequestError, match=r"api\.openai\.com.* needs a key; set OPENAI_API_KEY"):
        ChatServer(Limits())
    with pytest.raises(RequestError, match="http://"):
        ChatServer(Limits(), base_url="localhost:1")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://judges.example/v1")
    with pytest.raises(RequestError, match="judges.example"):
        ChatServer(Limits())
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert ChatServer(Limits()).url == "https://judges.example/v1"


def test_nothing_of_key_or_answers_is_logged_at_the_default_level(caplog):
    with caplog.at_level(logging.INFO):
        decide(lambda body, n: refusal(500, "oh") if n == 1 else reply(verdict()))
    text = caplog.text
    assert KEY not in text
    assert "Because." not in text

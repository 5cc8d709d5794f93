"""A reward source as judge: the field's formula, few requests, each answer scored once, a bad one alone."""

import asyncio
import json
import math

import httpx
import pytest
import respx

from posttrain.core.clients import RewardClient, ServiceUnavailable
from posttrain.core.errors import RequestError, WorkError
from posttrain.llm_judge.comparisons import Comparison, Game
from posttrain.llm_judge.judgements import JudgeRefused
from posttrain.llm_judge.judges.reward import RewardJudge, verdict

URL = "http://127.0.0.1:9123"


class Service:
    """Scores an answer by its number of characters; refuses 'refused', fails on 'failing'."""

    def __init__(self, mock):
        self.digest, self.requests, self.away = "d1", [], False
        mock.get(f"{URL}/v1/sources").mock(
            side_effect=lambda _: httpx.Response(200, json={"sources": {"rm": self.digest}})
        )
        mock.post(f"{URL}/score").mock(side_effect=self.score)

    def score(self, request):
        if self.away:
            raise httpx.ConnectError("refused")
        items = json.loads(request.content)["items"]
        self.requests.append(items)
        for index, item in enumerate(items):
            if item["completion"] == "refused":
                return httpx.Response(400, json={"error": {"message": f"items[{index}] is too long"}})
        scores = [{"rm": float(len(item["completion"])) if item["completion"] != "failing" else None} for item in items]
        failed = [index for index, item in enumerate(items) if item["completion"] == "failing"]
        errors = [{"index": index, "source": "rm", "message": "it raised"} for index in failed]
        return httpx.Response(200, json={"scores": scores, "sources": {"rm": self.digest}, "errors": errors})


@pytest.fixture
def service():
    with respx.mock(assert_all_called=False) as mock:
        yield Service(mock)


def game(a, b, order="ab", **more):
    return Game(Comparison(questions=("q",), answers_a=(a,), answers_b=(b,), **more), order)


def decide(games, scale="model", before=lambda: None):
    async def go():
        async with RewardJudge(RewardClient(URL, patience=0.1), "rm", scale) as judge:
            before()
            return await asyncio.gather(*map(judge.decide, games), return_exceptions=True)

    return asyncio.run(asyncio.wait_for(go(), 30))


def test_preference_is_the_logistic_of_the_difference():
    # σ(ln 3) = 3/4: a difference of ln 3 are odds of three to one.
    assert verdict([0.0, math.log(3)], "model") == ("second", pytest.approx(0.75))
    assert verdict([math.log(3), 0.0], "model") == ("first", pytest.approx(0.25))
    assert verdict([2.0, 2.0], "model") == ("tie", 0.5)
    assert verdict([0.0, 5000.0], "model")[1] == 1.0
    assert verdict([5000.0, 0.0], "model")[1] == 0.0


def test_a_verifier_decides_by_the_sign_alone():
    assert [verdict(pair, "verifier")[1] for pair in ([0, 1.2], [1.2, 0.2], [0.2, 0.2])] == [1.0, 0.0, 0.5]
    assert verdict([0.7], "verifier") == ("grade", 0.7)


def test_both_orders_mirror_each_other_and_cost_one_score_an_answer(service):
    ab, ba = decide([game("four", "five!"), game("four", "five!", "ba")])
    assert ab.value == pytest.approx(1 / (1 + math.exp(-1)))
    assert ab.value + ba.value == pytest.approx(1)
    assert json.loads(ab.raw) == {"scores": [4.0, 5.0]}
    assert sum(len(items) for items in service.requests) == 2


def test_concurrent_games_share_requests(service):
    decisions = decide([game("x" * n, "y" * (n + 1)) for n in range(1, 401)])
    assert all(decision.label == "second" for decision in decisions)
    assert sum(len(items) for items in service.requests) == 800
    assert len(service.requests) <= 6


def test_a_refused_or_failing_answer_costs_only_its_own_game(service):
    games = [game("a" * n, "b" * (n + 1)) for n in range(1, 65)]
    *good, refused, failing = decide([*games, game("a", "refused"), game("failing", "bb")])
    assert [decision.label for decision in good] == ["second"] * 64
    assert len(service.requests) < 20
    assert isinstance(refused, WorkError)
    assert "too long" in str(refused)
    assert isinstance(failing, WorkError)
    assert "it raised" in str(failing)


def test_an_answer_that_failed_may_be_asked_again(service):
    async def go():
        async with RewardJudge(RewardClient(URL), "rm") as judge:
            with pytest.raises(WorkError):
                await judge.decide(game("a", "failing"))
            with pytest.raises(WorkError):
                await judge.decide(game("a", "failing"))

    asyncio.run(go())
    assert [len(items) for items in service.requests] == [2, 1]


def test_who_is_cancelled_does_not_take_the_score_of_others(service):
    async def go():
        async with RewardJudge(RewardClient(URL), "rm") as judge:
            first, second = (asyncio.create_task(judge.decide(game("a", "bb"))) for _ in range(2))
            await asyncio.sleep(0.001)
            first.cancel()
            return await second

    assert asyncio.run(go()).label == "second"


def test_another_model_behind_the_same_name_is_noticed(service):
    def change():
        service.digest = "d2"

    (error,) = decide([game("a", "b")], before=change)
    assert isinstance(error, JudgeRefused)


def test_identity_has_the_digest_and_an_unknown_source_is_told(service):
    judge = RewardJudge(RewardClient(URL), "rm", "verifier")
    assert judge.identity == {"judge": "reward", "source": "rm", "digest": "d1", "scale": "verifier"}
    assert judge.expected(game("a", "b")) == (0, 0, 0.0)
    # Unless told, by what it is: a verifier's version is a number.
    assert RewardJudge(RewardClient(URL), "rm").scale == "model"
    service.digest = "3"
    assert RewardJudge(RewardClient(URL), "rm").scale == "verifier"
    with pytest.raises(RequestError, match=r"no source 'rn' \(choose from: rm\)"):
        RewardJudge(RewardClient(URL), "rn")


def test_a_service_that_is_away_is_unavailable(service):
    def leave():
        service.away = True

    (error,) = decide([game("a", "b")], before=leave)
    assert isinstance(error, ServiceUnavailable)


def test_the_service_sees_the_conversation_and_the_reference(service):
    comparison = Comparison(
        history=({"role": "system", "content": "be brief"},),
        questions=("one?", "two?"),
        answers_a=("1", "2"),
        answers_b=("eins", "zwei"),
        reference='{"gsm8k": "42"}',
    )
    decide([Game(comparison, "ba"), Game(comparison, "a", turn=1), game("a", "b", reference="plain")])
    items = [item for request in service.requests for item in request]
    assert items[0] == {
        "prompt": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "one?"},
            {"role": "assistant", "content": "eins"},
            {"role": "user", "content": "two?"},
        ],
        "completion": "zwei",
        "reference": {"gsm8k": "42"},
    }
    assert items[2]["prompt"][1:] == [{"role": "user", "content": "one?"}]
    assert items[2]["completion"] == "1"
    assert items[3]["reference"] == "plain"


def test_a_cut_answer_is_scored_without_an_end_and_is_another_game(service):
    whole, cut = game("a", "bb"), game("a", "bb", cut_b=True)
    decide([cut, Game(cut.comparison, "ba")])
    items = [item for request in service.requests for item in request]
    assert {item["completion"]: item.get("finish_reason", "stop") for item in items} == {"a": "stop", "bb": "length"}
    assert "cut" not in whole.definition()
    assert cut.definition() == {**whole.definition(), "cut": [False, True]}
    assert Game(cut.comparison, "ba").definition()["cut"] == [True, False]


def test_only_the_last_answer_of_a_conversation_can_be_cut():
    two = Comparison(questions=("q", "r"), answers_a=("a", "b"), answers_b=("c", "d"), cut_a=True)
    assert "cut" not in Game(two, "ab", turn=1).definition()
    assert Game(two, "ab").definition()["cut"] == [True, False]

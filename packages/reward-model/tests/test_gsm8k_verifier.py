"""The GSM8K reward, by hand and over the gold answers of the real GSM8K."""

import json
import os
from pathlib import Path

import pytest

from posttrain.core.errors import RequestError
from posttrain.reward_model.verifiers import BY_KIND, GSM8K
from posttrain.reward_model.verifiers.gsm8k import gold_answer
from posttrain.reward_model.verifiers.numbers import number_value

DATA = Path(os.environ.get("POSTTRAIN_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("2 + 2 = 4\n#### 4", 1.2),
        ("<answer>4.0</answer>", 1.2),
        ("It is 4.", 1.0),
        ("#### 4 because", 1.0),
        ("#### 5", 0.2),
        ("It is 5.", 0.0),
        ("", 0.0),
    ],
)
def test_reward_is_correct_plus_a_fifth_for_form(completion: str, reward: float):
    assert GSM8K.score("2+2?", completion, {"gsm8k": "4"}) == reward


@pytest.mark.parametrize(
    "reference", ["1,000", 1000, 1000.0, "$1000", {"gsm8k": "10 * 100 = 1000\n#### 1,000"}, {"answer": "1000"}]
)
def test_gold_may_be_a_number_a_text_or_a_solution(reference: object):
    GSM8K.check(reference)
    assert GSM8K.score("", "#### 1000", reference) == 1.2


@pytest.mark.parametrize(
    "reference",
    [None, True, "", "four", {}, {"gsm8k": None}, {"gsm8k": "none"}, [4], float("nan"), float("inf"), 10**200],
)
def test_a_reference_without_a_number_is_refused(reference: object):
    with pytest.raises(RequestError, match="gold answer"):
        GSM8K.check(reference)


def _gold_solutions() -> list[str]:
    path = DATA / "openai/gsm8k/main/test.jsonl"
    if not path.exists():
        pytest.skip("needs the real GSM8K: set POSTTRAIN_DATA to a folder that holds openai/gsm8k/main/test.jsonl")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["answer"] for _, line in zip(range(1000), lines, strict=False)]


def test_every_gold_solution_of_the_real_gsm8k_is_right_and_well_formed():
    solutions = _gold_solutions()
    assert len(solutions) == 1000
    assert {BY_KIND.score("", solution, {"gsm8k": solution}) for solution in solutions} == {1.2}


def test_no_altered_answer_of_the_real_gsm8k_is_right():
    for solution in _gold_solutions():
        gold = number_value(gold_answer(solution))
        assert gold is not None
        steps = solution.rpartition("####")[0]
        for wrong in (gold + 1, -gold - 1, gold * 10 + 5, gold + 1 / 2**4):
            assert GSM8K.score("", f"{steps}#### {float(wrong)}", solution) == 0.2

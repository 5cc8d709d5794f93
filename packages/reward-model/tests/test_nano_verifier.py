"""The nano lab's gold rewards: strict match of problems, share of obeyed instructions, and the choice by kind."""

import pytest

from posttrain.core.errors import RequestError
from posttrain.reward_model.verifiers import BY_KIND, GSM8K, NANO

NO_COMMA = {"id": "punctuation:no_comma", "kwargs": {}}
LOWER = {"id": "case:lower", "kwargs": {}}


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("#### 12", 1),
        ("steps\n#### 12.0", 1),
        ("#### 12.", 1),
        ("#### 13", 0),
        ("12", 0),
        ("#### 13\n#### 12", 0),
        ("", 0),
    ],
)
def test_problem_needs_the_right_number_after_the_first_marker(completion: str, reward: float):
    assert NANO.score("", completion, {"answer": "12"}) == reward


@pytest.mark.parametrize(("completion", "reward"), [("a b", 1.0), ("a, b", 0.5), ("A, B", 0.0), ("", 0.0)])
def test_instructions_give_the_share_that_is_obeyed(completion: str, reward: float):
    assert NANO.score("", completion, {"instructions": [NO_COMMA, LOWER]}) == reward


@pytest.mark.parametrize(
    "reference",
    [
        None,
        "12",
        {},
        {"answer": "twelve"},
        {"answer": None},
        {"instructions": []},
        {"instructions": "no_comma"},
        {"instructions": [{}]},
        {"instructions": [{"id": "no:such", "kwargs": {}}]},
        {"instructions": [{"id": [], "kwargs": {}}]},
        {"instructions": [{"id": "start:word", "kwargs": {}}]},
        {"instructions": [{"id": "start:word", "kwargs": {"word": 3}}]},
        {"instructions": [{"id": "start:word", "kwargs": []}, {"id": "start:word", "kwargs": [1]}]},
    ],
)
def test_a_wrong_reference_is_refused_before_scoring(reference: object):
    with pytest.raises(RequestError, match="reference"):
        NANO.check(reference)
    with pytest.raises(RequestError, match="reference"):
        BY_KIND.check(reference)


def test_verifier_scores_each_item_by_the_kind_of_its_reference():
    assert BY_KIND.score("", "#### 12", {"answer": "12"}) == NANO.score("", "#### 12", {"answer": "12"}) == 1.0
    assert BY_KIND.score("", "#### 12", {"gsm8k": "12"}) == GSM8K.score("", "#### 12", "12") == 1.2
    assert BY_KIND.score("", "a, b", {"instructions": [NO_COMMA]}) == 0.0


def test_a_reference_of_two_kinds_is_refused():
    with pytest.raises(RequestError, match="exactly one of the keys gsm8k, answer, instructions"):
        BY_KIND.check({"gsm8k": "12", "answer": "12"})

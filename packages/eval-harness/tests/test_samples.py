"""Claims about pass@k and maj@k: hand-made numbers, brute force over all choices, and an evaluation by them."""

from collections import Counter
from fractions import Fraction
from itertools import combinations
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.core.errors import RequestError
from posttrain.eval_harness.evaluation import evaluate
from posttrain.eval_harness.result import clustered_standard_error
from posttrain.eval_harness.samples import Samples, maj_at_k, pass_at_k


def test_pass_at_k_by_hand():
    # One right of four: two of them hold it in 3 of 6 choices; with three wrong, four hold it for certain.
    assert pass_at_k(4, 1, 2) == pytest.approx(1 / 2)
    assert pass_at_k(4, 1, 1) == pytest.approx(1 / 4)
    assert pass_at_k(4, 1, 4) == 1.0
    assert pass_at_k(4, 0, 4) == 0.0


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_product_of_the_papers_code(numbers):
    n, correct, k = numbers
    missed = Fraction(1)
    for i in range(n - correct + 1, n + 1):
        missed *= 1 - Fraction(k, i)
    expected = 1 if n - correct < k else 1 - missed
    assert pass_at_k(n, correct, k) == pytest.approx(float(expected), abs=1e-12)


def test_maj_at_k_by_hand():
    # Two of a, a, b with a right: {a, a} wins, {a, b} twice is a tie: (1 + ½ + ½) / 3.
    assert maj_at_k(["a", "a", "b"], [True, True, False], 2) == pytest.approx(2 / 3)
    # Against two different wrong answers one right one ties three ways.
    assert maj_at_k(["a", "b", "c"], [True, False, False], 3) == pytest.approx(1 / 3)
    # What gives no answer has no vote; nobody's vote is nobody's answer.
    assert maj_at_k(["a", None, None], [True, False, False], 3) == 1.0
    assert maj_at_k([None, None], [False, False], 2) == 0.0
    # 1,000 and 1000, both accepted, vote together.
    assert maj_at_k(["1,000", "1000", "7", "7"], [True, True, False, False], 4) == pytest.approx(1 / 2)


def brute_force(votes, right, k):
    total = 0.0
    for choice in combinations(range(len(votes)), k):
        counts = Counter(
            "right" if right[i] else ("wrong", votes[i]) for i in choice if right[i] or votes[i] is not None
        )
        most = max(counts.values(), default=0)
        winners = [answer for answer, count in counts.items() if count == most]
        total += ("right" in winners) / len(winners) if winners else 0
    return total / comb(len(votes), k)


@given(st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=8), st.data())
def test_maj_at_k_is_the_mean_over_all_choices(votes, data):
    k = data.draw(st.integers(1, len(votes)))
    right = [vote in ("a", "d") for vote in votes]
    assert maj_at_k(votes, right, k) == pytest.approx(brute_force(votes, right, k))


def test_maj_at_1_and_pass_at_1_are_the_share_of_right_samples():
    right = [True, False, False, True, False]
    assert maj_at_k(list("abcad"), right, 1) == pytest.approx(0.4)
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ({"n": 0}, "--samples 0"),
        ({"n": 4, "temperature": 0.0}, "4 times the same answer"),
        ({"n": 4, "pass_at": (8,)}, "--pass-at 8 needs as many samples"),
        ({"n": 4, "maj_at": (0,)}, "--maj-at 0"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(wish, complaint):
    with pytest.raises(RequestError, match=complaint):
        Samples(**wish)


PROBLEMS = [{"id": f"p{n}", "question": f"Item {n}?", "answer": f"#### 4{n}"} for n in range(3)]
ANSWERS = {
    "p0": ["#### 40", "#### 40", "#### 9", "none"],
    "p1": ["#### 1", "#### 2", "#### 2", "#### 41"],
    "p2": [""] * 4,
}


def test_an_items_samples_are_graded_one_by_one_and_errors_count_items(scripted, nano_items):
    nano_items(PROBLEMS)
    left = {name: list(texts) for name, texts in ANSWERS.items()}
    model = scripted(say=lambda doc: left[doc["id"]].pop(0))
    for number in range(3):
        model.sample_reasons["nano_problems", number] = ["stop"] * 4
    task = evaluate("unused", ["nano_problems"], samples=Samples(4, 0.7, (1, 2), (4,), 5))["nano_problems"]
    assert task.backend == "hf, 4 samples at temperature 0.7, seed 5"
    assert [item["score"] for item in task.items] == [0.5, 0.25, 0.0]
    passed = [item["scores"]["pass@2"] for item in task.items]
    assert passed == pytest.approx([5 / 6, 1 / 2, 0])
    assert [item["scores"]["maj@4"] for item in task.items] == [1.0, 0.0, 0.0]
    assert task.metrics["pass@2"].value == pytest.approx(sum(passed) / 3)
    assert task.metrics["pass@2"].standard_error == pytest.approx(clustered_standard_error(passed, "abc"))
    assert task.items[1]["samples"][3] == {
        "text": "#### 41", "prediction": "41", "score": 1.0, "finish_reason": "stop",
    }  # fmt: skip


def test_tasks_of_given_answers_are_refused(scripted):
    scripted()
    with pytest.raises(RequestError, match="a sampled answer has no likelihoods"):
        evaluate("unused", ["nano_choice"], samples=Samples(2))


def test_groups_are_refused_for_their_value_would_be_of_one_sample(scripted, tmp_path):
    scripted()
    (tmp_path / "pair.yaml").write_text("group: pair\ntask: [nano_problems, nano_instructions]\n")
    with pytest.raises(RequestError, match="pair is a group: name its tasks"):
        evaluate("unused", ["pair"], samples=Samples(2), include_path=tmp_path)


def test_samples_of_a_checkpoint_depend_on_seed_and_item_alone(tiny_checkpoint):
    def texts(seed, limit, batch_size=64):
        task = evaluate(
            tiny_checkpoint,
            ["nano_problems"],
            limit=limit,
            samples=Samples(3, 1.0, seed=seed),
            max_gen_toks=8,
            batch_size=batch_size,
        )["nano_problems"]
        return [[sample["text"] for sample in item["samples"]] for item in task.items]

    first = texts(0, 4)
    assert texts(0, 2, batch_size=2) == first[:2]
    assert texts(1, 2) != first[:2]
    assert all(len(set(item)) > 1 for item in first)

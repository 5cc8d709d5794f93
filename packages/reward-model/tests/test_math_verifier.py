r"""The MATH reward: the boxed answer, equal but for spelling."""

import time
from pathlib import Path

import pytest

from posttrain.core.errors import RequestError
from posttrain.data.sources import Source, load_conversations, load_prompts
from posttrain.reward_model.verifiers import BY_KIND, MATH
from posttrain.reward_model.verifiers.math import equivalent, normalise

SAME = [
    ("3", "3"),
    (r"\frac{1}{2}", r"\dfrac{1}{2}"),
    (r"\frac12", r"\tfrac{1}{2}"),
    (r"\frac{1}2", "1/2"),
    (r"\frac ab", r"\frac{a}{b}"),
    (r"\frac{1}{2}", "0.5"),
    (r"-\frac{1}{2}", "-.50"),
    ("1,000", "1000"),
    ("1{,}000", "1000"),
    (r"\$18.90", "18.9"),
    (r"50\%", "50"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", "90"),
    (r"5\text{ cm}", "5"),
    (r"10\mbox{ feet}", "10"),
    (r"7\text{ cm}^2", "7"),
    (r"7\text{ cm}^{2}", "7"),
    (r"\text{even}", "even"),
    (r"\left( 1, 2 \right)", "(1,2)"),
    (r"x = 5", "5"),
    (r"\sqrt3", r"\sqrt{3}"),
    (r"2\,000", "2000"),
    ("3.", "3"),
    (r"\begin{pmatrix} -7 \\ 16 \\ 5 \end{pmatrix}", r"\begin{pmatrix}-7\\16\\5\end{pmatrix}"),
    (r"\begin{pmatrix} a \\ b \end{pmatrix}", r"\begin{pmatrix}a\\b\end{pmatrix}"),
    (r"\frac{\sqrt3}{2}", r"\frac{\sqrt{3}}2"),
    (r"\frac{2\sqrt{3}}3", r"\dfrac{2\sqrt{3}}{3}"),
]
OTHER = [
    ("3", "4"),
    (r"\frac{1}{2}", r"\frac{1}{3}"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("x+1", "1+x"),  # no algebra, as in the benchmark's own comparison
    (r"\text{cm}", r"\text{m}"),
    ("a=1", "b=2"),
    ("", ""),
    (r"\leftarrow", "arrow"),
    (r"\begin{pmatrix}1\\23\end{pmatrix}", r"\begin{pmatrix}12\\3\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_spelling_does_not_matter(a, b):
    assert equivalent(a, b)
    assert equivalent(b, a)


@pytest.mark.parametrize(("a", "b"), OTHER)
def test_what_differs_differs(a, b):
    assert not equivalent(a, b)


@pytest.mark.parametrize("answer", [answer for pair in SAME for answer in pair])
def test_normalising_twice_changes_nothing_more(answer):
    assert normalise(normalise(answer)) == normalise(answer)


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (r"So $x = \boxed{\frac{1}{2}}$.", 1.0),
        (r"\boxed{3} no, \boxed{0.5}", 1.0),
        (r"\boxed{0.5} no, \boxed{3}", 0.0),
        ("The answer is 1/2.", 0.0),
        (r"\boxed{", 0.0),
        ("", 0.0),
    ],
)
def test_the_last_box_is_what_counts(completion, reward):
    assert MATH.score("", completion, {"math": r"\frac{1}{2}"}) == reward
    assert BY_KIND.score("", completion, {"math": r"\frac{1}{2}"}) == reward


@pytest.mark.parametrize("reference", [None, 3, "", " ", {"answer": "3"}, {"math": 3}, []])
def test_a_reference_without_an_answer_is_refused(reference):
    with pytest.raises(RequestError, match="must hold a gold answer as text"):
        MATH.check(reference)


def test_the_gold_answers_of_the_data_are_right_and_others_are_not(monkeypatch):
    monkeypatch.setenv("POSTTRAIN_DATA", str(Path(__file__).resolve().parents[3] / "tests" / "fixtures" / "hub"))
    source = Source(path="hendrycks/competition_math", split="test")
    golds = {row["id"]: row["reference"] for row in load_prompts(source, 0)}
    for row in load_conversations(source, 0):
        assert MATH.score("", row["messages"][1]["content"], golds[row["id"]]) == 1.0
        assert MATH.score("", r"\boxed{-12345}", golds[row["id"]]) == 0.0


def test_hostile_answers_cost_little():
    pieces = [r"\text{", r"\frac", r"\frac{1}", "{", " ", r"\sqrt ", "=", "1/", r"\left", "$", r"\frac{" + "1" * 400]
    begin = time.process_time()
    for piece in pieces:
        for length in (490, 200_000):
            answer = (piece * (length // len(piece) + 1))[:length]
            assert MATH.score("", rf"\boxed{{{answer}}}", {"math": "3"}) == 0.0
    assert time.process_time() - begin < 5

"""Claim: the task gsm8k_climb and the verifier gsm8k call the same answers right, though neither imports the other."""

from hypothesis import example, given
from hypothesis import strategies as st

from posttrain.eval_harness.tolerant import answer_of, extract, grade
from posttrain.reward_model.verifiers import gsm8k
from posttrain.reward_model.verifiers.answers import extract_answer

PIECES = ["<answer>", "</answer>", "#### ", "####", "\n", " ", "-", "$", "€", "1,000", "1,00", "12", "3.5", ".5", "1e3",
          "1e400", "/4", "/0", "%", "−7", "x", "(2)", "four", ",", "."]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@example("<answer>12</answer>4</answer>")
def test_both_find_the_same_answer(text):
    assert answer_of(text) == extract_answer(text)


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.sampled_from(["12", "1,000", "-7", "3.5", "1/4"]))
def test_both_call_the_same_texts_right(text, gold):
    ((taken,),) = extract([[text]], [{}])
    right = grade({"answer": f"so\n#### {gold}"}, [taken])["exact_match"]
    assert (gsm8k.reward("", text, {"gsm8k": gold}) >= 1.0) == bool(right)

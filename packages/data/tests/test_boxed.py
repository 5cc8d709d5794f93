r"""The answer in a solution's last `\boxed{…}`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.boxed import last_boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so $x = \boxed{3}$.", "3"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\fbox{7}", "7"),
        (r"\boxed { 4 }", "4"),
        (r"the answer is $\boxed 3$.", "3"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\text{(A)}} is right {not this}", r"\text{(A)}"),
        (r"\boxed{}", None),
        (r"\boxed{1 and no end", None),
        (r"\boxedness{1}", None),
        ("nothing", None),
        (r"\boxed", None),
    ],
)
def test_the_last_box_is_the_answer(text, answer):
    assert last_boxed(text) == answer


NESTED = st.recursive(st.sampled_from(["a", "1", r"\{", r"\}"]), lambda inner: inner.map(lambda t: "{" + t + "}"))


@given(NESTED, st.text(alphabet="ab $.", max_size=5), st.text(alphabet="ab $.}", max_size=5))
def test_inner_braces_are_kept_whatever_stands_around(inner, before, after):
    assert last_boxed(before + r"\boxed{" + inner + "}" + after) == inner


def test_a_hostile_text_takes_linear_time():
    assert last_boxed(r"\boxed{" * 50_000) is None
    assert last_boxed(r"\boxed{" + "{" * 200_000) is None

"""Answers in solutions: what counts as the answer, which numbers are equal, and that no text makes either slow."""

import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.reward_model.verifiers.answers import MAX_CHARACTERS, extract_answer, is_well_formed
from posttrain.reward_model.verifiers.numbers import last_number, number_value, same_number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 3 <answer>7</answer> then 9", "7"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer>about 7 apples</answer>", "7"),
        ("<answer>seven</answer> #### 7", "seven"),
        ("<answer></answer> #### 7 or 8", "7"),
        ("<answer>7", "7"),
        ("</answer>5<answer>", "5"),
        ("so 4 + 4 = 8\n#### 8\nand 9 more", "8"),
        ("#### 8\n####", "8"),
        ("####-8", "-8"),
        ("it is 3, or rather 1,234.50.", "1,234.50"),
        ("costs $1,000", "$1,000"),
        ("10-4", "4"),
        ("10 - -4", "-4"),
        ("half: 1/2", "1/2"),
        ("no number", None),
        ("", None),
    ],
)
def test_answer_is_the_last_of_the_strongest_form(text: str, answer: str | None):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,000", 1000),
        ("1000.0", 1000),
        ("$1000", 1000),
        ("-$1,000.00", -1000),
        ("$-5", -5),
        ("\u22125", -5),
        ("+5", 5),
        ("1e3", 1000),
        ("50%", 50),
        (".5", Fraction(1, 2)),
        ("007", 7),
        ("3/4", Fraction(3, 4)),
        ("3/0", None),
        ("1,00", None),
        ("12 apples", None),
        ("--5", None),
        ("1e999999999", None),
        ("9" * 1_000_000, None),
        ("٣", None),
        ("nan", None),
        ("", None),
    ],
)
def test_value_of_a_written_number(text: str, value: Fraction | None):
    assert number_value(text) == value


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=3))
@settings(deadline=None, max_examples=200)
def test_a_number_equals_itself_however_it_is_written(number: Decimal):
    plain = f"{number:f}"
    for written in (f"{number:,.3f}", f"{number:.5f}", f"{number:+,.4f}", f"{number:.20e}", f"${plain}", f"{plain}%"):
        assert same_number(written, plain), written
        assert same_number(extract_answer(f"I think 7.\n#### {written}") or "", plain), written


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
@settings(deadline=None, max_examples=200)
def test_different_numbers_are_never_equal(a: int, b: int):
    assert same_number(f"{a:,}", f"{b}.0") == (a == b)


@given(st.text(alphabet=" \n#<>/answer0123456789.,-+$%e", max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_text_has_an_answer_or_none_and_a_well_formed_one_has_a_number(text: str):
    answer = extract_answer(text)
    if is_well_formed(text):
        assert answer is not None
        assert number_value(answer) is not None


@pytest.mark.parametrize(
    ("text", "well_formed"),
    [
        ("2 + 2 = 4\n#### 4", True),
        ("#### 4\n", True),
        ("#### $1,000.00", True),
        ("think <answer> 4 </answer> ", True),
        ("the answer #### 4", False),
        ("##### 4", False),
        ("#### 4 apples", False),
        ("#### 4\nNext question", False),
        ("#### 3\n#### 4", False),
        ("#### four", False),
        ("####", False),
        ("4", False),
        ("<answer>4</answer>.", False),
        ("<answer>3</answer><answer>4</answer>", False),
        ("<answer>four</answer>", False),
        ("<answer>1 2 3 4</answer>", False),
        ("</answer>", False),
        ("", False),
    ],
)
def test_well_formed_ends_by_stating_one_number_once(text: str, well_formed: bool):
    assert is_well_formed(text) is well_formed


HOSTILE = [
    "1", "1,", "1 ", "0.", "1e", "1e9", "1/", "1,000,", "1,000,0", "00,", "-", "$", "$-", "%", " ", "\n", "a", "é", "#",
    "#### ", "####\t", "#### 1e999999999\n", "<answer>", "</answer>", "<answer>1</answer>", "<answer></answer>", "<",
]  # fmt: skip


def _seconds(text: str) -> float:
    """Processor seconds of this thread to read `text`."""
    start = time.thread_time()
    extract_answer(text)
    is_well_formed(text)
    return time.thread_time() - start


@pytest.mark.parametrize("piece", HOSTILE)
def test_doubling_a_hostile_text_at_most_doubles_the_work(piece: str):
    longest = piece * (1_000_000 // len(piece))
    short = min(_seconds(longest[:125_000]) for _ in range(3))
    # Eight times the text: linear is 8, quadratic 64. Below 20 ms a ratio measures nothing; what else the machine does
    # can only add to a measurement: one of three within the bound is enough.
    assert any(_seconds(longest) < max(24 * short, 0.02) for _ in range(3))


def test_only_the_end_of_an_endless_text_is_read():
    filler = "7 " * MAX_CHARACTERS
    assert extract_answer("<answer>1</answer>" + filler) == "7"
    assert extract_answer(filler + "<answer>1</answer>") == "1"
    assert _seconds("1 " * (8 * MAX_CHARACTERS)) < 5


def test_a_number_of_a_million_digits_is_no_answer_to_anything():
    digits = "1" * 1_000_000
    assert last_number(digits) == digits
    assert not same_number(digits, digits)

"""Verifiers do work linear in the text, counted without a clock; and none hangs on 10⁵ texts made to hang it."""

import importlib.util
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.reward_model.verifiers import BUILT_IN, answers, nano, numbers

ROOT = Path(__file__).parents[3]
PATTERNS = {
    "number": numbers._NUMBER,
    "exponent": numbers._EXPONENT,
    "marked answer": answers._HASH_ANSWER,
    "strict answer": nano._STRICT,
}
PIECES = [
    "1", "1,", "1,000,", "1,000,0", "0.", "1e", "1e9", "1/", "9%", "-", "$", "-$", "#", "#### ", "####\t", "####",
    "#### 1e999\n", "#### -1,", "a", "\u2212", "é", " ", "(1", "[(", "<answer>", "1.1.", "12,34", "e+", "000,000",
]  # fmt: skip
MOST_STEPS = 40
"""Looks at a character of the text, on average; what goes back over runs needs as many as the run is long."""


def _counting() -> ModuleType:
    """The module beside this file: tests are no package that could be imported from."""
    spec = importlib.util.spec_from_file_location("backtracking", Path(__file__).parent / "backtracking.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COUNTING = _counting()


@given(text=st.text(alphabet="0123,.eE+-$€%/#\t a\u2212)é", max_size=30))
@settings(deadline=None, max_examples=200)
@pytest.mark.parametrize("name", PATTERNS)
def test_what_is_counted_is_what_the_regular_expressions_do(name: str, text: str):
    assert COUNTING.Matcher(PATTERNS[name]).spans(text) == [match.span() for match in PATTERNS[name].finditer(text)]


@pytest.mark.parametrize("name", PATTERNS)
def test_regular_expressions_look_at_each_character_a_bounded_number_of_times(name: str):
    doubles = [a + b for a in PIECES[:12] for b in PIECES[:12]]
    for piece, length in [(piece, 1000) for piece in PIECES] + [(piece, 250) for piece in doubles]:
        matcher = COUNTING.Matcher(PATTERNS[name])
        matcher.spans((piece * length)[:length])
        assert matcher.steps <= MOST_STEPS * length, (piece, length, matcher.steps)


def test_the_count_tells_a_pattern_that_is_quadratic():
    matcher = COUNTING.Matcher(re.compile("[0-9]+%", re.ASCII))
    matcher.spans("1" * 250)
    assert matcher.steps > MOST_STEPS * 250


@pytest.mark.parametrize(("source", "reference"), [("gsm8k", "72"), ("nano", {"answer": "72"})])
def test_calls_of_functions_grow_no_faster_than_the_text(source: str, reference: object):
    verifier = BUILT_IN[source]
    for piece in PIECES:
        calls = []
        for length in (1000, 2000, 4000, 8000):
            count = 0

            def counted(frame, event, argument):
                nonlocal count
                count += event in ("call", "c_call")

            sys.setprofile(counted)
            verifier.score("", (piece * length)[:length], reference)
            sys.setprofile(None)
            calls.append(count)
        assert all(later <= 2 * earlier + 20 for earlier, later in pairwise(calls)), (piece, calls)


def _run(count: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.faults.hostile_completions", "--count", str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, result
    return result


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_thousand_hostile_completions_are_read_in_time_linear_in_their_length():
    assert _run(100_000)["failed"] == ""

"""Verifiable instructions: what a demonstration obeys passes, what is wrong fails, and nothing is slow."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.nano.instructions import CHECKS, KINDS, OBEDIENCE, check, draw_request, request_text, respond

EXAMPLES = [
    ("case:lower", {}, "the fox is calm.", "The fox is calm."),
    ("case:upper", {}, "THE FOX.", "THE fOX."),
    ("start:word", {"word": "Today"}, "Today, the fox runs.", "The fox runs Today."),
    ("end:word", {"word": "river"}, "It sees a River.", "The river is calm."),
    ("keyword:include", {"word": "candle"}, "It has a candle, too.", "It has candles."),
    ("keyword:repeat", {"word": "music", "n": 2}, "Music music.", "Music music music."),
    ("punctuation:no_comma", {}, "The fox is calm.", "The fox, calm."),
    ("length:sentences", {"n": 2}, "It runs. It hides!", "It runs. It hides. It sings."),
    ("length:at_most_words", {"n": 4}, "The red fox runs.", "The red fox runs near."),
    ("format:quotes", {}, '"The fox runs."', '"The fox" runs.'),
    ("format:bullets", {"n": 2}, "* One.\n* Two.", "* One.\nTwo."),
    ("format:title", {}, "# Red Fox\nThe fox runs.", "Red Fox\n# The fox runs."),
    ("format:postscript", {}, "The fox runs.\nP.S. It is calm.", "P.S. It is calm.\nThe fox runs."),
]


def test_there_is_an_example_of_every_kind() -> None:
    assert {example[0] for example in EXAMPLES} == set(CHECKS) == set(KINDS)
    assert len(KINDS) >= 9
    assert set(OBEDIENCE.values()) == {0.85, 0.4}


@pytest.mark.parametrize(("instruction_id", "kwargs", "good", "bad"), EXAMPLES)
def test_check_tells_obedience_from_disobedience(instruction_id, kwargs, good, bad) -> None:
    assert check(instruction_id, kwargs, good)
    assert not check(instruction_id, kwargs, bad)
    assert not check(instruction_id, kwargs, "")
    assert not check(instruction_id, kwargs, " \n\x1c\n")


def test_loose_forgives_a_first_line_a_last_line_and_asterisks() -> None:
    text = "Sure, here it is:\n**the fox is calm.**\nI hope this helps!"
    assert not check("case:lower", {}, text)
    assert check("case:lower", {}, text, strict=False)
    assert not check("case:lower", {}, "The fox", strict=False)


def test_whatever_passes_strictly_passes_loosely() -> None:
    for instruction_id, kwargs, good, _ in EXAMPLES:
        assert check(instruction_id, kwargs, good, strict=False)


def test_a_demonstration_obeys_what_it_was_told_to_obey() -> None:
    rng = random.Random(0)
    for _ in range(3_000):
        request = draw_request(rng, "sft")
        answer = respond(rng, request, [i.id for i in request.instructions])
        for instruction in request.instructions:
            assert check(instruction.id, dict(instruction.kwargs), answer), (request_text(request), answer)


def test_ignoring_instructions_almost_never_obeys_them() -> None:
    rng = random.Random(0)
    passed: dict[str, list[bool]] = {}
    for _ in range(4_000):
        request = draw_request(rng, "sft")
        answer = respond(rng, request, ())
        for i in request.instructions:
            passed.setdefault(i.id, []).append(check(i.id, dict(i.kwargs), answer))
    rates = {instruction_id: sum(found) / len(found) for instruction_id, found in passed.items()}
    assert all(rate < 0.25 for kind, rate in rates.items() if kind != "punctuation:no_comma"), rates


def test_half_of_the_prompts_carry_two_instructions_of_different_shape() -> None:
    rng = random.Random(0)
    requests = [draw_request(rng, "train") for _ in range(1_000)]
    assert sum(len(r.instructions) == 2 for r in requests) == pytest.approx(500, abs=60)
    for request in requests:
        shapes = [KINDS[i.id].shape for i in request.instructions]
        assert len(shapes) == 1 or not shapes[0] & shapes[1]


def test_unknown_instruction_is_refused() -> None:
    with pytest.raises(ValueError, match="choose from"):
        check("case:title", {}, "x")


@given(st.text(), st.sampled_from(EXAMPLES))
@settings(deadline=None, max_examples=200)
def test_any_text_is_judged_without_error(text, example) -> None:
    strict = check(example[0], example[1], text)
    assert not strict or check(example[0], example[1], text, strict=False)


@pytest.mark.parametrize("piece", ["a", " ", "\n", "* ", "a, ", '"', ".", "P.S. \n", "a. "])
def test_a_long_text_of_anything_takes_no_noticeable_time(piece) -> None:
    text = piece * (200_000 // len(piece))
    started = time.process_time()
    for instruction_id, kwargs, _, _ in EXAMPLES:
        check(instruction_id, kwargs, text, strict=False)
    assert time.process_time() - started < 3

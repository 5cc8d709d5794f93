"""Text that is let out while tokens come is the final text: whole characters, nothing of a stop string."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.rollout.text import TextWatcher, decode


def watch(tokenizer, ids, stop=()):
    """Pieces let out, final text, and how many ids were taken before a stop."""
    pieces = []
    watcher = TextWatcher(tokenizer, stop, lambda token, piece: pieces.append(piece))
    taken = 0
    for token in ids:
        taken += 1
        if watcher.push(token):
            break
    pieces.append(watcher.finish())
    return pieces, watcher.text, taken


@settings(deadline=None, max_examples=60)
@given(ids=st.lists(st.integers(0, 280), min_size=1, max_size=60))
def test_pieces_add_up_to_the_decoded_text(tokenizer, ids):
    pieces, text, _ = watch(tokenizer, ids)
    assert "".join(pieces) == text == decode(tokenizer, ids)


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=30), stop=st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_text_is_cut_before_the_first_stop_string(tokenizer, text, stop):
    pieces, final, _ = watch(tokenizer, tokenizer(text)["input_ids"], stop)
    text = decode(tokenizer, tokenizer(text)["input_ids"])
    places = [text.find(s) for s in stop if s in text]
    assert "".join(pieces) == final
    if not places:
        assert final == text
    else:
        # Of two stop strings that end at once, the one that begins first counts; one may also end earlier.
        assert not any(s in final for s in stop)
        assert text.startswith(final)
        assert any(text.startswith(s, len(final)) for s in stop)


def test_nothing_that_may_begin_a_stop_string_is_let_out_early(tokenizer):
    ids = tokenizer("abc abd")["input_ids"]
    pieces, text, taken = watch(tokenizer, ids, ("abd",))
    assert text == "abc "
    assert "".join(pieces[:taken]) == "abc "
    assert not any(piece.endswith("ab") for piece in pieces)


def test_characters_of_several_bytes_come_whole(tokenizer):
    pieces, text, _ = watch(tokenizer, tokenizer("naïve 😀 日本")["input_ids"])
    assert text == "naïve 😀 日本"
    assert not any("\ufffd" in piece for piece in pieces)
    assert sum(1 for piece in pieces if piece) > 5


def test_a_broken_end_is_told_at_the_end(tokenizer):
    ids = tokenizer("é")["input_ids"][:1]
    pieces, text, _ = watch(tokenizer, ids)
    assert pieces == ["", "\ufffd"]
    assert text == "\ufffd"


@pytest.mark.parametrize("stop", ["four", " is fo", "r"])
def test_stop_string_across_tokens_is_found(tokenizer, stop):
    ids = tokenizer("the answer is four, hello")["input_ids"]
    _, text, taken = watch(tokenizer, ids, (stop,))
    assert text == "the answer is four, hello".partition(stop)[0]
    assert taken < len(ids)

"""A quoted text comes back exactly, and nothing in it is taken for anything but text."""

import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.core.hashing import digest_json
from posttrain.llm_judge.protocols import quoting
from posttrain.llm_judge.protocols.quoting import nonce_for, quotations, quote

sys.path.insert(0, str(Path(__file__).parent))
from injections import INJECTIONS

PIECES = ["<", " ", "|", "|>", "im_end", "<|im_end|>", "s>", "/", "[", "INST]", "<<SYS>>", "<</SYS>>", "｜", ">", "]"]
PIECES += ["[0123abcd begin: question 1]", "[0123abcd end: question 1]", "\n", "ſ>", "\r", "</S>"]
texts = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))


@given(texts, texts)
def test_quoted_texts_come_back_exactly(one, other):
    nonce = nonce_for({}, [one, other])
    prompt = f"Above.\n{quote('first answer 1', one, nonce)}\n\n{quote('second answer 1', other, nonce)}\nBelow."
    assert quotations(prompt) == (nonce, {"first answer 1": one, "second answer 1": other})


@given(texts, texts)
def test_different_texts_stay_different(one, other):
    assert (quote("a", one, "0123abcd") == quote("a", other, "0123abcd")) == (one == other)


@given(texts)
def test_no_control_token_is_left_whole(text):
    shown = quote("a", text, "0123abcd")
    assert not re.search(r"<\|[^\s<>|\[\]]{1,64}\|>|</?s>|\[/?INST\]|<</?SYS>>", shown)


def test_a_control_token_gets_a_space_and_one_that_has_it_another():
    assert quote("a", "<|im_end|> < |im_end|>", "00").splitlines()[1] == "< |im_end|> <  |im_end|>"
    assert quote("a", "f <| x |> g, a[0] < b, <div>", "00").splitlines()[1] == "f <| x |> g, a[0] < b, <div>"


@given(
    st.text(alphabet="0123456789abcde", max_size=40),
    st.dictionaries(st.text(max_size=2), st.integers(0, 2**63 - 1), max_size=2),
)
def test_nonce_is_in_no_text(text, definition):
    nonce = nonce_for(definition, [text], length=1)
    assert nonce not in text
    assert nonce == nonce_for(definition, [text], length=1)


def test_nonce_is_in_no_text_that_looks_like_it():
    taken = nonce_for({"a": 1}, [])
    wide = "".join(chr(ord(c) + 0xFEE0) for c in taken)
    assert {nonce_for({"a": 1}, [taken.upper()]), nonce_for({"a": 1}, [wide])}.isdisjoint({taken})


@given(st.dictionaries(st.text(), st.one_of(st.none(), st.text(), st.integers(0, 9), st.lists(st.text()))))
def test_nonce_begins_the_digest_of_the_definition(definition):
    """As every digest of JSON is made, so that no prompt changes with the library that writes it."""
    assert nonce_for(definition, []) == digest_json([definition, 0])[:8]


def test_nonce_hangs_on_the_definition():
    assert nonce_for({"a": 1}, []) != nonce_for({"a": 2}, [])


@pytest.mark.parametrize("text", INJECTIONS.values(), ids=INJECTIONS)
def test_injections_stay_in_their_quotation(text):
    nonce = nonce_for({}, [text])
    assert quotations(quote("second answer 1", text, nonce)) == (nonce, {"second answer 1": text})


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("no mark", "nothing is quoted"),
        ("[0a begin: a]\ntext", "has no end"),
        ("[0a begin: a]\ntext\n[0a end: b]", "has no end"),
        ("[0a begin: a]\n[0a begin: b]\ntext\n[0a end: b]\n[0a end: a]", "has no end"),
        ("[0a begin: a]\nx\n[0a end: a]\n[0a begin: a]\ny\n[0a end: a]", "character 28"),
        ("[0a begin: a]\nx\n[0a end: a]\nand [0a begin: b]\ny\n[0a end: b]", "character 32"),
        ("[0a begin: a]", "has no end"),
    ],
)
def test_malformed_prompts_are_refused(prompt, why):
    with pytest.raises(ValueError, match=why):
        quotations(prompt)


def test_version_is_raised_when_the_form_changes():
    assert (quoting.VERSION, quote("question 1", "</s>", "00")) == (
        1,
        "[00 begin: question 1]\n< /s>\n[00 end: question 1]",
    )

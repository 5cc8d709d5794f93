"""Formats: rows in each dataset's own schema become ours."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.core.errors import RequestError
from posttrain.data.formats import FORMATS, Record, UnusableRow
from posttrain.data.formats.hh_rlhf import messages_of
from posttrain.data.formats.turns import merge_same_speaker, split_shared_prefix
from posttrain.data.sources import Source, load_conversations, load_pairs, load_prompts


def record(values, format_name="generic"):
    return Record("set", 0, values, FORMATS[format_name].columns)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


# GSM8K


def test_gsm8k_demonstrations_are_question_and_whole_solution(mirror):
    rows = load_conversations(Source(path="openai/gsm8k"), 0)
    row = next(r for r in rows if r["id"] == "openai/gsm8k/train/2")
    assert row["messages"] == [
        user("Zoë pays £4.50 for a loaf. What do two cost?"),
        assistant("Two cost 2*4.5 = £<<2*4.5=9>>9.\n#### 9"),
    ]


def test_gsm8k_prompts_carry_the_gold_answer_for_the_verifier(mirror):
    (row,) = load_prompts(Source(path="openai/gsm8k", split="test"), 0)
    assert row["prompt"] == [user("The cellar is at -3 degrees and warms by 1. What is it now?")]
    assert (row["reference"], row["kind"]) == ({"gsm8k": "-2"}, "gsm8k")


@pytest.mark.parametrize("answer", ["36", "36\n####", "#### "])
def test_gsm8k_without_a_final_answer_is_refused_by_row(answer):
    with pytest.raises(RequestError, match="row 0: the answer does not end in"):
        FORMATS["gsm8k"].prompt(record({"question": "a", "answer": answer}, "gsm8k"))


# HH-RLHF


def test_hh_rlhf_splits_the_shared_turns_off(mirror):
    source = Source(path="Anthropic/hh-rlhf", config="harmless-base", split="test")
    pair = next(p for p in load_pairs(source, 0) if p["id"].endswith("/0"))
    assert pair["prompt"] == [
        user("My cactus is brown."),
        assistant("How often do you water it?"),
        user("Every day."),
    ]
    assert pair["chosen"] == [assistant("That is too often.\n\nOnce a fortnight is enough.")]
    assert pair["rejected"] == [assistant("Water it more.")]
    assert pair["kind"] == "hh-rlhf"


def test_hh_rlhf_counts_what_is_no_pair(mirror, caplog):
    with caplog.at_level(logging.WARNING):
        pairs = load_pairs(Source(path="Anthropic/hh-rlhf", split="test"), 0)
    assert sorted(p["id"][-1] for p in pairs) == ["0", "1", "3"]
    assert "left out 2 rows" in caplog.text
    assert "1 with identical answers" in caplog.text
    assert "1 with the two conversations differ before the last answer" in caplog.text


def test_two_turns_of_one_speaker_are_one_message():
    assert messages_of("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c") == [user("a"), assistant("b\n\nc")]


def test_a_speakers_name_inside_a_turn_does_not_end_it():
    assert messages_of("\n\nHuman: a Human: b\n\nAssistant: said\nHuman: c") == [
        user("a Human: b"),
        assistant("said\nHuman: c"),
    ]


@pytest.mark.parametrize("transcript", ["", "hello", "Human: a\n\nAssistant: b"])
def test_a_text_that_is_no_transcript_is_refused(transcript):
    with pytest.raises(RequestError, match="a transcript must start"):
        FORMATS["hh-rlhf"].pair(record({"chosen": transcript, "rejected": transcript}, "hh-rlhf"))


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=12).map(str.strip)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), WORDS, WORDS)
def test_a_transcript_of_turns_gives_them_back(turns, chosen, rejected):
    prefix = "".join(f"\n\nHuman: {human}\n\nAssistant: {answer}" for human, answer in turns[:-1])
    prefix += f"\n\nHuman: {turns[-1][0]}"
    both = {"chosen": f"{prefix}\n\nAssistant: {chosen}", "rejected": f"{prefix}\n\nAssistant: {rejected}"}
    prompt, first, second = FORMATS["hh-rlhf"].pair(record(both, "hh-rlhf"))
    assert [m["content"] for m in prompt] == [text for turn in turns for text in turn][:-1]
    assert (first, second) == (chosen, rejected)


# The shared prefix


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ([user("a"), assistant("b")], [user("c"), assistant("b")], "differ before"),
        ([user("a"), assistant("b")], [user("a")], "does not end with an answer"),
        ([], [], "does not end with an answer"),
        ([assistant("b")], [assistant("c")], "follow no question"),
    ],
)
def test_two_conversations_that_share_no_prompt_are_no_pair(chosen, rejected, reason):
    with pytest.raises(UnusableRow, match=reason):
        split_shared_prefix(chosen, rejected)


def test_merging_leaves_alternating_turns_alone():
    turns = [user("a"), assistant("b"), user("c")]
    assert merge_same_speaker(turns) == turns


# The generic shapes


def test_messages_in_sharegpts_spelling_are_read():
    values = {"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert FORMATS["generic"].conversation(record(values)) == [user("a"), assistant("b")]


def test_a_demonstration_that_ends_with_the_user_is_refused():
    with pytest.raises(RequestError, match="the last message is the user's"):
        FORMATS["generic"].conversation(record({"messages": [user("a")]}))


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]},
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
        {"prompt": "a", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
    ],
    ids=["texts", "messages", "conversations", "ultrafeedback"],
)
def test_a_pair_is_read_in_each_of_its_usual_shapes(values):
    assert FORMATS["generic"].pair(record(values)) == ([user("a")], "b", "c")


@pytest.mark.parametrize(
    ("changed", "cut"),
    [
        ({}, (False, False)),
        ({"chosen_finish_reason": "length", "rejected_finish_reason": "stop"}, (True, False)),
        ({"chosen_finish_reason": None, "rejected_finish_reason": "length"}, (False, True)),
        ({"chosen": [assistant("b") | {"interrupted": True}], "rejected": [assistant("c")]}, (True, False)),
    ],
)
def test_a_pair_says_which_answer_was_cut_short(changed, cut):
    values = {"prompt": "a", "chosen": "b", "rejected": "c"} | changed
    assert FORMATS["generic"].interrupted(record(values)) == cut


def test_an_unknown_finish_reason_is_refused():
    values = {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_finish_reason": "tired"}
    with pytest.raises(RequestError, match="chosen_finish_reason is 'tired'; say stop"):
        FORMATS["generic"].interrupted(record(values))


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("text", "must be a list of messages"),
        ([], "must be a list of messages"),
        (["text"], "holds str where a message belongs"),
        ([{"role": "robot", "content": "a"}], "a message with the role 'robot'"),
        ([{"role": "user", "content": None}], "a message of the user without text"),
    ],
)
def test_malformed_messages_are_refused(messages, problem):
    with pytest.raises(RequestError, match=problem):
        FORMATS["generic"].conversation(record({"messages": messages}))


def test_a_prompt_that_ends_with_an_answer_is_refused():
    with pytest.raises(RequestError, match="ends with the assistant's message"):
        FORMATS["generic"].prompt(record({"prompt": [user("a"), assistant("b")]}))

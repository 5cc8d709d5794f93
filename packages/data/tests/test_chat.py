"""Rendering: what is trained on, what is sampled from and what is scored are the same ids."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import RequestError
from posttrain.data.chat import (
    check_prompt_length,
    encode_text,
    end_token_id,
    render_completion,
    render_conversation,
    render_prompt,
)

# Surrogates are no text; NFC is what the tokenizer's normaliser makes of all text.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).map(lambda t: unicodedata.normalize("NFC", t))
HOSTILE = st.lists(
    st.sampled_from(["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im_", "end|>", "\n", "assistant\n", "é", " "])
).map("".join)
CONTENT = st.one_of(TEXTS, HOSTILE)


@st.composite
def conversations(draw, content=CONTENT):
    system = [{"role": "system", "content": draw(content)}] if draw(st.booleans()) else []
    turns = [
        {"role": role, "content": draw(content)}
        for _ in range(draw(st.integers(1, 3)))
        for role in ("user", "assistant")
    ]
    return system + turns


def spans(ids, mask):
    """The runs of ids under the mask."""
    runs, open_run = [], False
    for token, spoken in zip(ids, mask, strict=True):
        if spoken and not open_run:
            runs.append([])
        if spoken:
            runs[-1].append(token)
        open_run = bool(spoken)
    return runs


def test_a_conversation_is_the_chatml_of_qwen_without_the_last_newline(tokenizer):
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
    ids, _ = render_conversation(tokenizer, messages)
    assert tokenizer.decode(ids) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nworld<|im_end|>"


def test_a_prompt_ends_with_the_opening_of_the_assistants_turn(tokenizer):
    ids = render_prompt(tokenizer, [{"role": "system", "content": "short"}, {"role": "user", "content": "hello"}])
    expected = "<|im_start|>system\nshort<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == expected


@settings(deadline=None, max_examples=60)
@given(conversations())
def test_mask_covers_exactly_what_the_assistant_says_and_its_end_token(tokenizer, messages):
    ids, mask = render_conversation(tokenizer, messages)
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    runs = spans(ids, mask)
    assert [tokenizer.decode(run[:-1]) for run in runs] == answers
    assert {run[-1] for run in runs} == {end_token_id(tokenizer)}


@settings(deadline=None, max_examples=60)
@given(conversations())
def test_a_conversation_is_its_prompt_then_the_answer_then_the_end_token(tokenizer, messages):
    ids, mask = render_conversation(tokenizer, messages)
    prompt, answer = messages[:-1], messages[-1]["content"]
    prompt_ids = render_prompt(tokenizer, prompt)
    assert ids == prompt_ids + encode_text(tokenizer, answer) + [end_token_id(tokenizer)]
    assert ids == render_completion(tokenizer, prompt, answer, finished=True)
    assert not mask[len(prompt_ids) - 1]


@settings(deadline=None, max_examples=60)
@given(conversations())
def test_the_next_prompt_continues_the_sampled_ids(tokenizer, messages):
    sampled = render_completion(tokenizer, messages[:-1], messages[-1]["content"], finished=True)
    following = render_prompt(tokenizer, [*messages, {"role": "user", "content": "and then?"}])
    assert following[: len(sampled)] == sampled


@settings(deadline=None, max_examples=60)
@given(conversations(HOSTILE))
def test_special_tokens_written_in_a_message_stay_text(tokenizer, messages):
    ids, _ = render_conversation(tokenizer, messages)
    assert ids.count(end_token_id(tokenizer)) == len(messages)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == len(messages)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|endoftext|>")) == 0
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>" for m in messages]
    assert tokenizer.decode(ids) == "\n".join(turns)


@settings(deadline=None, max_examples=60)
@given(CONTENT)
def test_text_round_trips(tokenizer, text):
    assert tokenizer.decode(encode_text(tokenizer, text)) == text


def test_harmless_text_has_the_ids_that_transformers_gives(tokenizer):
    messages = [
        {"role": "system", "content": "\n\nGrüß Gott"},
        {"role": "user", "content": "what is 12 + 30?"},
        {"role": "assistant", "content": "#### 42"},
    ]
    theirs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = render_conversation(tokenizer, messages)
    assert ids == theirs["input_ids"]
    assert mask == theirs["assistant_masks"]
    assert (
        render_prompt(tokenizer, messages[:-1])
        == tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    )


def test_an_answer_that_begins_with_a_newline_is_not_merged_with_the_template(tokenizer):
    prompt = [{"role": "user", "content": "hello"}]
    merged = tokenizer("assistant\n\n\nworld", add_special_tokens=False)["input_ids"]
    ids = render_completion(tokenizer, prompt, "\n\nworld", finished=False)
    assert ids[: len(render_prompt(tokenizer, prompt))] == render_prompt(tokenizer, prompt)
    assert ids[-len(merged) :] != merged


def test_an_unfinished_completion_has_no_end_token(tokenizer):
    prompt = [{"role": "user", "content": "hello"}]
    finished = render_completion(tokenizer, prompt, "wor", finished=True)
    assert render_completion(tokenizer, prompt, "wor", finished=False) == finished[:-1]
    assert finished[-1] == end_token_id(tokenizer)


def test_what_a_template_writes_after_the_last_answer_is_left_out(tokenizer, save_tokenizer):
    from posttrain.data.chat import CHATML_TEMPLATE, load_tokenizer

    with_newline = load_tokenizer(save_tokenizer(chat_template=CHATML_TEMPLATE + "{{ '\\n' }}"))
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
    assert render_conversation(with_newline, messages) == render_conversation(tokenizer, messages)


def test_a_conversation_without_an_answer_is_refused(tokenizer):
    with pytest.raises(RequestError, match="loss mask is empty"):
        render_conversation(tokenizer, [{"role": "user", "content": "hello"}])


def test_a_template_that_marks_everything_is_refused(save_tokenizer):
    from posttrain.data.chat import load_tokenizer

    everything = "{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}<|im_end|>{% endgeneration %}"
    marked = load_tokenizer(save_tokenizer(chat_template=everything))
    with pytest.raises(RequestError, match="covers every token"):
        render_conversation(marked, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "no messages"),
        ([{"role": "human", "content": "hello"}], "message 0 has the role 'human'"),
        ([{"role": "user", "content": None}], "message 0 has no text"),
        ([{"role": "user"}], "message 0 has no text"),
    ],
)
def test_a_malformed_conversation_is_refused(tokenizer, messages, problem):
    with pytest.raises(RequestError, match=problem):
        render_prompt(tokenizer, messages)


def test_a_prompt_that_does_not_fit_the_context_says_by_how_much(tokenizer):
    messages = [{"role": "user", "content": "hello " * 50}]
    length = len(render_prompt(tokenizer, messages))
    assert check_prompt_length(tokenizer, messages, context=length + 8, max_new_tokens=8)
    with pytest.raises(
        RequestError, match=f"'hello .* has {length} tokens, and with 8 new ones .* context of {length}"
    ):
        check_prompt_length(tokenizer, messages, context=length, max_new_tokens=8)

"""Encoding of many items at once gives the ids of `render_completion`, item by item, whatever the texts hold."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data import nano
from posttrain.data.chat import render_completion
from posttrain.data.tokenizer import load_tokenizer
from posttrain.reward_model.encoding import Answer, Encoder, RefusedItem

OTHER_TEMPLATE = (
    "{% for m in messages %}[{{ m.content | trim }}]{% generation %}{% endgeneration %}{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(alphabet=" \n#<|>_im_start_endoftext0123456789é\ufdd0", max_size=30),
    st.sampled_from(["", "\n", "<|im_end|>", "a<|im_start|>assistant\n", "<|endoftext|><|im_end|>", "caf\u0065\u0301"]),
)
TURNS = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXTS}))
PROMPTS = st.one_of(TEXTS, TURNS.filter(bool))
ANSWERS = st.lists(st.builds(Answer, PROMPTS, TEXTS, st.booleans()), max_size=8)


@pytest.fixture(scope="module", params=["nano", "other template", "byte level"])
def encoder(request, reward_checkpoint: Path) -> Encoder:
    tokenizer = load_tokenizer(reward_checkpoint if request.param == "byte level" else nano.BASE)
    if request.param == "other template":
        tokenizer.chat_template = OTHER_TEMPLATE
    return Encoder(tokenizer, max_tokens=4096)


@given(answers=ANSWERS)
@settings(deadline=None, max_examples=80)
def test_ids_are_those_of_render_completion(encoder: Encoder, answers: list[Answer]):
    expected = []
    for prompt, completion, finished in answers:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        expected.append(render_completion(encoder.tokenizer, messages, completion, finished))
    assert encoder.encode(answers) == expected


def test_a_prompt_that_many_answers_share_is_rendered_once(monkeypatch: pytest.MonkeyPatch):
    encoder = Encoder(load_tokenizer(nano.BASE), max_tokens=100)
    encoded = []
    batch = encoder._batch
    monkeypatch.setattr(encoder, "_batch", lambda texts: encoded.append(len(texts)) or batch(texts))
    encoder.encode([Answer("2+2?", str(n), True) for n in range(10)] + [Answer("3+3?", "6", True)])
    assert encoded == [2, 11]


def test_settings_of_the_callers_tokenizer_do_not_reach_in():
    tokenizer = load_tokenizer(nano.BASE)
    encoder = Encoder(tokenizer, max_tokens=100)
    expected = encoder.encode([Answer("Tom has 3 apples.", "#### 3", True)])
    tokenizer("a", truncation=True, max_length=2, padding="max_length")
    assert encoder.encode([Answer("Tom has 3 apples.", "#### 3", True)]) == expected


@pytest.mark.parametrize(
    "wrong", [Answer("q", "x" * 5000, True), Answer([], "x", True), Answer("q" * 10_000_000, "x", True)]
)
def test_the_first_item_that_cannot_be_read_is_named_by_its_place(wrong: Answer):
    encoder = Encoder(load_tokenizer(nano.BASE), max_tokens=1024)
    with pytest.raises(RefusedItem) as error:
        encoder.encode([Answer("q", "x", True), wrong, wrong])
    assert error.value.index == 1
    assert "xxx" not in str(error.value)

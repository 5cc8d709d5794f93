"""Which tokens of a conversation get loss."""

import pytest

from posttrain.core.errors import RequestError
from posttrain.data.chat import encode_text
from posttrain.trainers.demonstrations import IGNORED, demonstrations


def conversation(*turns, id="c"):
    roles = ["user", "assistant"] * len(turns)
    return {"id": id, "messages": [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]}


def spoken(row):
    return [token for token in row["labels"] if token != IGNORED]


def test_only_the_assistant_gets_loss_and_its_end_token_too(tiny_tokenizer):
    (row,) = demonstrations(tiny_tokenizer, [conversation("what?", "this", "and?", "that")], 200).rows
    end = [tiny_tokenizer.eos_token_id]
    assert spoken(row) == encode_text(tiny_tokenizer, "this") + end + encode_text(tiny_tokenizer, "that") + end
    assert all(label in (IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
    assert row["labels"][-1] == tiny_tokenizer.eos_token_id


def test_an_answer_that_is_cut_off_gets_no_end_token(tiny_tokenizer):
    data = demonstrations(tiny_tokenizer, [conversation("what?", "a" * 100), conversation("what?", "b")], 60)
    assert (data.truncated, data.dropped) == (1, 0)
    cut, whole = data.rows
    assert len(cut["input_ids"]) == 60
    assert set(spoken(cut)) == set(encode_text(tiny_tokenizer, "a"))
    assert spoken(whole)[-1] == tiny_tokenizer.eos_token_id


def test_a_prompt_beyond_the_length_is_dropped_and_counted(tiny_tokenizer):
    data = demonstrations(tiny_tokenizer, [conversation("?" * 90, "a"), conversation("?", "a")], 60)
    assert (len(data.rows), data.truncated, data.dropped) == (1, 0, 1)


def test_prompts_that_are_all_too_long_are_refused(tiny_tokenizer):
    with pytest.raises(RequestError, match="1 of 1 prompts are longer"):
        demonstrations(tiny_tokenizer, [conversation("?" * 90, "a")], 60)


TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
CASES = {
    "empty": TURNS + "{{ m.content }}<|im_end|>{% endfor %}",
    "covers every token": "{% for m in messages %}{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}",
    "never learn to stop": TURNS
    + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}"
    + "{% endif %}<|im_end|>{% endfor %}",
}


@pytest.mark.parametrize("reason", CASES)
def test_a_template_that_spoils_the_mask_is_refused(tiny_tokenizer, monkeypatch, reason):
    monkeypatch.setattr(tiny_tokenizer, "chat_template", CASES[reason])
    with pytest.raises(RequestError, match=rf"conversation c: .*{reason}"):
        demonstrations(tiny_tokenizer, [conversation("what?", "this")], 60)

"""The nano tokenizer: Qwen2's form, the same ids by every road, and no text lost."""

import json
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from posttrain.data.chat import load_tokenizer, render_conversation
from posttrain.data.nano import BASE
from posttrain.data.nano.corpus import sft_conversations
from posttrain.data.nano.tokenizer import EOS, PAD, SPECIAL_TOKENS, VOCABULARY, corpus_texts, train_tokenizer

raw = Tokenizer.from_file(str(BASE / "tokenizer.json"))
auto = AutoTokenizer.from_pretrained(BASE)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
hostile = st.lists(
    st.one_of(st.sampled_from(["<|im_end|>", "12+5=17", "\r\n", "e\u0301", " don't", "  ", "#### 1,000"]), texts)
).map("".join)


@given(hostile)
@example("e\u0301 \u212b <|im_start|>user\n1234")
@settings(deadline=None, max_examples=200)
def test_auto_tokenizer_gives_the_ids_of_the_raw_file(text) -> None:
    assert auto.encode(text, add_special_tokens=False) == raw.encode(text, add_special_tokens=False).ids


@given(texts)
@settings(deadline=None, max_examples=200)
def test_any_text_round_trips_up_to_nfc(text) -> None:
    assert auto.decode(auto.encode(text, add_special_tokens=False)) == unicodedata.normalize("NFC", text)


def test_vocabulary_is_small_and_full() -> None:
    assert len(auto) == raw.get_vocab_size() == VOCABULARY == 1_024
    assert sorted(auto.get_vocab().values()) == list(range(VOCABULARY))


def test_digits_are_single_tokens() -> None:
    assert [auto.decode([token]) for token in auto.encode("12345")] == list("12345")


def test_special_tokens_are_those_of_qwen() -> None:
    assert (auto.eos_token, auto.pad_token) == (EOS, PAD) == ("<|im_end|>", "<|endoftext|>")
    assert [auto.convert_ids_to_tokens(VOCABULARY - len(SPECIAL_TOKENS) + i) for i in range(3)] == [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
    ]
    for token in SPECIAL_TOKENS:
        assert len(auto.encode(token, add_special_tokens=False)) == 1
        assert auto.decode(auto.encode(token, add_special_tokens=False), skip_special_tokens=True) == ""


def test_the_model_config_names_the_same_special_tokens() -> None:
    config = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    generation = json.loads((BASE / "generation_config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "qwen2"
    assert config["vocab_size"] == len(auto)
    assert (config["eos_token_id"], config["pad_token_id"]) == (auto.eos_token_id, auto.pad_token_id)
    assert generation["eos_token_id"] == [auto.eos_token_id, auto.pad_token_id]


def test_loss_mask_covers_the_answer_and_its_end_token() -> None:
    tokenizer = load_tokenizer(BASE)
    assert "{%- generation -%}" in tokenizer.chat_template
    for conversation in sft_conversations(0)[:50]:
        ids, mask = render_conversation(tokenizer, conversation["messages"])
        spoken = tokenizer.decode([token for token, m in zip(ids, mask, strict=True) if m])
        assert spoken == conversation["messages"][1]["content"] + EOS


def test_demonstrations_fit_a_short_context() -> None:
    tokenizer = load_tokenizer(BASE)
    lengths = [len(render_conversation(tokenizer, c["messages"])[0]) for c in sft_conversations(0)]
    assert max(lengths) <= 200
    assert sum(lengths) / len(lengths) < 60


def test_training_again_gives_the_shipped_tokenizer() -> None:
    def content(tokenizer: Tokenizer) -> dict:
        return json.loads(tokenizer.to_str())["model"]["merges"]

    assert content(train_tokenizer(corpus_texts(0))) == content(raw)


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\x00", "🙂", "ﷺ" * 10])
def test_odd_texts_survive(text) -> None:
    assert auto.decode(auto.encode(text, add_special_tokens=False)) == text

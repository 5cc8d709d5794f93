"""Claims about the model that lets others compute: what it asks for is what CheckpointLM would compute."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance

from posttrain.core.errors import RequestError
from posttrain.eval_harness.checkpoint_settings import end_tokens, read_settings
from posttrain.eval_harness.model import CheckpointLM
from posttrain.eval_harness.quiet import quiet
from posttrain.eval_harness.weightless import WeightlessLM

CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because 17 toys."}]


class CountingLM(WeightlessLM):
    """Gives every token the log-likelihood -1 and keeps what was asked."""

    asked: list

    def _generate(self, requests, prompts, limits, shared):
        self.asked = [(list(prompts), limits)]
        return [""] * len(requests)

    def _likelihoods(self, requests, batch_size):
        self.asked = [(prompt, tokens) for _, prompt, tokens in requests]
        return [(-float(len(tokens)), False) for _, _, tokens in requests]


@pytest.fixture
def whole(tiny_checkpoint):
    with quiet():
        return CheckpointLM(tiny_checkpoint, 5, "cpu", torch.float32, None)


@pytest.fixture
def counting(tiny_checkpoint):
    return CountingLM(tiny_checkpoint, 5, None)


def test_limits_ends_and_names_are_the_checkpoints(whole, counting):
    for name in ("max_length", "max_gen_toks", "batch_size", "end_tokens", "eot_token_id", "prefix_token_id"):
        assert getattr(counting, name) == getattr(whole, name), name
    assert counting.tokenizer_name == whole.tokenizer_name
    assert counting.chat_template(True) == whole.chat_template(True)


@pytest.mark.parametrize("opened", [True, False])
def test_conversations_are_rendered_as_the_checkpoint_renders_them(whole, counting, opened):
    chat = CHAT[:1] if opened else CHAT
    assert counting.apply_chat_template(chat, opened) == whole.apply_chat_template(chat, opened)


@pytest.mark.parametrize("begin", [None, "<|im_start|>"])
def test_ids_are_the_checkpoints_with_and_without_a_begin_token(whole, counting, begin):
    whole.tokenizer.bos_token = counting.tokenizer.bos_token = begin
    assert counting.prefix_token_id == whole.prefix_token_id
    for text in ("Tom has 3 apples. ", "", "<|im_start|>user\nWhy?", "<|im_end|> and on"):
        assert counting.tok_encode(text) == whole.tok_encode(text)
        assert counting.tok_encode(text, add_special_tokens=False) == whole.tok_encode(text, add_special_tokens=False)
        assert counting._prompt_ids(text) == whole.tok_batch_encode([text])[0][0].tolist()
        if text:
            assert counting._encode_pair(text, " no") == whole._encode_pair(text, " no")
    ids = whole.tok_encode("Tom<|im_end|>")
    for skip in (True, False):
        assert counting.tok_decode(ids, skip) == whole.tok_decode(ids, skip)
    assert counting.tok_decode(ids[-1], False) == "<|im_end|>"


def test_every_token_of_a_long_text_is_scored_once(counting):
    texts = ["Why?", "Nina has 17 toys. " * 60, ""]
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0, metadata=("t", n, 1)) for n, text in enumerate(texts)]
    lengths = [len(counting.tok_encode(text)) for text in texts]
    assert lengths[1] > 2 * counting.max_length
    assert counting.loglikelihood_rolling(requests) == [-float(length) for length in lengths]
    assert all(len(prompt) + len(tokens) <= counting.max_length + 1 for prompt, tokens in counting.asked)


def test_without_generation_settings_the_configuration_names_the_ends(tiny_checkpoint, tmp_path):
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    (copy / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((copy / "config.json").read_text()) | {"eos_token_id": [5, 9]}
    (copy / "config.json").write_text(json.dumps(config))
    with quiet():
        whole = CheckpointLM(str(copy), 5, "cpu", torch.float32, None)
    assert CountingLM(str(copy), 5, None).end_tokens == whole.end_tokens == {5, 9, whole.eot_token_id}


def test_an_adapter_has_the_settings_of_the_model_under_it(tiny_checkpoint, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": tiny_checkpoint}))
    config, generation = read_settings(str(adapter), None)
    assert config.max_position_embeddings == 192
    assert end_tokens(2, config, generation) == end_tokens(2, *read_settings(tiny_checkpoint, None))


@pytest.mark.parametrize("said", [{}, {"base_model_name_or_path": None}, []])
def test_an_adapter_of_no_model_is_told(said, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(RequestError, match=r"adapter_config\.json does not name the model that it is an adapter of"):
        read_settings(str(tmp_path), None)


def test_end_tokens_are_the_tokenizers_and_all_that_settings_name():
    class Settings:
        def __init__(self, named):
            self.eos_token_id = named

    assert end_tokens(2, Settings(None), Settings(7), Settings([9, 2]), object()) == [2, 7, 9]


def test_a_folder_without_a_configuration_is_told(tiny_checkpoint, tmp_path):
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    (copy / "config.json").write_text("{}")
    with pytest.raises(RequestError, match="cannot load a model from"):
        CountingLM(str(copy), 5, None)
    (copy / "config.json").unlink()
    with pytest.raises(RequestError, match=r"is not a checkpoint: it has no config\.json"):
        CountingLM(str(copy), 5, None)

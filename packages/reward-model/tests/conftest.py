"""A reward model small enough to make in a test: random weights, a byte-level tokenizer, ChatML."""

from collections.abc import Callable
from pathlib import Path

import pytest

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def _make_reward_model(folder: Path, **config: object) -> Path:
    """A checkpoint of `Qwen2ForSequenceClassification`, one label, 128 positions, with `config` over the defaults."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForSequenceClassification

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(SPECIAL + alphabet)}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    settings = Qwen2Config(
        **{
            "vocab_size": len(vocabulary),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.3,
            "num_labels": 1,
            "pad_token_id": 0,
            "eos_token_id": 2,
            **config,
        }
    )
    Qwen2ForSequenceClassification(settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reward_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model on disk that no test changes."""
    return _make_reward_model(tmp_path_factory.mktemp("reward-model"))


@pytest.fixture(scope="session")
def make_reward_model() -> Callable[..., Path]:
    """Makes a reward model in a folder, with changes to its configuration."""
    return _make_reward_model

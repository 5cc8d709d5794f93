"""A checkpoint small enough to train in a test, and files of rows for it."""

import json
import random

import pytest
import torch


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """Bytes as tokens, Qwen's special tokens, the house's ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from posttrain.data.tokenizer import CHATML_TEMPLATE

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHATML_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, tiny_tokenizer):
    """A folder with a random Qwen2 of two layers and a context of 256."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def jsonl(tmp_path):
    """Writes rows to a file and gives its path as text."""

    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def conversations():
    """Sixty short questions whose answer repeats their number, of mixed lengths."""
    generator = random.Random(0)
    return [
        {
            "id": str(number),
            "messages": [
                {"role": "user", "content": f"say {number}" + "!" * generator.randint(0, 9)},
                {"role": "assistant", "content": f"{number} " * generator.randint(1, 5)},
            ],
        }
        for number in range(60)
    ]


@pytest.fixture
def pairs():
    """Pairs that a reader of one letter can tell apart: the better answer says yes."""
    return [
        {
            "id": str(number),
            "prompt": [{"role": "user", "content": f"is {number} a number?"}],
            "chosen": [{"role": "assistant", "content": f"yes {number}"}],
            "rejected": [{"role": "assistant", "content": f"no {number}" + "?" * (number % 5)}],
            "kind": "even" if number % 2 == 0 else "odd",
        }
        for number in range(80)
    ]

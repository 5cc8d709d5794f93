"""A small tokenizer of Qwen2.5's kind, made on the spot, and the real data where it is present."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FIXTURES = Path(__file__).parent / "fixtures"
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = [
    "hello world, what is 12 + 30?\n\n#### 42\n",
    "system user assistant\n",
    "Grüß Gott",
    "  two  spaces\n\n\n",
] * 20


@pytest.fixture(scope="session")
def save_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that saves a byte-level BPE tokenizer with the given special tokens and settings to a new folder."""

    def save(special: list[str] = QWEN_SPECIAL, chat_template: str | None = None, **settings: str) -> Path:
        raw = Tokenizer(models.BPE())
        raw.normalizer = normalizers.NFC()
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        raw.train_from_iterator(TEXT, trainer)
        folder = tmp_path_factory.mktemp("tokenizer")
        fast = PreTrainedTokenizerFast(tokenizer_object=raw, **settings)
        fast.chat_template = chat_template
        fast.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def tokenizer(save_tokenizer: Callable[..., Path]) -> PreTrainedTokenizerFast:
    """As the pretrained Qwen2.5 publishes it (pad = eos = <|endoftext|>), then loaded by us."""
    from posttrain.data.chat import load_tokenizer

    return load_tokenizer(save_tokenizer(eos_token="<|endoftext|>", pad_token="<|endoftext|>"))


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few rows of our own in the Hub's schema, as the mirror that POSTTRAIN_DATA names."""
    monkeypatch.setenv("POSTTRAIN_DATA", str(FIXTURES))
    return FIXTURES


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real datasets: $POSTTRAIN_DATA, or shared/data beside the repository."""
    root = Path(__file__).resolve().parents[3]
    folder = Path(os.environ.get("POSTTRAIN_DATA", root.parent / "shared" / "data"))
    if not (folder / "openai" / "gsm8k").is_dir():
        pytest.skip(f"no real data under {folder}: set POSTTRAIN_DATA to a mirror of the Hub")
    monkeypatch.setenv("POSTTRAIN_DATA", str(folder))
    return folder

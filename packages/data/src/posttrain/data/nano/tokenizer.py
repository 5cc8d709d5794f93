"""The nano tokenizer: byte-level BPE of 1,024 entries in the very form of Qwen2's.

Its normaliser (NFC), pre-tokenizer (digits one by one) and special tokens are Qwen2's own, because transformers
builds a `Qwen2Tokenizer` for any checkpoint of that model type whatever tokenizer.json says: trained in another form,
it would give other ids without an error. Takes texts, gives a `tokenizers.Tokenizer` or a saved folder.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from posttrain.data.nano.corpus import sft_conversations
from posttrain.data.nano.pretraining import documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 1_024
PAD, EOS = "<|endoftext|>", "<|im_end|>"
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
"""Those of Qwen2.5 that its tokenizer marks as special."""

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train on texts without special tokens. Special tokens take the last ids, as in Qwen2.5."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def corpus_texts(seed: int) -> Iterator[str]:
    """What the tokenizer learns from: the base corpus, and demonstrations, which use words that it lacks."""
    for document in islice(documents(seed), 16_000):
        if not document.startswith("<|im_start|>"):
            yield document
    for conversation in sft_conversations(seed):
        yield from (message["content"] for message in conversation["messages"])


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> "PreTrainedTokenizerFast":
    """Save for `AutoTokenizer`, with the chat template, and give the tokenizer so loaded.

    `context` is the model's maximum length in tokens.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from posttrain.data.chat import CHATML_TEMPLATE

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (PAD, EOS)],
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHATML_TEMPLATE
    fast.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)

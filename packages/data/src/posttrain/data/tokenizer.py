"""A checkpoint's tokenizer, made fit to train and to sample with.

Three defects of published checkpoints are mended on loading, because each spoils training without an error: a chat
template without `{% generation %}` markers (the loss mask is empty), an end token that is not the one the template
ends turns with (the model never learns to stop), and a padding token equal to the end token (trainers mask it).
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.core.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHATML_TEMPLATE: str = (files("posttrain.data") / "chatml.jinja").read_text(encoding="utf-8")
"""Qwen2.5's ChatML without its default system message and its tools, with `{% generation %}` markers.

The newline stands before each turn but the first, not after it: a conversation's last token is its end token.
"""

START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


def load_tokenizer(checkpoint: str | Path, revision: str | None = None) -> "PreTrainedTokenizerFast":
    """The tokenizer of a folder or Hub id, with a markable chat template, the right end token and its own padding.

    RequestError when there is none, when it is not a fast one, or when it has neither a template with generation
    markers nor ChatML's tokens.
    """
    from transformers import AutoTokenizer

    folder = Path(checkpoint)
    if folder.is_dir() and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise RequestError(
            f"checkpoint {checkpoint} has no tokenizer (tokenizer.json); save the tokenizer of the model it was "
            "trained from beside it"
        )
    if folder.is_file() or (not folder.exists() and (folder.is_absolute() or str(checkpoint).startswith("."))):
        raise RequestError(f"checkpoint {checkpoint} is not a folder; give a Hugging Face checkpoint folder or Hub id")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(checkpoint), revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"no tokenizer could be loaded from {checkpoint}: {reason}") from error
    if not tokenizer.is_fast:
        raise RequestError(f"checkpoint {checkpoint} has a slow tokenizer; convert it to tokenizer.json")
    _set_template(tokenizer, checkpoint)
    _set_end_and_padding(tokenizer, checkpoint)
    return tokenizer


def tokenizer_changes(checkpoint: str | Path) -> dict[str, str | None]:
    """What `load_tokenizer` sets otherwise than the checkpoint's own files say: chat template, end token, padding.

    Empty for a checkpoint that brings all three. Part of what defines an experiment.
    """
    from transformers import AutoTokenizer

    own, used = AutoTokenizer.from_pretrained(checkpoint), load_tokenizer(checkpoint)
    parts = ("chat_template", "eos_token", "pad_token")
    return {part: getattr(used, part) for part in parts if getattr(used, part) != getattr(own, part)}


def _set_template(tokenizer: "PreTrainedTokenizerFast", checkpoint: str | Path) -> None:
    template = tokenizer.chat_template
    if isinstance(template, str) and _GENERATION_MARKER.search(template):
        return
    vocabulary = tokenizer.get_vocab()
    if START_OF_TURN not in vocabulary or END_OF_TURN not in vocabulary:
        raise RequestError(
            f"checkpoint {checkpoint} has no chat template with {{% generation %}} markers and no {START_OF_TURN} in "
            "its vocabulary for ChatML; put a template with markers into its chat_template.jinja"
        )
    tokenizer.chat_template = CHATML_TEMPLATE


def _set_end_and_padding(tokenizer: "PreTrainedTokenizerFast", checkpoint: str | Path) -> None:
    vocabulary = tokenizer.get_vocab()
    if END_OF_TURN in vocabulary:
        tokenizer.eos_token = END_OF_TURN
    if tokenizer.eos_token is None:
        raise RequestError(f"checkpoint {checkpoint} has a tokenizer without an end token; set its eos_token")
    if tokenizer.pad_token is not None and tokenizer.pad_token != tokenizer.eos_token:
        return
    used = {START_OF_TURN, END_OF_TURN, tokenizer.eos_token}
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    preferred = [t for t in ("<|endoftext|>", "<pad>", "<|finetune_right_pad_id|>") if t in vocabulary]
    spare = next((token for token in [*preferred, *special] if token not in used), None)
    if spare is None:
        raise RequestError(
            f"checkpoint {checkpoint} has no token to pad with but its end token {tokenizer.eos_token}; add a pad_token"
        )
    tokenizer.pad_token = spare

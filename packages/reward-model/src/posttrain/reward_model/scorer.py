"""A reward model: one number for a prompt and a completion, by a sequence-classification checkpoint with one label.

Takes a Hugging Face folder or Hub id (safetensors only) and gives, for each encoded item, the model's score minus the
checkpoint's `reward_offset`. Prompt and completion are rendered by the checkpoint's own chat template; the end token
is appended only to a completion that finished. Nothing is truncated: an item that does not fit is an error, since a
score of half a text is not its score.

A score does not depend on its batch beyond 1e-4: batches are padded on the right with the token that the checkpoint's
configuration names, with an attention mask, and the model's own pooling is used. transformers' decoder classifiers
read the last token that is not `config.pad_token_id`; a checkpoint whose pad token is its end token was trained to be
read one token earlier, and is read there.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from posttrain.core.errors import RequestError, WorkError
from posttrain.core.hashing import digest_checkpoint
from posttrain.data.chat import render_completion
from posttrain.data.rows import Message
from posttrain.data.tokenizer import load_tokenizer
from posttrain.reward_model.checkpoint import check_reward_checkpoint, local_folder

NORMALISATION_SHRINKS = 4
"""Composing characters (NFC) shortens text at most this much; it keeps the quick length check on the safe side."""


class RewardModel:
    """A loaded reward model. Not safe for several threads at once, except that `encode` and `score` may overlap."""

    def __init__(self, checkpoint: str, *, batch_tokens: int = 16384, device: str | None = None) -> None:
        folder = local_folder(checkpoint)
        self.offset = float(check_reward_checkpoint(folder).get("reward_offset", 0.0))
        self.tokenizer = load_tokenizer(folder)
        # load_tokenizer replaces a template without loss-mask markers; a reward is read by the model's own.
        self.tokenizer.chat_template = (
            AutoTokenizer.from_pretrained(folder).chat_template or self.tokenizer.chat_template
        )
        self.batch_tokens = batch_tokens
        self.digest = digest_checkpoint(folder)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = _load_model(folder).to(self.device).eval()
        text_config = self._model.config.get_text_config()
        self.max_tokens: int = getattr(text_config, "max_position_embeddings", 1 << 20)
        if text_config.pad_token_id is None:
            text_config.pad_token_id = self.tokenizer.pad_token_id
        self._pad = int(text_config.pad_token_id)
        if len(self.tokenizer) > self._model.get_input_embeddings().num_embeddings:
            raise RequestError(
                f"checkpoint {checkpoint}: its tokenizer has more tokens than its embeddings; they belong to two models"
            )

    def encode(self, prompt: str | Sequence[Message], completion: str, finished: bool) -> list[int]:
        """The ids that the model reads; a text as prompt is one user's message.

        RequestError (without a word of the texts) when the item is longer than the context or the template refuses
        its roles.
        """
        messages: Sequence[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        # Encoding what cannot fit anyway would make a request of many megabytes slow.
        characters = len(completion) + sum(len(message["content"]) for message in messages)
        if characters > self.max_tokens * self._longest_token * NORMALISATION_SHRINKS:
            raise RequestError(
                f"its {characters} characters are more than the reward model's {self.max_tokens} tokens hold"
            )
        try:
            ids = render_completion(self.tokenizer, messages, completion, finished)
        except TemplateError as error:
            raise RequestError(f"the reward model's chat template refuses the messages: {error.message}") from None
        if len(ids) > self.max_tokens:
            raise RequestError(
                f"it has {len(ids)} tokens with the reward model's template, which reads at most {self.max_tokens}"
            )
        return ids

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The score of each sequence of ids, in the order given; WorkError when one is not finite."""
        scores = [0.0] * len(sequences)
        for batch in length_batches([len(ids) for ids in sequences], self.batch_tokens):
            for index, score in zip(batch, self._forward([sequences[i] for i in batch]), strict=True):
                scores[index] = score - self.offset
        if not all(map(math.isfinite, scores)):
            raise WorkError("the reward model gave a score that is not finite; its weights are broken")
        return scores

    @torch.inference_mode()
    def _forward(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        longest = max(map(len, sequences))
        ids = torch.full((len(sequences), longest), self._pad)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        logits = self._model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).logits
        return logits[:, 0].float().tolist()

    @cached_property
    def _longest_token(self) -> int:
        return max(len(token) for token in self.tokenizer.get_vocab())


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first, each of at most `batch_tokens` padded (or of one item)."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _load_model(folder: Path) -> Any:
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    # transformers fills what is missing with random numbers and only warns; a random head scores, and means nothing.
    if report["missing_keys"]:
        raise RequestError(
            f"checkpoint {folder} lacks the weight {sorted(report['missing_keys'])[0]}; it is incomplete"
        )
    return model

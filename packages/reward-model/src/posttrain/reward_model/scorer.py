"""A reward model: one number for a prompt and a completion, by a sequence-classification checkpoint with one label.

Takes a Hugging Face folder or Hub id (safetensors only) and gives, for each encoded item, the model's score minus the
checkpoint's `reward_offset`. Prompt and completion are rendered by the checkpoint's own chat template; the end token
is appended only to a completion that finished. Nothing is truncated: an item that does not fit is an error, since a
score of half a text is not its score.

A score does not depend on its batch beyond 1e-4: sequences of like length are padded on the right, where a causal
model cannot look, and the last token is read as transformers reads it, which is the last that is not
`config.pad_token_id`: a checkpoint whose pad token is its end token was trained to be read one token earlier, and is
read there. A classifier that is not causal gets its attention mask and its own pooling.
"""

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.modeling_layers import GenericForSequenceClassification

from posttrain.core.errors import RequestError, WorkError
from posttrain.core.hashing import digest_checkpoint
from posttrain.data.rows import Message
from posttrain.data.tokenizer import load_tokenizer
from posttrain.reward_model.batching import BatchingQueue
from posttrain.reward_model.checkpoint import check_reward_checkpoint, local_folder
from posttrain.reward_model.encoding import Answer, Encoder

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 32768
"""Tokens of a forward pass where nobody says: on a CPU what a core's cache holds, on a GPU what keeps it busy."""
SMALL = 20_000_000
"""Parameters up to which a pass on one core is faster, core for core, than one that is split over them."""


class RewardModel:
    """A loaded reward model. `score` may be called from several threads, `encode` from one at a time.

    `threads`: cores to compute on, 0 as many as torch would. `batch_tokens`: tokens of a forward pass with padding, 0
    what suits the device.
    """

    def __init__(self, checkpoint: str, *, batch_tokens: int = 0, threads: int = 0, device: str | None = None) -> None:
        folder = local_folder(checkpoint)
        self.offset = float(check_reward_checkpoint(folder).get("reward_offset", 0.0))
        self.tokenizer = load_tokenizer(folder)
        # load_tokenizer replaces a template without loss-mask markers; a reward is read by the model's own.
        self.tokenizer.chat_template = (
            AutoTokenizer.from_pretrained(folder).chat_template or self.tokenizer.chat_template
        )
        self.digest = digest_checkpoint(folder)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.threads = threads or torch.get_num_threads()
        self.batch_tokens = batch_tokens or (CPU_BATCH_TOKENS if self.device == "cpu" else GPU_BATCH_TOKENS)
        self._model = _load_model(folder).to(self.device).eval()
        text_config = self._model.config.get_text_config()
        self.max_tokens: int = getattr(text_config, "max_position_embeddings", 1 << 20)
        if text_config.pad_token_id is None:
            text_config.pad_token_id = self.tokenizer.pad_token_id
        self._pad = int(text_config.pad_token_id)
        self._causal = isinstance(self._model, GenericForSequenceClassification)
        if len(self.tokenizer) > self._model.get_input_embeddings().num_embeddings:
            raise RequestError(
                f"checkpoint {checkpoint}: its tokenizer has more tokens than its embeddings; they belong to two models"
            )
        self._encoder = Encoder(self.tokenizer, self.max_tokens)
        self._queue: BatchingQueue | None = None
        self._starting = threading.Lock()

    def encode(self, prompt: str | Sequence[Message], completion: str, finished: bool) -> list[int]:
        """The ids that the model reads; errors as those of `encode_batch`."""
        return self.encode_batch([Answer(prompt, completion, finished)])[0]

    def encode_batch(self, answers: Sequence[Answer]) -> list[list[int]]:
        """The ids that the model reads of each answer; a text as prompt is one user's message.

        RefusedItem (a RequestError with the index and without a word of the texts) for the first that is longer than
        the context or whose roles the template refuses.
        """
        return self._encoder.encode(answers)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The score of each sequence of ids, in the order given; WorkError when one is not finite."""
        return finite(self.queue.submit(sequences).result())

    def close(self) -> None:
        """Ends the threads, after what waits; a later `score` is not answered."""
        self.queue.close()

    @property
    def queue(self) -> BatchingQueue:
        """The threads that run the model; they start with the first use and serve all callers."""
        # functools.cached_property has no lock since Python 3.12: two first callers would start two sets of threads.
        with self._starting:
            if self._queue is None:
                self._queue = self._start_queue()
            return self._queue

    def _start_queue(self) -> BatchingQueue:
        parameters = sum(parameter.numel() for parameter in self._model.parameters())
        workers = self.threads if self.device == "cpu" and parameters <= SMALL else 1
        return BatchingQueue(
            self.forward,
            batch_tokens=self.batch_tokens,
            threads=workers,
            # The number of threads is set for the calling thread.
            on_start=lambda: torch.set_num_threads(max(1, self.threads // workers)),
        )

    @torch.inference_mode()
    def forward(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The scores of one batch, padded to its longest sequence; they may be infinite or not a number."""
        longest = max(map(len, sequences))
        ids = torch.tensor([[*sequence, *[self._pad] * (longest - len(sequence))] for sequence in sequences])
        ids = ids.to(self.device)
        if self._causal:
            body = getattr(self._model, self._model.base_model_prefix)
            hidden = body(input_ids=ids, use_cache=False).last_hidden_state
            last = (torch.arange(longest, device=self.device) * (ids != self._pad)).argmax(dim=1)
            scores = self._model.score(hidden[torch.arange(len(sequences), device=self.device), last])
        else:
            lengths = torch.tensor([[len(sequence)] for sequence in sequences], device=self.device)
            mask = (torch.arange(longest, device=self.device) < lengths).long()
            scores = self._model(input_ids=ids, attention_mask=mask).logits
        return (scores[:, 0].float() - self.offset).tolist()


def finite(scores: list[float]) -> list[float]:
    """The scores themselves; WorkError when one is infinite or not a number."""
    if not all(map(math.isfinite, scores)):
        raise WorkError("the reward model gave a score that is not finite; its weights are broken")
    return scores


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

"""Conversations to what SFT trains on: token ids, and labels only where the assistant speaks.

Too long sequences are cut, so that their last answer goes on without an end token; those whose prompt alone fills the
context teach nothing and are dropped. Both are counted. Takes any tokenizer with a template that marks generation.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from posttrain.core.errors import RequestError
from posttrain.data.chat import render_conversation
from posttrain.data.rows import Conversation
from posttrain.trainers.accounts import RowAccount, prompt_number

IGNORED = -100
"""The label of a token without loss (PyTorch's cross entropy, TRL)."""


@dataclass(frozen=True)
class Demonstrations:
    """Tokenised conversations; `rows[i]` has `input_ids` and `labels` of one length of at most `max_length`."""

    rows: list[dict[str, list[int]]]
    truncated: int
    dropped: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row["input_ids"]) for row in self.rows]


def labelled(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> tuple[list[int], list[int]]:
    """The ids and labels of a whole conversation, of one length.

    RequestError when the mask is all zeros or all ones, or when the end token of an answer gets no loss: the model
    would never learn to stop.
    """
    try:
        ids, mask = render_conversation(tokenizer, conversation["messages"])
    except RequestError as error:
        raise RequestError(f"conversation {conversation['id']}: {error}") from None
    labels = [token if spoken else IGNORED for token, spoken in zip(ids, mask, strict=True)]
    if tokenizer.eos_token_id not in labels:
        raise RequestError(
            f"conversation {conversation['id']}: the end token {tokenizer.eos_token!r} of the answer gets no "
            "loss, so the model would never learn to stop; put it inside {% generation %} in the chat template"
        )
    return ids, labels


def demonstrations(
    tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Conversation], max_length: int
) -> Demonstrations:
    """Renders every conversation; RequestError as `labelled`, or when nothing is left."""
    rows, truncated, dropped = [], 0, 0
    for conversation in conversations:
        ids, labels = labelled(tokenizer, conversation)
        if len(ids) > max_length:
            ids, labels = ids[:max_length], labels[:max_length]
            if all(label == IGNORED for label in labels):
                dropped += 1
                continue
            truncated += 1
        rows.append({"input_ids": ids, "labels": labels})
    if not rows:
        raise RequestError(
            f"no conversation has any of its answer within {max_length} tokens ({dropped} of {len(conversations)} "
            "prompts are longer); raise max_length or shorten the data"
        )
    return Demonstrations(rows, truncated, dropped)


def accounts(rows: Iterable[Mapping[str, list[int]]]) -> list[RowAccount]:
    """What training on each row counts; `seq_lengths` says where a packed row has several conversations. The prompt of
    one is what is before its first answer."""
    found = []
    for row in rows:
        ids, labels, start = row["input_ids"], row["labels"], 0
        prompts = []
        for length in row.get("seq_lengths", [len(ids)]):
            spoken = (place for place in range(start, start + length) if labels[place] != IGNORED)
            prompts.append(prompt_number(ids[start : next(spoken)]))
            start += length
        found.append(RowAccount(len(ids), tuple(prompts)))
    return found

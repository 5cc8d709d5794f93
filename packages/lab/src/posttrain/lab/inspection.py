"""Rows as training sees them, token by token: ids, which of them have a loss, what a length limit cuts.

Made by the same functions that the trainers call (demonstrations, comparisons, render_prompt), so that what is shown is
what is trained on. Takes rows and a tokenizer; knows neither recipes nor terminals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, median
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from posttrain.core.errors import RequestError, WorkError
from posttrain.data.chat import render_prompt
from posttrain.data.rows import Conversation, Prompt, Ranking
from posttrain.trainers.comparisons import comparisons
from posttrain.trainers.demonstrations import IGNORED, labelled

Limits = Mapping[str, int]
"""By method the most tokens of a row."""


@dataclass(frozen=True)
class Part:
    """A stretch of a row: the conversation, the prompt, an answer."""

    name: str
    ids: list[int]
    trained: list[bool]
    """Of each id, whether it has a loss: itself (SFT), or as part of an answer that is scored."""


@dataclass(frozen=True)
class InspectedRow:
    """One row as ids."""

    id: str
    kind: str
    parts: list[Part]
    length: int
    """Tokens of its longest sequence: what the limits are held against."""
    kept: int | None = None
    """Of a conversation, how many of its tokens the limit leaves; None where rows are whole or dropped."""
    dropped_by: tuple[str, ...] = ()
    """Methods for which the row is too long: they leave it out (of prompts, where `max_prompt_tokens` says so)."""
    end_trained: bool | None = None
    """Whether every answer's last token is an end token with a loss, within the limit; None for prompts."""
    reference: Any = None
    """What the verifier is given."""
    cut_short: bool = False
    """Whether the data say of one of its answers that it was cut, so that it has no end token."""

    @property
    def tokens(self) -> int:
        """What the limit leaves of its parts, a shared prompt counted once."""
        return sum(len(part.ids[: self.kept]) for part in self.parts)

    @property
    def trained(self) -> int:
        """How many of them have a loss."""
        return sum(sum(part.trained[: self.kept]) for part in self.parts)


def inspect_conversation(tokenizer: PreTrainedTokenizerFast, row: Conversation, limits: Limits) -> InspectedRow:
    """A demonstration. WorkError when its mask is empty or covers everything, or no end token has a loss."""
    try:
        ids, labels = labelled(tokenizer, row)
    except RequestError as error:
        raise WorkError(str(error)) from None
    trained = [label != IGNORED for label in labels]
    kept = min([len(ids), *limits.values()])
    dropped = tuple(method for method, limit in limits.items() if not any(trained[:limit]))
    ends = kept == len(ids) and trained[-1] and ids[-1] == tokenizer.eos_token_id
    part = Part("conversation", ids, trained)
    return InspectedRow(row["id"], "conversation", [part], len(ids), kept, dropped, ends)


def inspect_ranking(tokenizer: PreTrainedTokenizerFast, row: Ranking, limits: Limits) -> InspectedRow:
    """A pair (a ranking of two) or a ranking; answers are whole or the row is dropped."""
    (rendered,) = comparisons(tokenizer, [row], max_length=1 << 62).rows
    count = len(rendered.answers)
    names = ["chosen", "rejected"] if count == 2 else [f"answer {number} of {count}" for number in range(1, count + 1)]
    answers = [Part(name, ids, [True] * len(ids)) for name, ids in zip(names, rendered.answers, strict=True)]
    prompt = Part("prompt", rendered.prompt_ids, [False] * len(rendered.prompt_ids))
    length = max(map(len, rendered.sequences))
    dropped = tuple(method for method, limit in limits.items() if length > limit)
    ends = all(ids[-1] == tokenizer.eos_token_id for ids in rendered.answers)
    cut = not all(row.get("finished", ()))
    return InspectedRow(row["id"], row["kind"], [prompt, *answers], length, None, dropped, ends, cut_short=cut)


def inspect_prompt(tokenizer: PreTrainedTokenizerFast, row: Prompt, limits: Limits) -> InspectedRow:
    """A prompt with its reference; nothing of it is trained."""
    ids = render_prompt(tokenizer, row["prompt"])
    dropped = tuple(method for method, limit in limits.items() if len(ids) > limit)
    part = Part("prompt", ids, [False] * len(ids))
    return InspectedRow(row["id"], row["kind"], [part], len(ids), None, dropped, None, row["reference"])


def as_json(tokenizer: PreTrainedTokenizerFast, row: InspectedRow) -> dict[str, Any]:
    """A row for machines."""
    return {
        "id": row.id,
        "kind": row.kind,
        "parts": [
            {"name": part.name, "ids": part.ids, "tokens": token_texts(tokenizer, part.ids), "trained": part.trained}
            for part in row.parts
        ],
        "length": row.length,
        "kept": row.kept,
        "dropped_by": list(row.dropped_by),
        "end_trained": row.end_trained,
        "reference": row.reference,
    }


def summary(rows: Sequence[InspectedRow], limits: Limits) -> dict[str, Any]:
    """Lengths, shares and counts over rows; `trained_share` is of the tokens that the limits leave of rows that some
    method takes, a shared prompt counted once."""
    lengths = [row.length for row in rows]
    taken = [row for row in rows if not limits or set(row.dropped_by) != set(limits)]
    shares = [row.trained / row.tokens for row in taken]
    told: dict[str, Any] = {
        "rows": len(rows),
        "tokens": {"mean": fmean(lengths), "median": median(lengths), "longest": max(lengths)},
        "limits": dict(limits),
        "dropped": {method: sum(method in row.dropped_by for row in rows) for method in limits},
    }
    if any(row.end_trained is not None for row in rows):
        told["trained_share"] = sum(row.trained for row in taken) / sum(row.tokens for row in taken)
        told["trained_share_of_a_row"] = {"least": min(shares), "most": max(shares)}
        told["end_trained"] = sum(row.end_trained is True for row in rows)
        told["cut"] = sum(row.kept is not None and row.kept < row.length and not row.dropped_by for row in rows)
    return told


def token_texts(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> list[str]:
    r"""Each token as text; one that is part of a character only, as its bytes (`\xe2\x82`)."""
    return [_text(tokenizer, token) for token in ids]


def _text(tokenizer: PreTrainedTokenizerFast, token: int) -> str:
    text = tokenizer.decode([token])
    if "\ufffd" not in text:
        return str(text)
    written = str(tokenizer.convert_ids_to_tokens(token))
    values = [_byte_of().get(character) for character in written]
    return written if None in values else "".join(f"\\x{value:02x}" for value in values)


@cache
def _byte_of() -> dict[str, int]:
    """Byte-level BPE writes each byte as a character of its own."""
    return {character: byte for byte, character in bytes_to_unicode().items()}

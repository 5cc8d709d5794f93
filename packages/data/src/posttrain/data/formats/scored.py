"""Preferences that scores tell: equal scores are no preference, and never become an order.

UltraFeedback (Cui et al. 2023)   four answers a prompt, each an object with its text and its score
UltraFeedback-binarized           the answer of the highest score and another one, with both scores
"""

from typing import Any

from posttrain.data.formats.format import Record, UnusableRow
from posttrain.data.formats.generic import pair as generic_pair
from posttrain.data.formats.generic import prompt_messages
from posttrain.data.formats.places import NoSuchPlace, value_at
from posttrain.data.rows import Message


def ranking(record: Record) -> tuple[list[Message], list[str]]:
    """Prompt and answers, the highest score first. Of answers with one score the first stays and the others are left
    out, as are answers without a score; UnusableRow when fewer than two stay."""
    best: dict[float, str] = {}
    for answer in _answers(record):
        text, score = _place(record, answer, "text"), _number(_place(record, answer, "score"))
        if not isinstance(text, str) or score is None:
            record.left_out["answers without text or score"] += 1
        elif score in best:
            record.left_out["answers with the score of another one"] += 1
        else:
            best[score] = text
    if len(best) < 2:
        raise UnusableRow("no two answers of different score")
    return prompt_messages(record), [best[score] for score in sorted(best, reverse=True)]


def extremes(record: Record) -> tuple[list[Message], str, str]:
    """Prompt, and the answers of the highest and the lowest score."""
    prompt, texts = ranking(record)
    return prompt, texts[0], texts[-1]


def binarized_pair(record: Record) -> tuple[list[Message], str, str]:
    """Prompt, chosen and rejected answer; UnusableRow when their scores are equal."""
    if _number(record["score_chosen"]) == _number(record["score_rejected"]):
        raise UnusableRow("equal scores")
    return generic_pair(record)


def _answers(record: Record) -> list[Any]:
    answers = record["completions"]
    if not isinstance(answers, list | tuple) or not all(isinstance(answer, dict) for answer in answers):
        raise record.error(f"column '{record.columns['completions']}' must be a list of answers with text and score")
    return list(answers)


def _place(record: Record, answer: dict[str, Any], role: str) -> Any:
    try:
        return value_at(answer, record.columns[role])
    except NoSuchPlace as missing:
        there = ", ".join(answer)
        raise record.error(f"an answer has no '{missing}' (it has {there}); set columns.{role} of the data") from None


def _number(score: Any) -> float | None:
    """A score that is a number, or is written as one; None for `N/A` and its like."""
    if isinstance(score, bool):
        return None
    try:
        number = float(score)
    except (TypeError, ValueError):
        return None
    return None if number != number else number

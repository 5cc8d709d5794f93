"""Annotations as JSON Lines in AlpacaEval's columns (github.com/tatsu-lab/alpaca_eval), with ours beside them.

An exported file holds everything, so that it fills an empty store with the same keys. A file of AlpacaEval's own, or
of anybody else who writes those columns, becomes annotations of the annotator that it names.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from posttrain.core.config import validate
from posttrain.core.errors import RequestError
from posttrain.core.files import read_json, read_jsonl
from posttrain.core.hashing import digest_json
from posttrain.core.wire import Message
from posttrain.llm_judge.comparisons import Comparison, Game, Order
from posttrain.llm_judge.judgements import Decision, Judgement, judgement_key

Judged = tuple[Judgement, Game]

FOREIGN = "annotations"
"""The back-end in the identity of an annotator that only a file is known of."""
TURNS = "\n\n"
"""Between the turns of a conversation where a column holds one text."""
ROUNDING = 1e-6
"""By which a preference may differ from the value that it was computed from."""


def _known(value: Any) -> Any:
    """pandas has NaN for what is not known, and some write it so."""
    return None if isinstance(value, float) and math.isnan(value) else value


Number = Annotated[float | None, BeforeValidator(_known)]


class AlpacaEvalRow(BaseModel):
    """What AlpacaEval's annotation files have; other columns of theirs are ignored."""

    model_config = ConfigDict(
        extra="ignore", allow_inf_nan=False, coerce_numbers_to_str=True, use_attribute_docstrings=True
    )

    instruction: str
    input: str | None = None
    """More of the instruction, in files of AlpacaFarm."""
    output_1: str
    generator_1: str | None = None
    output_2: str
    generator_2: str | None = None
    dataset: str | None = None
    """The category of the instruction."""
    annotator: str
    preference: Number = Field(ge=0, le=2)
    """1 + P(output_2 is better); 0 is an old sign for a tie; null, no verdict could be read."""
    price_per_example: Number = None
    time_per_example: Number = None
    """Seconds."""
    raw_completion: JsonValue = None


class OurRow(BaseModel):
    """What an export has. `output_1` is A's answer and `output_2` B's, whichever was shown first."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    instruction: str
    output_1: str
    generator_1: str | None
    output_2: str
    generator_2: str | None
    annotator: str
    """`annotator_name` of the judge."""
    preference: float | None
    """1 + P(output_2 is better), from this one game; null for a grade, and where there is no verdict."""
    price_per_example: float | None
    time_per_example: float
    raw_completion: str
    key: str
    judge: dict[str, Any]
    """The judge's identity."""
    order: Order
    """Which answers were shown, in this order: a is output_1."""
    turn: int
    """How many turns the judge saw."""
    replicate: int = Field(ge=0)
    label: str | None
    value: float | None
    """What the judge said of the answers as shown: P(the second is better), or the grade of the only one."""
    prompt_tokens: int
    completion_tokens: int
    created: float
    """Unix seconds."""
    category: str | None
    reference: str | None
    rubric: str | None
    human: float | None = Field(ge=0, le=1)
    """What people said: 1, output_2 is better."""
    prompt_id: str
    history: list[Message] | None = None
    """What was said before; left out where nothing was."""
    questions: list[str] | None = None
    """The turns one by one, where there are several; `instruction` has them joined."""
    answers_1: list[str] | None = None
    answers_2: list[str] | None = None
    cut_1: bool = False
    """Whether `output_1` ends because it was cut; left out where neither does."""
    cut_2: bool = False


def annotator_name(judge: Mapping[str, Any]) -> str:
    """A judge in one word: its model, or the source of scores, its protocol, and the beginning of its identity's
    digest, for two settings of one model are two annotators; of one that only a file is known of, the name in the
    file."""
    if judge.get("backend") == FOREIGN:
        return str(judge["annotator"])
    request, protocol = judge.get("request"), judge.get("protocol")
    asked = request.get("model") if isinstance(request, Mapping) else None
    named = judge.get("model") or asked or judge.get("source") or judge.get("judge") or "judge"
    manner = protocol.get("name") if isinstance(protocol, Mapping) else protocol
    return "-".join(str(part) for part in (named, manner, digest_json(dict(judge))[:8]) if part)


def to_row(judgement: Judgement, game: Game) -> dict[str, Any]:
    """One annotation as a line of an export."""
    asked, decision, turns = game.comparison, judgement.decision, game.turns
    preference = judgement.preference
    row: dict[str, Any] = {
        "instruction": TURNS.join(asked.questions[:turns]),
        "output_1": TURNS.join(asked.answers_a[:turns]),
        "generator_1": asked.generator_a,
        "output_2": TURNS.join(asked.answers_b[:turns]),
        "generator_2": asked.generator_b,
        "annotator": annotator_name(judgement.judge),
        "preference": None if preference is None else 1 + preference,
        "price_per_example": decision.cost,
        "time_per_example": decision.seconds,
        "raw_completion": decision.raw,
        "key": judgement.key,
        "judge": dict(judgement.judge),
        "order": judgement.order,
        "turn": turns,
        "replicate": game.replicate,
        "label": decision.label,
        "value": decision.value,
        "prompt_tokens": decision.prompt_tokens,
        "completion_tokens": decision.completion_tokens,
        "created": judgement.created,
        "category": asked.category,
        "reference": asked.reference,
        "rubric": asked.rubric,
        "human": asked.human,
        "prompt_id": asked.prompt_id,
    }
    if asked.history:
        row["history"] = [message.model_dump() for message in asked.history]
    if turns > 1:
        row["questions"] = list(asked.questions[:turns])
        row["answers_1"], row["answers_2"] = list(asked.answers_a[:turns]), list(asked.answers_b[:turns])
    if any(game.cut.values()):
        row["cut_1"], row["cut_2"] = game.cut["a"], game.cut["b"]
    return row


def from_row(row: Mapping[str, Any], where: str) -> Judged:
    """The annotation in a line; RequestError, beginning with `where`, if it is none.

    Ours is told by its key, which must fit the rest. AlpacaEval's does not say which answer was shown first: it is
    taken as order "ab", of a judge with the identity `{"backend": "annotations", "annotator": its name}`, and its key
    follows from that and the texts as every key does.
    """
    try:
        return _from_ours(row, where) if "key" in row else _from_alpaca_eval(row, where)
    except UnicodeEncodeError as error:
        raise RequestError(f"{where}: half a character (a lone surrogate) in {error.object[:40]!r}") from None


def read_export(path: Path) -> list[Judged]:
    """All annotations of a JSON Lines file, or of a JSON array as AlpacaEval writes them; RequestError names the first
    line, or entry, that is none."""
    return [from_row(row, where) for where, row in numbered_objects(path)]


def rows(judged: Iterable[Judged]) -> Iterator[dict[str, Any]]:
    """The lines of an export."""
    return (to_row(judgement, game) for judgement, game in judged)


def _from_ours(row: Mapping[str, Any], where: str) -> Judged:
    ours = validate(OurRow, row, where)
    comparison = _comparison(
        where,
        history=tuple(ours.history or ()),
        questions=ours.questions or [ours.instruction],
        answers_a=ours.answers_1 or [ours.output_1],
        answers_b=ours.answers_2 or [ours.output_2],
        cut_a=ours.cut_1,
        cut_b=ours.cut_2,
        generator_a=ours.generator_1,
        generator_b=ours.generator_2,
        reference=ours.reference,
        rubric=ours.rubric,
        category=ours.category,
        human=ours.human,
        prompt_id=ours.prompt_id,
    )
    game = Game(comparison, ours.order, replicate=ours.replicate)
    decision = Decision(
        label=ours.label,
        value=ours.value,
        raw=ours.raw_completion,
        prompt_tokens=ours.prompt_tokens,
        completion_tokens=ours.completion_tokens,
        cost=ours.price_per_example,
        seconds=ours.time_per_example,
    )
    judgement = Judgement(ours.key, ours.judge, ours.order, decision, ours.created)
    if judgement_key(ours.judge, game) != ours.key:
        raise RequestError(f"{where}: the key is not that of the judge and the texts; was the line changed?")
    _check_value(judgement, ours.preference, where)
    return judgement, game


def _check_value(judgement: Judgement, preference: float | None, where: str) -> None:
    value = judgement.decision.value
    if value is not None and len(judgement.order) == 2 and not 0 <= value <= 1:
        raise RequestError(f"{where}: 'value' is a probability with order '{judgement.order}', not {value}")
    if (value is None) != (judgement.decision.label is None):
        raise RequestError(f"{where}: 'label' and 'value' stand together, or are both null")
    told = judgement.preference
    if (told is None) != (preference is None) or abs((told or 0) - ((preference or 1) - 1)) > ROUNDING:
        raise RequestError(f"{where}: 'preference' {preference} does not follow from 'value' {value}")


def _from_alpaca_eval(row: Mapping[str, Any], where: str) -> Judged:
    theirs = validate(AlpacaEvalRow, row, where)
    preference = 1.5 if theirs.preference == 0 else theirs.preference
    if preference is not None and preference < 1:
        raise RequestError(f"{where}: 'preference' is from 1 to 2, not {preference}")
    comparison = _comparison(
        where,
        questions=[TURNS.join(filter(None, (theirs.instruction, theirs.input)))],
        answers_a=[theirs.output_1],
        answers_b=[theirs.output_2],
        generator_a=theirs.generator_1,
        generator_b=theirs.generator_2,
        category=theirs.dataset,
    )
    game = Game(comparison, "ab")
    raw = theirs.raw_completion
    decision = Decision(
        label=None if preference is None else "tie" if preference == 1.5 else "12"[preference > 1.5],
        value=None if preference is None else preference - 1,
        raw=raw if isinstance(raw, str) else "" if raw is None else json.dumps(raw, ensure_ascii=False),
        cost=theirs.price_per_example,
        seconds=theirs.time_per_example or 0.0,
    )
    judge = {"backend": FOREIGN, "annotator": theirs.annotator}
    return Judgement(judgement_key(judge, game), judge, "ab", decision, time.time()), game


def _comparison(where: str, **fields: Any) -> Comparison:
    return validate(Comparison, fields, where)


def numbered_objects(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object of a JSON Lines file or a JSON array, with the place to name in an error."""
    text = _beginning(path)
    if text.startswith(b"["):
        entries = read_json(path)
        for number, entry in enumerate(entries, start=1):
            if not isinstance(entry, dict):
                raise RequestError(f"{path}: entry {number} must be a JSON object, not {type(entry).__name__}")
            yield f"{path}: entry {number}", entry
        return
    found = read_jsonl(path)
    with open(path, "rb") as file:
        numbers = [number for number, line in enumerate(file, start=1) if line.strip()]
    yield from ((f"{path}:{number}", row) for number, row in zip(numbers, found, strict=True))


def _beginning(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4096).lstrip()
    except OSError:
        # Whoever reads it whole says why it cannot be read.
        return b""

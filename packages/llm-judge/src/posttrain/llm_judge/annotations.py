"""Turns annotations, single games with what the judge said, into the tables that statistics take."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat

from posttrain.core.config import validate
from posttrain.core.errors import RequestError
from posttrain.core.files import read_jsonl
from posttrain.llm_judge.comparisons import Game, Order
from posttrain.llm_judge.exchange import TURNS, Judged, annotator_name
from posttrain.llm_judge.judgements import sees_cut
from posttrain.llm_judge.statistics.pairs import Floats, Pairs

Paired = Mapping[Order, Judged]
"""What was said of two answers, by the order in which they were shown."""


@dataclass(frozen=True)
class Annotations:
    """What one judge said of the answers of one A and one B."""

    annotator: str
    generator_a: str | None
    generator_b: str | None
    instructions: Sequence[str]
    """(n,) what was asked, by which files of difficulties know it."""
    turns: Sequence[int]
    """(n,) how many turns of it the judge saw."""
    answers_a: Sequence[tuple[str, ...]]
    """(n,) A's, a text a turn."""
    answers_b: Sequence[tuple[str, ...]]
    pairs: Pairs
    """(n,) a row for each two answers."""


class Difficulty(BaseModel):
    """A row of a file of difficulties; other columns are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    instruction: str
    difficulty: FiniteFloat


def tabulate(annotations: Iterable[Judged]) -> list[Annotations]:
    """A table for each judge, A and B, in the order in which they appear.

    The two orders of a pair are brought together. What was asked again, another replicate or turn or the same answers
    once more, is a pair each time, of one prompt. Grades of single answers are no comparisons, and passed over.
    """
    tables: dict[tuple[str, str | None, str | None], list[Paired]] = defaultdict(list)
    for pair in paired((said, game) for said, game in annotations if len(game.order) == 2):
        judgement, game = next(iter(pair.values()))
        asked = game.comparison
        tables[annotator_name(judgement.judge), asked.generator_a, asked.generator_b].append(pair)
    return [_table(*of, pairs) for of, pairs in tables.items()]


def paired(annotations: Iterable[Judged]) -> list[Paired]:
    """What belongs to the same two answers brought together, in the order of first appearance: the two orders of a
    comparison, or the grades of both answers. What was asked again is a pair each time."""
    pairs: dict[Any, dict[Order, Judged]] = {}
    times: Counter[Any] = Counter()
    for judgement, game in annotations:
        asked = game.comparison
        of = annotator_name(judgement.judge), asked.generator_a, asked.generator_b, len(game.order)
        cut = (asked.cut_a, asked.cut_b) if sees_cut(judgement.judge) else None
        shown = asked.prompt_id, asked.questions, asked.answers_a, asked.answers_b, cut
        pair = (*of, *shown, game.turns, game.replicate)
        times[pair, game.order] += 1
        pairs.setdefault((pair, times[pair, game.order]), {})[game.order] = judgement, game
    return list(pairs.values())


def read_difficulties(path: Path) -> dict[str, float]:
    """The difficulty of each instruction, from JSON Lines of `instruction` and `difficulty`; RequestError names file
    and row of what is none."""
    difficulties: dict[str, float] = {}
    for number, content in enumerate(read_jsonl(path), start=1):
        where = f"{path}, row {number}"
        row = validate(Difficulty, content, where)
        if difficulties.setdefault(row.instruction, row.difficulty) != row.difficulty:
            raise RequestError(f"{where}: the instruction has another difficulty in a row before; keep one of them")
    return difficulties


def difficulties_of(instructions: Sequence[str], known: Mapping[str, float], path: Path) -> Floats:
    """(n,) the difficulty of each of `instructions` (n,); RequestError if `path`, where they come from, lacks one."""
    missing = [instruction for instruction in dict.fromkeys(instructions) if instruction not in known]
    if missing:
        raise RequestError(
            f"{path} has no difficulty for {len(missing)} of the {len(set(instructions))} instructions, the first "
            f"being {missing[0]!r:.80}"
        )
    return np.array([known[instruction] for instruction in instructions])


def instruction(game: Game) -> str:
    """What the game shows of its prompt, by which files of difficulties know it."""
    return TURNS.join(game.comparison.questions[: game.turns])


def _table(annotator: str, generator_a: str | None, generator_b: str | None, pairs: Sequence[Paired]) -> Annotations:
    def numbers(values: Iterable[float | None]) -> Floats:
        return np.array([math.nan if value is None else value for value in values], dtype=float)

    def likes(order: Order) -> Floats:
        return numbers(pair[order][0].preference if order in pair else None for pair in pairs)

    games = [next(iter(pair.values()))[1] for pair in pairs]
    asked = [game.comparison for game in games]
    return Annotations(
        annotator,
        generator_a,
        generator_b,
        instructions=[instruction(game) for game in games],
        turns=[game.turns for game in games],
        answers_a=[game.comparison.answers_a[: game.turns] for game in games],
        answers_b=[game.comparison.answers_b[: game.turns] for game in games],
        pairs=Pairs(
            first=likes("ab"),
            second=likes("ba") if any("ba" in pair for pair in pairs) else None,
            prompts=[comparison.prompt_id for comparison in asked],
            length_a=numbers(_length(game, game.comparison.answers_a) for game in games),
            length_b=numbers(_length(game, game.comparison.answers_b) for game in games),
            human=numbers(comparison.human for comparison in asked),
            categories=[comparison.category for comparison in asked],
            equal=[_is_equal(pair) for pair in pairs],
        ),
    )


def _is_equal(pair: Paired) -> bool:
    """Whether the judge sees the same in both places."""
    judgement, game = next(iter(pair.values()))
    asked = game.comparison
    alike = not sees_cut(judgement.judge) or game.cut["a"] == game.cut["b"]
    return alike and asked.answers_a[: game.turns] == asked.answers_b[: game.turns]


def _length(game: Game, answers: Sequence[str]) -> int:
    return sum(map(len, answers[: game.turns]))

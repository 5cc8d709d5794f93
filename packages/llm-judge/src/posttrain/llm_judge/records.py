"""The record of a match: everything that is said of it, as JSON, and the annotations that it rests on.

`runs/judge/<id>.json` is the record, `<id>.jsonl` beside it the annotations in the columns of an export: `posttrain
judge score` on it gives the same rates again, `posttrain judge import` fills another store. The annotations are
written first, so a record that is there is whole. Only finished matches are written: one that was interrupted, or has
games without an answer, is in the store as far as it came, and the same question asked again goes on from there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from posttrain.core.commits import git_commit
from posttrain.core.errors import RequestError
from posttrain.core.files import atomic_write_json, read_json, write_jsonl
from posttrain.core.hashing import digest_json
from posttrain.core.statistics import paired_difference
from posttrain.llm_judge import __version__
from posttrain.llm_judge.annotations import Annotations, instruction, tabulate
from posttrain.llm_judge.comparisons import Comparison
from posttrain.llm_judge.exchange import annotator_name, rows
from posttrain.llm_judge.judgements import Judge, Judgement, judgement_keys
from posttrain.llm_judge.matches import Match, Played
from posttrain.llm_judge.protocol_scores import protocol_score
from posttrain.llm_judge.scores import as_json, scores
from posttrain.llm_judge.statistics.power import sensitivity
from posttrain.llm_judge.statistics.sequential import confidence_sequence, prompt_means

SHOWN = frozenset(
    [
        "id",
        "a",
        "b",
        "judge",
        "prompts",
        "comparisons",
        "rates",
        "score",
        "power",
        "sequential",
        "warnings",
        "games",
        "spent",
        "annotations",
        "created",
    ]
)
"""What of a record people are shown: what has less is none."""


@dataclass(frozen=True)
class Side:
    """A or B: who answered."""

    name: str
    kind: Literal["file", "checkpoint", "url", "given"]
    """`given`: the answers came with the request."""
    where: str | None = None
    """The path or the address."""
    made_by: Mapping[str, Any] | None = None
    """Of answers that were generated for the match: the model with its weights and how it was sampled from."""


Sides = tuple[Side, Side]


def record_id(
    match: Match,
    judge: Judge,
    sides: Sides,
    *,
    difficulties: Mapping[str, float] | None = None,
    stop_when_clear: bool = False,
) -> str:
    """Twelve hex digits that stand for what was asked: the names of both sides, all texts of every game, the judge with
    its protocol, and what rates are made of besides: categories, human labels, difficulties. Where the match may stop
    early the order of the games is in it."""
    games = match.games()
    asked = [
        [game.order, key, game.comparison.category, game.comparison.human, (difficulties or {}).get(instruction(game))]
        for game, key in zip(games, judgement_keys(judge.identity, games), strict=True)
    ]
    names = [side.name for side in sides]
    # By their text: a number and None have no order.
    return digest_json([names, stop_when_clear, asked if stop_when_clear else sorted(asked, key=str)])[:12]


def record_of(
    played: Played,
    judge: Judge,
    sides: Sides,
    *,
    difficulties: Mapping[str, float] | None = None,
    drawn: Mapping[str, Any] | None = None,
    stop_when_clear: bool = False,
) -> dict[str, Any]:
    """What is to be said of a match, as JSON. `difficulties` of the instructions, for the length-controlled rate;
    `drawn`, from where the prompts are and how they were drawn, is kept as it is; `stop_when_clear` as `play` was told.

    `rates`: `scores` with `p_value`, two-sided, of a win rate of ½; null where no pair has a verdict, as with grades.
    `score`: `protocol_score`. `power`: `sensitivity`, in shares. `sequential`, where the match may stop early: after
    how many prompts it was clear, which side was `better` (null: not clear), and the interval, in per cent, that holds
    whenever one stops. `spent` is what this run took, `annotations` what the answers took, whoever asked for them; a
    cost of null is not known. `finished`: every game that counts has an answer.
    """
    match, report, tally = played.match, played.report, played.report.tally
    tables = tabulate(played.judged)
    if len(tables) > 1:
        raise ValueError(f"{len(tables)} judges or pairs of A and B in what is to be one record")
    table = tables[0] if tables else None
    rates, warnings = _rates(table, difficulties)
    sequential = _sequential(table, played) if stop_when_clear else None
    if rates and sequential and played.clear:
        # Whoever stops because it looks clear has no test at a fixed number of prompts.
        rates["p_value"] = None
        warnings.append(_stopped(sequential))
    said = [judgement for judgement, _ in played.judged]
    return as_json(
        {
            "id": record_id(match, judge, sides, difficulties=difficulties, stop_when_clear=stop_when_clear),
            "a": _side(sides[0], match.comparisons, "answers_a"),
            "b": _side(sides[1], match.comparisons, "answers_b"),
            "judge": {"name": annotator_name(judge.identity), "identity": dict(judge.identity)},
            "protocol": match.protocol.identity if match.protocol else None,
            "drawn": dict(drawn) if drawn else None,
            "replicates": match.replicates,
            "prompts": len({comparison.prompt_id for comparison in match.comparisons}),
            "comparisons": len(match.comparisons),
            "finished": (report.complete or played.clear is not None) and not report.failures,
            "ended": report.ended,
            "rates": rates,
            "score": protocol_score(match.protocol, played.judged, table),
            "power": _power(table) if rates else None,
            "sequential": sequential,
            "warnings": warnings,
            "games": {
                "total": tally.total,
                "stored": tally.stored,
                "asked": tally.asked,
                "failed": tally.failed,
                "unparsed": sum(judgement.decision.label is None for judgement in said),
            },
            "failures": [
                {"prompt_id": game.comparison.prompt_id, "order": game.order, "turn": game.turns, "why": failure.why}
                for failure in report.failures
                for game in (failure.game,)
            ],
            "spent": {
                "prompt_tokens": tally.prompt_tokens,
                "completion_tokens": tally.completion_tokens,
                "cost": tally.cost,
                "seconds": report.seconds,
            },
            "annotations": _annotations(said),
            "package": f"posttrain-llm-judge {__version__}",
            "git_commit": git_commit(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


def write_record(folder: Path, played: Played, record: Mapping[str, Any]) -> Path:
    """Writes a record and its annotations into `folder`; the record's path. ValueError for an unfinished match.

    Where the same question has a record already, what that run took stands in `earlier` of the new one, a row a run.
    """
    if not record["finished"]:
        raise ValueError(f"the match {record['id']} is not finished, and has no record")
    path = Path(folder) / f"{record['id']}.json"
    earlier = _earlier(path)
    write_jsonl(annotations_of(path), rows(played.judged))
    atomic_write_json(path, {**record, "earlier": earlier})
    return path


def annotations_of(record: Path) -> Path:
    """The file of annotations beside a record's."""
    return record.with_suffix(".jsonl")


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file; RequestError where it is none."""
    record = read_json(path)
    named = ("a", "b", "judge")
    if (
        not isinstance(record, dict)
        or not record.keys() >= SHOWN
        or not all(isinstance(record[key], dict) and isinstance(record[key].get("name"), str) for key in named)
    ):
        raise RequestError(f"{path} is no record of a match; `posttrain judge show` lists those there are")
    return record


def _rates(
    table: Annotations | None, difficulties: Mapping[str, float] | None
) -> tuple[dict[str, Any] | None, list[str]]:
    """`scores` and p of the win rate, and what is to be known about them."""
    if table is None:
        return None, []
    known = [difficulties.get(instruction, math.nan) for instruction in table.instructions] if difficulties else None
    try:
        found = scores(table.pairs, None if known is None else np.array(known))
    except ValueError as error:
        return None, [f"No win rate: {error}."]
    preference = table.pairs.preference
    judged = ~np.isnan(preference)
    prompts = [prompt for prompt, has in zip(table.pairs.prompts, judged, strict=True) if has]
    even = np.full(len(prompts), 0.5)
    p_value = paired_difference(preference[judged], even, prompts).p_value if len(set(prompts)) > 1 else None
    return found | {"p_value": p_value}, list(found["warnings"])


def _power(table: Annotations | None) -> dict[str, Any] | None:
    if table is None or len(set(table.pairs.prompts)) < 2:
        return None
    try:
        found = sensitivity(table.pairs.preference, table.pairs.prompts)
    except ValueError:  # fewer than two prompts with a verdict
        return None
    return asdict(found) | {"sentence": found.sentence}


def _sequential(table: Annotations | None, played: Played) -> dict[str, Any]:
    values = prompt_means(table.pairs) if table else np.array([])
    lower, upper = confidence_sequence(values)
    clear = played.clear
    return {
        "prompts": clear.prompts if clear else len(values),
        "of": len({comparison.prompt_id for comparison in played.match.comparisons}),
        "better": clear.better if clear else None,
        "interval": [100 * float(lower[-1]), 100 * float(upper[-1])] if len(values) else [0.0, 100.0],
    }


def _stopped(sequential: Mapping[str, Any]) -> str:
    low, high = sequential["interval"]
    return (
        f"Stopped as clear after {sequential['prompts']} of {sequential['of']} prompts: the rate of a run that stops "
        "because it looks good is too far from 50 %, and its standard error does not know. What holds is the interval "
        f"from {low:.1f} to {high:.1f} %."
    )


def _earlier(path: Path) -> list[dict[str, Any]]:
    """When runs of the same question before this one were, and what they took; the oldest first."""
    try:
        before = read_record(path)
    except RequestError:  # there is none, or a file that is to be replaced by one
        return []
    took = {name: before.get(name) for name in ("created", "git_commit", "games", "spent")}
    return [*before.get("earlier", []), took]


def _side(side: Side, comparisons: Sequence[Comparison], answers: str) -> dict[str, Any]:
    said = sorted([list(one.questions), list(getattr(one, answers))] for one in comparisons)
    return asdict(side) | {"answers": digest_json(said)}


def _annotations(said: Sequence[Judgement]) -> dict[str, Any]:
    """How many, a digest of which game each is and what was said, and what they took."""
    # Of equal answers both orders are one game, which was asked once.
    paid = [judgement.decision for judgement in {judgement.key: judgement for judgement in said}.values()]
    costs = [decision.cost for decision in paid]
    return {
        "count": len(said),
        "digest": digest_json(sorted([one.key, one.order, one.decision.value] for one in said)),
        "prompt_tokens": sum(decision.prompt_tokens for decision in paid),
        "completion_tokens": sum(decision.completion_tokens for decision in paid),
        "cost": None if None in costs else sum(cost for cost in costs if cost is not None),
    }

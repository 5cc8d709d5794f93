"""The figure that a protocol is known for, beside the win rate: Arena-Hard's score, MT-Bench's rates and grades.

Which one it is follows from the protocol's scale and turns, so a template of one's own that has them has its figure.
Everything is JSON; win rates are in per cent, grades on the protocol's scale.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from posttrain.core.statistics import paired_difference
from posttrain.llm_judge.annotations import Annotations, Paired, paired
from posttrain.llm_judge.comparisons import Game, Order
from posttrain.llm_judge.exchange import Judged
from posttrain.llm_judge.protocols import Protocol
from posttrain.llm_judge.statistics.arena_hard import VERDICTS, arena_hard_score
from posttrain.llm_judge.statistics.estimates import IntervalEstimate
from posttrain.llm_judge.statistics.mt_bench import Breakdown, grades, pairwise

BOTH: tuple[Order, Order] = ("ab", "ba")
GRADED: tuple[Order, Order] = ("a", "b")


def protocol_score(protocol: Protocol | None, judged: Sequence[Judged], table: Annotations | None) -> Any:
    """The own figure of `protocol` for `judged`, the games of one judge, A and B, and their `table`; None where it has
    none, or there is too little to say it: `kind` tells which.

    `arena_hard`: B's score against A. `mt_bench`: B's adjusted win rate over all, by category and by turn.
    `grades`: the mean grades of `a` and `b` in the same way, and `difference`, B's less A's, paired and clustered by
    prompt.
    """
    if protocol is None:
        return None
    template = protocol.template
    if template.shows == "one":
        return {"kind": "grades", **_grades(judged, (min(template.scale.values()), max(template.scale.values())))}
    if list(template.scale) == list(VERDICTS):
        return _arena_hard(judged)
    if template.turns == "each" and table is not None and table.pairs.two_orders:
        found = pairwise(table.pairs, table.turns)
        counts = {name: getattr(found, name) for name in ("wins", "losses", "ties", "disagreements")}
        return {"kind": "mt_bench", **counts, "win_rate": _breakdown(found.win_rate, 100)}
    return None


def _arena_hard(judged: Sequence[Judged]) -> dict[str, Any] | None:
    pairs = paired(judged)
    first, second = ([pair[order][0].decision.label if order in pair else None for pair in pairs] for order in BOTH)
    prompts = [_game(pair).comparison.prompt_id for pair in pairs]
    try:
        found = arena_hard_score(first, second, prompts)
    except ValueError:  # fewer than two prompts with verdicts: the bias report counts those without
        return None
    rates = {"score": 100 * found.score, "standard_error": 100 * found.standard_error}
    interval = [100 * bound for bound in found.interval]
    counts = {"pairs": found.pairs, "unparsed": found.unparsed}
    return {"kind": "arena_hard", **rates, "interval": interval, "p_value": found.p_value, **counts}


def _grades(judged: Sequence[Judged], scale: tuple[float, float]) -> dict[str, Any]:
    pairs = paired(judged)
    games = [_game(pair) for pair in pairs]
    of_a, of_b = (np.array([_value(pair, order) for pair in pairs], dtype=float) for order in GRADED)
    turns, prompts = [game.turns for game in games], [game.comparison.prompt_id for game in games]
    categories = [game.comparison.category for game in games]
    both = ~np.isnan(of_a + of_b)
    clusters = [prompt for prompt, known in zip(prompts, both, strict=True) if known]
    enough = len(set(clusters)) > 1
    return {
        "a": _breakdown(grades(of_a, turns, prompts, categories, scale)),
        "b": _breakdown(grades(of_b, turns, prompts, categories, scale)),
        "difference": asdict(paired_difference(of_b[both], of_a[both], clusters)) if enough else None,
    }


def _value(pair: Paired, order: Order) -> float | None:
    return pair[order][0].decision.value if order in pair else None


def _game(pair: Paired) -> Game:
    return next(iter(pair.values()))[1]


def _breakdown(found: Breakdown, unit: float = 1) -> dict[str, Any]:
    def told(estimate: IntervalEstimate) -> dict[str, Any]:
        low, high = estimate.interval
        scaled = {"value": unit * estimate.value, "standard_error": unit * estimate.standard_error}
        return {**scaled, "n": estimate.n, "interval": [unit * low, unit * high]}

    return {
        "overall": told(found.overall),
        "by_category": {category: told(estimate) for category, estimate in found.by_category.items()},
        "by_turn": {str(turn): told(estimate) for turn, estimate in found.by_turn.items()},
        "by_category_and_turn": [
            {"category": category, "turn": turn, **told(estimate)}
            for (category, turn), estimate in found.by_category_and_turn.items()
        ],
        "unparsed": found.unparsed,
    }

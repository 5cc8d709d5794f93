"""What judges say of a table's rows: columns beside the scores, a table and sentences of their own, JSON."""

import math
from collections.abc import Mapping
from typing import Any

from posttrain.lab.arms import LEARNED
from posttrain.lab.cell_values import NOTHING, Cells, plain, shown, shown_p
from posttrain.lab.judge_scores import JudgedBy, WinRate
from posttrain.lab.plan import REFERENCE
from posttrain.lab.table import Table, TableRow

TITLE = f"judge win rate vs {REFERENCE}"


def judge_heads(table: Table) -> list[str]:
    """A column a judge; one where nobody judged."""
    return [f"{TITLE} ({judge})" for judge in table.judges.names] if table.judges else [TITLE]


def judge_columns(table: Table, row: TableRow, beside: str) -> list[str]:
    """The row's cells in them."""
    if table.judges is None:
        return [NOTHING]
    rates = table.win_rates.get(row.name, {})
    return [_rate(rates[judge], beside) if judge in rates else NOTHING for judge in table.judges.names]


def judged(table: Table, beside: str) -> Cells:
    """Every judged row: by each judge the win rate and its corrected p, and its error where there is gold."""
    assert table.judges is not None, "nobody judged these rows"
    judges = table.judges
    head = ["Method"]
    for judge in judges.names:
        head += [f"{judge}: win rate", f"{judge}: corrected p"]
        if judges.held_against_gold(judge):
            head += [f"{judge}: right where {judges.gold} decides", f"{judge}: kappa with {judges.gold}"]
    body = []
    for name, rates in table.win_rates.items():
        cells = [name]
        for judge in judges.names:
            rate = rates.get(judge)
            cells += [_rate(rate, beside), shown_p(rate.corrected)] if rate else [NOTHING, NOTHING]
            cells += _error(rate, beside) if judges.held_against_gold(judge) else []
        body.append(cells)
    return [head, *body]


def judge_sentences(table: Table) -> list[str]:
    """How to read it, where judges and gold disagree, and which rows a judge is no stranger to."""
    if table.judges is None:
        return []
    judges = table.judges
    how = (
        f"A win rate is the mean preference for a row's answer to {judges.task} over {REFERENCE}'s of the same seed "
        "(0 to 1, a tie ½), ± standard error, seeds pooled, clustered by item; * beyond two standard errors from ½. "
        "p is of a rate of ½, Holm-corrected over a judge's rows."
    )
    others = [judge for judge in judges.names if judges.held_against_gold(judge)]
    return [how, *(said for judge in others for said in _against_gold(table, judge)), *_no_stranger(table)]


def judge_json(table: Table) -> dict[str, Any] | None:
    """Who judged what, and what identifies each judge on each seed."""
    if table.judges is None:
        return None
    judges = table.judges
    return {
        "task": judges.task,
        "against": REFERENCE,
        "judges": list(judges.names),
        "gold": judges.gold,
        "identities": {
            judge: {str(seed): identity for seed, identity in of_seeds.items()}
            for judge, of_seeds in judges.identities.items()
        },
        "sentences": judge_sentences(table),
    }


def row_json(table: Table, row: TableRow) -> dict[str, Any] | None:
    """By judge a row's win rate (a share) with its test against ½, its error, against gold, and where it comes from."""
    rates = table.win_rates.get(row.name)
    return {judge: _rate_json(rate, row.judged_by.get(judge, {})) for judge, rate in rates.items()} if rates else None


def _against_gold(table: Table, judge: str) -> list[str]:
    """The judge's error: its sides of ½ and its verdicts beside gold's."""
    assert table.judges is not None
    assert table.judges.gold is not None
    gold = table.judges.gold
    pairs = {name: (rates[judge], rates[gold]) for name, rates in table.win_rates.items() if {judge, gold} <= {*rates}}
    if not pairs:
        return []
    apart = [name for name, (one, true) in pairs.items() if one.sign != true.sign]
    sides = (
        f"{judge} and {gold}, which is gold, put {len(apart)} of {len(pairs)} rows on different sides of ½"
        f"{': ' if apart else ''}{', '.join(apart)}."
    )
    errors = [one.error for one, _ in pairs.values() if one.error]
    right = [error.decided.value for error in errors if error.decided]
    kappas = [kappa for error in errors if not math.isnan(kappa := error.agreement.kappa.value)]
    if not right or not kappas:
        return [sides]
    error = (
        f"The judge's error: of the pairs that {gold} decides, {judge} decides {min(right):.3f} to {max(right):.3f} "
        f"alike, by row; Cohen's kappa over all pairs, ties among them, is from {min(kappas):.3f} to "
        f"{max(kappas):.3f}, where 0 is chance and 1 is always."
    )
    return [f"{sides} {error}"]


def _no_stranger(table: Table) -> list[str]:
    """The reward model judges policies that were trained to please it."""
    assert table.judges is not None
    learnt = [row.name for row in table.rows if row.name in table.win_rates and _learns(row)]
    if LEARNED not in table.judges.names or not learnt:
        return []
    instead = f": believe {table.judges.gold} there" if table.judges.gold else ""
    trained = f"{LEARNED}, the reward model, judges rows that were trained on it or chosen by it ({', '.join(learnt)})"
    return [f"{trained}, and it likes what it taught, whatever that is worth{instead}."]


def _learns(row: TableRow) -> bool:
    """Whether it learnt from the reward model, alone or among others."""
    return LEARNED in [part.rpartition("·")[2] for part in row.learns_from.split(" + ")]


def _rate(rate: WinRate, beside: str) -> str:
    return f"{shown(rate.rate, beside)}{' *' if rate.margin.beyond_noise else ''}"


def _error(rate: WinRate | None, beside: str) -> list[str]:
    if rate is None or rate.error is None:
        return [NOTHING, NOTHING]
    return [
        NOTHING if each is None or math.isnan(each.value) else shown(each, beside)
        for each in (rate.error.decided, rate.error.agreement.kappa)
    ]


def _rate_json(rate: WinRate, judged_by: Mapping[int, JudgedBy]) -> dict[str, Any]:
    margin, error = rate.margin, rate.error
    low, high = margin.interval
    return {
        **plain(rate.rate),
        "clusters": margin.clusters,
        "interval": [low + rate.rate.value - margin.value, high + rate.rate.value - margin.value],
        "p_value": margin.p_value,
        "corrected_p": rate.corrected,
        "by_seed": {str(seed): value for seed, value in rate.by_seed.items()},
        "judged_by": {str(seed): by for seed, by in judged_by.items()},
        "error": {"decided": error.decided, "agreement": error.agreement.share, "kappa": error.agreement.kappa}
        if error
        else None,
    }

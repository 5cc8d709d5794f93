"""A table as rows of text: what a terminal and a page show alike. One list of lists a table, its head first."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from posttrain.core.statistics import ALPHA, Comparison, p_in_words
from posttrain.lab.cell_values import NOTHING, Cells, plain, shown, shown_p
from posttrain.lab.judge_cells import judge_columns, judge_heads, judge_json, row_json
from posttrain.lab.policy_measures import MEASURES
from posttrain.lab.table import Table, TableRow

HASH_CHARACTERS = 8
ROUNDING = 1e-9
"""A standard error below it is that of a constant."""


def quality(table: Table, beside: str) -> Cells:
    """Every row's scores. `beside` joins a value and its standard error."""
    head = ["Method", "config_hash", "learns from", *table.columns, "reward accuracy", *judge_heads(table), "trials"]
    return [
        head,
        *([*_who(row, beside), *_values(table, row, beside), *_others(table, row, beside)] for row in table.rows),
    ]


def costs(table: Table) -> Cells:
    """What every row cost, over several seeds the mean. GPU-hours and a price have columns where a row has them."""
    rows = [(row.name, row.cost) for row in table.rows if row.cost]
    on_gpu = any(cost.all_gpu_hours is not None for _, cost in rows)
    priced = next((cost for _, cost in rows if cost.price is not None), None)
    head = ["Cost", "prompts", "examples", "tokens trained", "tokens generated", "optimiser steps", "seconds"]
    head += ["by phase", "peak memory", "core-hours", "core-hours, all before too"]
    head += ["GPU-hours", "GPU-hours, all before too"] if on_gpu else []
    head += ["core-hours, tuning"]
    head += [f"price ({priced.currency}, {priced.machine})"] if priced else []
    body = []
    for name, cost in rows:
        phases = ", ".join(f"{phase} {seconds:.0f}" for phase, seconds in cost.phases.items() if seconds >= 0.5)
        cells = [
            name,
            f"{cost.prompts_seen:,.0f}",
            NOTHING if cost.examples_seen is None else f"{cost.examples_seen:,.0f}",
            *(f"{n:,.0f}" for n in (cost.tokens_trained, cost.tokens_generated, cost.optimizer_steps)),
            _spent(cost.seconds, cost.resumed, 0),
            phases or NOTHING,
            f"{cost.peak_memory_bytes / 2**20:,.0f} MiB",
            _spent(cost.core_hours, cost.resumed, 3),
            _spent(cost.all_core_hours, cost.any_resumed, 3),
        ]
        if on_gpu:
            cells += [_spent(cost.gpu_hours, cost.resumed, 3), _spent(cost.all_gpu_hours, cost.any_resumed, 3)]
        cells += [_spent(cost.tuning_core_hours, cost.tuning_resumed, 3)]
        cells += [_spent(cost.price, cost.any_resumed, 2)] if priced else []
        body.append(cells)
    return [head, *body]


def _spent(amount: float | None, at_least: bool, decimals: int) -> str:
    """A cost, as a lower bound where a run of it was killed and left no account of it."""
    return NOTHING if amount is None else f"{'≥ ' if at_least else ''}{amount:.{decimals}f}"


def differences(table: Table, beside: str) -> Cells:
    """Paired differences, marked beyond two standard errors, with the corrected p of what is tested."""
    rows = [["Difference", *table.columns]]
    bounds = {row.name: row.bounds for row in table.rows}
    for difference in table.differences:
        corrected = difference.corrected or {}
        cells = [
            _difference(difference.columns.get(c), corrected.get(c), beside, c in bounds[difference.after])
            for c in table.columns
        ]
        rows.append([f"{difference.after} − {difference.before}", *cells])
    return rows


def standings(table: Table) -> Cells:
    """Rows by the headline, best first, with the distance from the best and each seed by itself."""
    rows = [["Rank", "Method", table.headline, "behind the best", "corrected p", "by seed"]]
    by_name = {row.name: row for row in table.rows}
    for rank, standing in enumerate(table.standings, start=1):
        scores = by_name[standing.name].scores[table.headline]
        seeds = [f"{scores.of_seed(seed).estimate.value:.3f}" for seed in sorted(set(scores.seeds))]
        behind = standing.behind
        rows.append(
            [
                str(rank),
                standing.name,
                shown(scores.estimate, " ± "),
                NOTHING if behind is None else _difference(behind, None, " ± "),
                NOTHING if standing.corrected is None else shown_p(standing.corrected),
                "  ".join(seeds),
            ]
        )
    return rows


def verdicts(table: Table) -> list[str]:
    """What the table says: who wins over what it started from, which cross-check disagrees, what could be seen."""
    sentences = [verdict.sentence for verdict in table.verdicts]
    for difference in table.differences:
        about = f"{difference.after} − {difference.before} on {table.headline}"
        if difference.bootstrap and table.headline in difference.columns:
            p = difference.columns[table.headline].p_value
            sentences += _disagreement(f"{about}: the paired bootstrap", difference.bootstrap.p_value, p)
        for seed, test in (difference.mcnemar or {}).items():
            p = (difference.seed_p or {})[seed]
            sentences += _disagreement(f"{about}, seed {seed}: McNemar's mid-p", test.mid, p)
    checked = any(difference.bootstrap for difference in table.differences)
    if checked and any(row.scores[table.headline].dependent for row in table.rows if table.headline in row.scores):
        sentences.append(f"McNemar's test of {table.headline} is left out: some of its items depend on each other.")
    if table.sensitivity and len(table.standings) > 1:
        best, second = table.standings[0].name, table.standings[1].name
        sentences.append(f"Between {best} and {second} on {table.headline}: {table.sensitivity.sentence}")
    return sentences


def _disagreement(check: str, p: float, clustered: float) -> list[str]:
    """Where a cross-check and the clustered difference of the same items lie on different sides of .05."""
    if (p < ALPHA) == (clustered < ALPHA):
        return []
    return [f"{check} disagrees ({p_in_words(p)} against {p_in_words(clustered)}, uncorrected)."]


def notes(table: Table) -> list[str]:
    """What a reader of the values has to know."""
    learned = MEASURES["learned"]
    scores = [row.scores[learned] for row in table.rows if learned in row.scores]
    seeds = max((len(set(each.seeds)) for each in scores), default=0)
    if learned not in table.columns or seeds < 2:
        return []
    scales = "Where each seed has a reward model of its own, one with a wider scale weighs more"
    return [f"The {learned} is pooled over {seeds} seeds. {scales}, and the unit means nothing outside this table."]


def as_json(table: Table) -> dict[str, Any]:
    """Everything in the table as plain data, as strict JSON gives it back: no tuples, None for what is no number."""
    everything: dict[str, Any] = {
        "columns": list(table.columns),
        "tasks": list(table.tasks),
        "headline": table.headline,
        "rows": [_row_json(table, row) for row in table.rows],
        "differences": [
            {
                "after": difference.after,
                "before": difference.before,
                "columns": {
                    column: _comparison_json(estimate, (difference.corrected or {}).get(column))
                    for column, estimate in difference.columns.items()
                },
                "by_seed": {str(seed): value for seed, value in difference.by_seed.items()},
                "checks": {
                    "bootstrap": difference.bootstrap,
                    "mcnemar": {str(seed): test for seed, test in (difference.mcnemar or {}).items()},
                    "p_by_seed": {str(seed): p for seed, p in (difference.seed_p or {}).items()},
                },
            }
            for difference in table.differences
        ],
        "standings": [
            {
                "method": standing.name,
                "behind": _comparison_json(standing.behind, standing.corrected) if standing.behind else None,
            }
            for standing in table.standings
        ],
        "verdicts": table.verdicts,
        "sensitivity": table.sensitivity,
        "judge": judge_json(table),
        "sentences": verdicts(table),
        "fell": table.losses(),
        "notes": notes(table),
        "footnotes": list(table.footnotes),
    }
    strict: dict[str, Any] = _strict(everything)
    return strict


def _strict(value: Any) -> Any:
    """`value` in the types of JSON."""
    if is_dataclass(value):
        return {field.name: _strict(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_strict(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row_json(table: Table, row: TableRow) -> dict[str, Any]:
    return {
        "method": row.name,
        "config_hash": row.config_hash,
        "seeds": list(row.seeds),
        "learns_from": row.learns_from,
        "start": row.start,
        "trials": row.trials,
        "bounds": list(row.bounds),
        "footnotes": list(row.footnotes),
        "columns": {c: plain(scores.estimate) for c, scores in row.scores.items() if c in table.columns},
        "by_seed": {
            c: {str(seed): scores.of_seed(seed).estimate.value for seed in sorted(set(scores.seeds))}
            for c, scores in row.scores.items()
            if c in table.columns
        },
        "reward_accuracy": {**plain(row.reward_accuracy), "implicit": row.implicit} if row.reward_accuracy else None,
        "judge": row_json(table, row),
        "cost": row.cost,
    }


def _who(row: TableRow, beside: str) -> list[str]:
    between = beside.partition("±")[0]  # a new line where values have one before their standard error
    name = row.name if len(row.seeds) <= 1 else f"{row.name}{between}({len(row.seeds)} seeds)"
    return [name, row.config_hash[:HASH_CHARACTERS], row.learns_from]


def _values(table: Table, row: TableRow, beside: str) -> list[str]:
    scores = row.scores
    return [shown(scores[c].estimate, beside, c in row.bounds) if c in scores else NOTHING for c in table.columns]


def _others(table: Table, row: TableRow, beside: str) -> list[str]:
    accuracy = NOTHING if row.reward_accuracy is None else shown(row.reward_accuracy, beside)
    return [
        f"{'implicit ' if row.implicit else ''}{accuracy}",
        *judge_columns(table, row, beside),
        NOTHING if row.trials is None else str(row.trials),
    ]


def _difference(estimate: Comparison | None, corrected: float | None, beside: str, bound: bool = False) -> str:
    """`bound`: what was subtracted from is an upper bound; then the standard error is the other row's, if it has one,
    and nothing is marked."""
    if estimate is None:
        return NOTHING
    if bound:
        error = f"{beside}{estimate.standard_error:.3f}" if estimate.standard_error > ROUNDING else ""
        return f"≤ {estimate.value:+.3f}{error}"
    mark = " *" if estimate.beyond_noise else ""
    p = "" if corrected is None else f"{'; ' if beside == ' ± ' else chr(10)}p {shown_p(corrected)}"
    return f"{estimate.value:+.3f}{beside}{estimate.standard_error:.3f}{mark}{p}"


def _comparison_json(comparison: Comparison, corrected: float | None) -> Mapping[str, Any]:
    return {**vars(comparison), "corrected_p": corrected}

"""From finished run directories to the rows of a table: reads per-item results, pools seeds, pairs rows."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from posttrain.core.errors import RequestError, suggest
from posttrain.core.files import read_jsonl
from posttrain.lab.evaluations import is_evaluated
from posttrain.lab.graph import Plan, Row
from posttrain.lab.policy_measures import MEASURES, policy_items
from posttrain.lab.table import Scores, Table, TableRow, build_table


def collect_table(plans: Sequence[Plan]) -> Table:
    """The table of one method over the seeds of `plans`: base, SFT, the method, and the differences between them."""
    rows = [_collect_row([plan.rows[place] for plan in plans], plans) for place in range(len(plans[0].rows))]
    evaluation = plans[0].recipe.evaluation
    columns = (*evaluation.columns().values(), *MEASURES.values())
    present = [column for column in columns if any(column in row.scores for row in rows)]
    tasks = [*evaluation.columns().values(), MEASURES["gold"]]
    return build_table(rows, present, _pairs([row.name for row in rows]), tasks)


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each row against the one before it, and the last against the first."""
    neighbours = [(names[place + 1], names[place]) for place in range(len(names) - 1)]
    return [*neighbours, (names[-1], names[0])] if len(names) > 2 else neighbours


def _collect_row(rows: Sequence[Row], plans: Sequence[Plan]) -> TableRow:
    seeds = tuple(plan.seed for plan in plans)
    columns = plans[0].recipe.evaluation.columns()
    scores = {}
    _refuse_other_evaluations(rows, plans)
    for (task, metric), title in columns.items():
        scores[title] = _pool([_task_values(row.run.eval / f"{task}.jsonl", metric) for row in rows], seeds)
    for measure, title in MEASURES.items():
        parts = [_read(policy_items(row, plan), measure) for row, plan in zip(rows, plans, strict=True)]
        if all(parts):
            scores[title] = _pool(parts, seeds)
    records = [row.run.provenance() for row in rows]
    seconds = [record.get("cost", {}).get("wall_seconds") for record in records]
    known = [value for value in seconds if value is not None]
    return TableRow(
        name=rows[0].name,
        config_hash=rows[0].identity.config_hash,
        seeds=seeds if rows[0].identity.parents else (),
        scores=scores,
        seconds=sum(known) / len(known) if known else None,
        resumed=any(record.get("resumed", False) for record in records),
    )


def _refuse_other_evaluations(rows: Sequence[Row], plans: Sequence[Plan]) -> None:
    for row, plan in zip(rows, plans, strict=True):
        if not is_evaluated(row, plan.recipe.evaluation):
            raise RequestError(
                f"{row.name} ({row.run.path}) was last evaluated with other tasks or limits, or not at all; "
                "run posttrain train again with these settings"
            )


ItemValues = dict[str, list[float]]
"""Item id to its values: one, or one for each instruction of a prompt."""


def _read(path: Path, metric: str) -> ItemValues:
    values = {}
    for item in read_jsonl(path):
        if (value := item["scores"].get(metric)) is not None:
            values[item["id"]] = value if isinstance(value, list) else [value]
    return values


def _task_values(path: Path, metric: str) -> ItemValues:
    values = _read(path, metric)
    if not values:
        known = {name for item in read_jsonl(path) for name in item["scores"]}
        raise RequestError(f"evaluation.table: task {path.stem} has no metric '{metric}' {suggest(metric, known)}")
    return values


def _pool(parts: Sequence[ItemValues], seeds: Sequence[int]) -> Scores:
    triples = chain.from_iterable(
        ((item, f"{seed}/{item}/{place}", value) for item, values in part.items() for place, value in enumerate(values))
        for seed, part in zip(seeds, parts, strict=True)
    )
    items, keys, values = zip(*triples, strict=True)
    return Scores(items, keys, values)

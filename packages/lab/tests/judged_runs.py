"""Answers and preferences in the run directories of posttrain.lab's tests, as evaluation and judging leave them."""

from collections.abc import Callable, Sequence

from packages.lab.tests.finished_runs import finished
from posttrain.core.files import read_jsonl, write_jsonl
from posttrain.lab.judge_matches import judged_items
from posttrain.lab.plan import Plan, Row

TASK = "nano_instructions"

Texts = Callable[[str, int], Sequence[str]]
"""Row's name and seed to its answers to items 0, 1, …"""


def by_name(row: str, seed: int) -> Sequence[str]:
    """Longer answers from whoever's name is longer; the last one is everybody's."""
    return [f"{row} of {seed} says {number}" for number in range(3)] + ["the same"]


def answer(row: Row, texts: Sequence[str], cut: Sequence[int] = ()) -> None:
    """Puts answers into the row's item file; those numbered in `cut` were as long as they may be."""
    path = row.run.eval / f"{TASK}.jsonl"
    items = [
        {**item, "text": text, "finish_reason": "length" if number in cut else "stop"}
        for number, (item, text) in enumerate(zip(read_jsonl(path), texts, strict=True))
    ]
    write_jsonl(path, items)


def answered(plans: Sequence[Plan], texts: Texts = by_name) -> None:
    """Every row with answers to the judged task."""
    for plan in plans:
        for row in plan.rows:
            if (row.run.eval / f"{TASK}.jsonl").exists():
                answer(row, texts("base" if row.name == "base" else row.name, 0 if row.name == "base" else plan.seed))


def answered_runs(root, names: Sequence[str], seeds: Sequence[int] = (0,), *overrides: str, **options) -> list[Plan]:
    """Finished runs whose rows have answers."""
    plans = finished(root, names, seeds, *overrides, **options)
    answered(plans)
    return plans


def judge(row: Row, plan: Plan, **preferences: Sequence[float]) -> None:
    """Puts what each judge prefers on items 0, 1, … beside the row."""
    path = judged_items(row, plan)
    assert path is not None
    rows = [
        {"id": f"{TASK}/{number}", "scores": dict(zip(preferences, values, strict=True))}
        for number, values in enumerate(zip(*preferences.values(), strict=True))
    ]
    write_jsonl(path, rows)

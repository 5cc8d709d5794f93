"""Rows as a record publishes them: forty items a seed, of which the first so many are right."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.core.statistics import Estimate
from posttrain.lab.costs import RowCost
from posttrain.lab.judge_scores import JudgedBy, Judges
from posttrain.lab.published_metrics import merge_metrics
from posttrain.lab.record import publish_table
from posttrain.lab.table import Scores, Table, TableRow, build_table

IDENTITIES = {"rm": {0: "f0", 1: "f1"}, "verifier": {0: "1", 1: "1"}}
JUDGES = Judges("nano_instructions", ("rm", "verifier"), "verifier", IDENTITIES)
DESCRIBED = {"recipe": "nano", "title": "every method", "commands": ["posttrain compare"], "stages": []}
HASHES = {"base": "aaaaaaaa", "sft": "bbbbbbbb", "dpo": "cccccccc", "ppo": "dddddddd"}
"""The beginnings of the rows' hashes."""


def scores(right: dict[int, int], n: int = 40) -> Scores:
    """Of each seed the first so many items right."""
    items = tuple(f"i{place}" for place in range(n)) * len(right)
    seeds = tuple(seed for seed in right for _ in range(n))
    values = tuple(float(place < count) for count in right.values() for place in range(n))
    return Scores(items, seeds, (0,) * len(items), values)


def row(name: str, right: dict[int, int]) -> TableRow:
    accuracy = Estimate(0.8, 0.01, 100) if name == "dpo" else None
    return TableRow(
        name,
        HASHES[name] * 8,
        () if name == "base" else tuple(right),
        {"acc": scores(right)},
        "pairs",
        4,
        accuracy,
        implicit=True,
        cost=RowCost(1, 2.0, 3.0, 4, 5.0, {"update": 4.5}, 6, 0.1, 0.2, tuning_core_hours=0.3),
        bounds=("acc",) if name == "ppo" else (),
    )


def four_rows() -> list[TableRow]:
    right = {"base": {0: 2, 1: 2}, "sft": {0: 10, 1: 12}, "dpo": {0: 20, 1: 25}, "ppo": {0: 30, 1: 28}}
    return [row(name, of_seeds) for name, of_seeds in right.items()]


def judged_rows() -> list[TableRow]:
    """The four, judged by two of one mind: all but the base are better than sft on most items."""
    likes = {"base": {0: 4, 1: 2}, "dpo": {0: 25, 1: 24}, "ppo": {0: 30, 1: 35}}
    by = {
        judge: {seed: JudgedBy(identity, f"{judge}-{seed}") for seed, identity in of_judge.items()}
        for judge, of_judge in IDENTITIES.items()
    }
    return [
        replace(each, judged={judge: scores(likes[each.name]) for judge in by}, judged_by=by)
        if each.name in likes
        else each
        for each in four_rows()
    ]


def table_of(*rows: TableRow, columns: tuple[str, ...] = ("acc",)) -> Table:
    return build_table(rows, columns, ["acc"], "acc", check=False, judges=JUDGES)


def evaluations(*rows: TableRow, seed: int = 0) -> list[dict[str, Any]]:
    """One a row."""
    return [
        {
            "method": each.name, "seed": seed, "config_hash": each.config_hash, "fingerprint": each.name, "task": "t",
            "version": 1, "few_shot": 0, "limit": None, "backend": "hf",
        }
        for each in rows
    ]  # fmt: skip


def publish(folder: Path, rows: list[TableRow], name: str = "nano", **reinstated: str) -> None:
    """The rows with their evaluations; `reinstated` by the beginning of the hash."""
    why = {beginning * 8: reason for beginning, reason in reinstated.items()}
    publish_table(folder, name, table_of(*rows), DESCRIBED, [], why)
    merge_metrics(folder, evaluations(*rows), ["posttrain compare"], why)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "metrics.json").read_text())


def content(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

"""The committed record under results/: its tables, evaluations and items speak of the same rows."""

from collections import defaultdict
from pathlib import Path

import pytest

from posttrain.core.files import read_json
from posttrain.lab.published_metrics import METRICS, record_paths, retracted_rows
from posttrain.lab.record import read_row

RESULTS = Path(__file__).parents[3] / "results"


@pytest.fixture(scope="module")
def records() -> dict[str, dict]:
    return {path.stem: read_json(path) for path in record_paths(RESULTS)}


@pytest.fixture(scope="module")
def shown(records) -> set[str]:
    """The hashes of all rows in tables."""
    return {row["config_hash"] for record in records.values() for row in record["rows"]}


@pytest.fixture(scope="module")
def marks() -> dict[str, set[str | None]]:
    """Every hash that has evaluations, and why they were retracted; None for those that were not."""
    found = defaultdict(set)
    for row in read_json(RESULTS / METRICS):
        found[row["config_hash"]].add(row.get("retracted"))
    return found


def test_every_evaluation_is_of_a_row_in_a_table_or_marked_as_retracted(shown, marks):
    assert {config_hash for config_hash, why in marks.items() if None in why} == shown


def test_row_is_marked_wholly_and_for_one_reason(marks):
    assert {config_hash: why for config_hash, why in marks.items() if len(why) != 1} == {}


def test_every_row_in_a_table_has_its_evaluations_on_every_seed(records):
    published = {(row["config_hash"], row["seed"]) for row in read_json(RESULTS / METRICS)}
    rows = [row for record in records.values() for row in record["rows"]]
    assert {(row["config_hash"], seed) for row in rows for seed in row["seeds"]} <= published


def test_retracted_row_is_in_no_table_and_listed_with_its_reason_where_people_read(shown, marks):
    retracted = retracted_rows(RESULTS)
    assert retracted.keys() & shown == set()
    assert retracted.keys() == {config_hash for config_hash, why in marks.items() if None not in why}
    pages = "\n".join(path.read_text() for path in RESULTS.glob("*.md"))
    for config_hash, why in retracted.items():
        assert f"({config_hash[:8]})" in pages
        assert why in pages


def test_every_row_has_its_items_and_nobody_else_has(records):
    kept = {path.relative_to(RESULTS / "items") for path in (RESULTS / "items").rglob("*.jsonl.gz")}
    assert kept == {
        Path(name, f"{row['config_hash'][:12]}.jsonl.gz") for name, record in records.items() for row in record["rows"]
    }


def test_every_row_can_be_read_back_from_its_items(records):
    for name, record in records.items():
        for plain in record["rows"]:
            row = read_row(RESULTS, name, plain)
            scores = row.scores
            found = {column: (each.estimate.n, each.estimate.value) for column, each in scores.items()}
            shown = {column: (each["n"], pytest.approx(each["value"])) for column, each in plain["columns"].items()}
            assert found == shown
            judged = plain["judge"] or {}
            rates = {judge: row.judged[judge].estimate for judge in judged}
            assert {judge: (each.n, each.value) for judge, each in rates.items()} == {
                judge: (each["n"], pytest.approx(each["value"])) for judge, each in judged.items()
            }

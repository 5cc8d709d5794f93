"""Rows that others published: beside ours under our titles, with what their numbers of items say, in no verdict."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from packages.lab.tests.published_rows import four_rows, table_of
from posttrain.core.errors import RequestError
from posttrain.lab.cells import as_json, verdicts
from posttrain.lab.published_tables import PublishedTask, published_beside
from posttrain.lab.render import markdown

RESULTS = Path(__file__).parents[3] / "results"
LAB = {
    ("mmlu", "acc"): "MMLU",
    ("gsm8k", "exact_match,strict-match"): "GSM8K",
    ("truthfulqa_mc2", "acc"): "TruthfulQA",
    ("ifeval", "prompt_level_strict_acc"): "IFEval prompt",
    ("ifeval", "inst_level_strict_acc"): "IFEval inst",
}


@pytest.fixture
def reference():
    (found,) = published_beside(RESULTS, LAB)
    return found


def test_standard_error_follows_from_the_number_of_items():
    """√(.25 · .75 / 300) of 301 items right or wrong: .025; the largest that a mean of .5 leaves on 26: .1."""
    assert PublishedTask(n=301).standard_error(0.25) == pytest.approx(0.025)
    assert PublishedTask(n=26, kind="mean").standard_error(0.5) == pytest.approx(0.1)


def test_reference_lab_has_three_rows_under_our_titles(reference):
    head, *rows = reference.cells(tuple(LAB.values()), " ± ")
    assert head == ["Method", "config_hash", *LAB.values(), "what it is"]
    assert [row[1] for row in rows] == ["fde0720e", "b133712d", "d53fd258"]
    # √(.3389 · .6611 / 1318) = .0130
    assert rows[0][3] == "0.3389 ± 0.0130"
    assert rows[0][4].startswith("0.3988 ± ≤ 0.01"), "a mean of probabilities varies at most so much"
    assert all("published, not measured here" in row[0] for row in rows)


def test_column_that_only_one_of_the_tables_has_is_left_out():
    (found,) = published_beside(RESULTS, {("gsm8k", "exact_match,strict-match"): "strict", ("mine", "acc"): "mine"})
    assert found.cells(("strict", "mine"), " ")[0] == ["Method", "config_hash", "strict", "what it is"]


def test_published_rows_stand_on_the_page_and_change_nothing_of_ours(reference):
    table = table_of(*four_rows())
    page = markdown(table, [replace(reference, tasks={"acc": PublishedTask(n=1319)}, rows=())])
    assert "published, not measured here" in page
    assert page.replace(page[page.index("## Post-training") : page.index("## Verdicts")], "") == markdown(table)
    assert all("sft_v2" not in sentence for sentence in verdicts(table))
    assert "published" not in as_json(table)


def test_plain_form_says_of_every_row_that_it_was_not_measured_here(reference):
    plain = reference.plain()
    assert [row["measured_here"] for row in plain["rows"]] == [False] * 3
    assert plain["rows"][2]["columns"]["GSM8K"] == {
        "value": 0.3495, "standard_error": pytest.approx(0.01313, abs=1e-5), "upper_bound": False, "n": 1319
    }  # fmt: skip


def test_recipe_that_shares_no_metric_is_told_so():
    with pytest.raises(RequestError, match="nothing under .* was measured by this recipe's metrics; it has gsm8k/"):
        published_beside(RESULTS, {("nano_choice", "acc"): "choice"})


def test_folder_without_tables_and_malformed_table_are_told(tmp_path):
    with pytest.raises(RequestError, match=r"has no published table \(\*\.yaml\)"):
        published_beside(tmp_path, LAB)
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "bad.yaml").write_text(yaml.safe_dump({"title": "x"}))
    with pytest.raises(RequestError, match=r"bad\.yaml"):
        published_beside(tmp_path, LAB)

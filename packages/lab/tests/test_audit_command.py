"""posttrain results audit: what a published table can tell from noise, and files that are told off by name."""

import json
from pathlib import Path

import pytest
import yaml

from posttrain.core.cli import run as command
from posttrain.core.config import read_yaml, validate
from posttrain.lab.audit_command import audit_table
from posttrain.lab.published_tables import PublishedTable

REFERENCE = Path(__file__).parents[3] / "results" / "published" / "reference-lab.yaml"


def table(**changes):
    """One pair of rows: ifeval up by 20 points of 541, mmlu unchanged."""
    plain = {
        "title": "A table",
        "source": "a paper",
        "tasks": {"ifeval": {"n": 541}, "mmlu": {"n": 1000}},
        "rows": [
            {"name": "base", "accuracies": {"ifeval": 0.1, "mmlu": 0.5}},
            {"name": "sft", "accuracies": {"ifeval": 0.3, "mmlu": 0.5}},
        ],
        "claims": [{"method": "sft", "over": "base", "wins": ["ifeval", "mmlu"]}],
    }
    return plain | changes


def audit(tmp_path, capsys, plain, *options):
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(plain))
    status = command(["results", "audit", str(path), *options])
    said = capsys.readouterr()
    return status, said.out, " ".join(said.err.split())


def test_no_win_of_the_reference_lab_can_be_told_from_noise(capsys):
    assert command(["results", "audit", str(REFERENCE), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    claimed = {(d["method"], d["over"], d["task"]): d for d in said["differences"] if d["claimed"]}
    headline = {("dpo_v1", "base", "ifeval_prompt"), ("dpo_v1", "base", "gsm8k"), ("sft_v2", "base", "gsm8k")}
    assert headline < set(claimed)
    assert not any(d["told_from_noise"] or d["p_value"] < 0.05 for d in claimed.values())
    assert (
        "None of the 10 claimed wins can be told from noise (Holm over 15 comparisons, two-sided 5 %)."
        in said["verdicts"]
    )


def test_reference_rows_give_the_deltas_that_were_published():
    """In points, from the README's own second table."""
    audited = audit_table(validate(PublishedTable, read_yaml(REFERENCE), "fixture"))
    deltas = {(one.method, one.over): [] for one in audited}
    for one in audited:
        deltas[one.method, one.over].append(round(100 * one.difference.value, 2))
    assert deltas == {
        ("sft_v2", "base"): [-1.00, 0.61, -0.95, -0.37, 1.20],
        ("dpo_v1", "sft_v2"): [0.89, 0.45, 0.65, 0.74, 0.24],
        ("dpo_v1", "base"): [-0.11, 1.06, -0.30, 0.37, 1.44],
    }


def test_headline_of_the_reference_lab_could_not_be_told_by_any_pairing(capsys):
    # 0.1275 · 541 = 69 prompts against 0.1238 · 541 = 67: two prompts, and two coins fall alike half of the time.
    command(["results", "audit", str(REFERENCE)])
    sentences = capsys.readouterr().out.splitlines()
    (headline,) = [line for line in sentences if line.startswith("dpo_v1 over base on ifeval_prompt")]
    assert "+0.37 points (95 % -3.60 to +4.34, n = 541, corrected p = 1)" in headline
    assert "cannot be told from noise from the published numbers" in headline
    assert "A difference of that size needs 125,974 items" in headline
    assert headline.endswith("No pairing could tell it either: it is 2 items (p = 0.5 at best).")


def test_gsm8k_of_the_reference_lab_names_the_discordance_that_pairing_would_need(capsys):
    command(["results", "audit", str(REFERENCE)])
    (line,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("dpo_v1 over base on gsm8k")]
    assert line.endswith("Paired, and before correction, it could be if at most 3.9 % of the items were discordant.")


def test_win_beyond_noise_is_told_and_a_claim_without_difference_is_none(tmp_path, capsys):
    status, out, _ = audit(tmp_path, capsys, table())
    assert status == 0
    assert "sft over base on ifeval: +20.00 points" in out
    assert "corrected p < 0.001) is told from noise." in out
    assert "on mmlu: +0.00 points" in out
    assert "corrected p = 1) is no improvement." in out
    assert "1 of the 2 claimed wins can be told from noise (Holm over 2 comparisons" in out


def test_fall_that_was_claimed_as_a_win_is_no_improvement(tmp_path, capsys):
    plain = table(claims=[{"method": "base", "over": "sft", "wins": ["ifeval"]}])
    _, out, _ = audit(tmp_path, capsys, plain)
    assert "corrected p < 0.001) is no improvement." in out
    assert "None of the 1 claimed wins" in out


def test_correction_counts_every_comparison_of_the_table(tmp_path, capsys):
    """p = 0.03 alone is 0.06 beside another."""
    tasks = {"ifeval": {"n": 541}, "mmlu": {"n": 1000}}
    rows = [
        {"name": "base", "accuracies": {"ifeval": 0.10, "mmlu": 0.5}},
        {"name": "sft", "accuracies": {"ifeval": 0.142, "mmlu": 0.5}},
    ]
    claims = [{"method": "sft", "over": "base", "wins": ["ifeval"]}]
    _, out, _ = audit(tmp_path, capsys, table(tasks=tasks, rows=rows, claims=claims), "--json")
    first = json.loads(out)["differences"][0]
    assert 0.025 < first["p_value"] < 0.05 < first["corrected_p"]
    assert first["corrected_p"] == pytest.approx(2 * first["p_value"])
    assert not first["told_from_noise"]


def test_task_that_one_row_lacks_is_not_compared(tmp_path, capsys):
    rows = [
        {"name": "base", "accuracies": {"ifeval": 0.1}},
        {"name": "sft", "accuracies": {"ifeval": 0.3, "mmlu": 0.5}},
    ]
    plain = table(rows=rows, claims=[{"method": "sft", "over": "base", "wins": ["ifeval"]}])
    _, out, _ = audit(tmp_path, capsys, plain, "--json")
    assert [d["task"] for d in json.loads(out)["differences"]] == ["ifeval"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": {}}, "unknown key 'task' (did you mean 'tasks'?)"),
        ({"tasks": {"ifeval": {"m": 541}}}, "unknown key 'tasks.ifeval.m' (choose from: kind, metric, n, note)"),
        ({"tasks": {"ifeval": {}}}, "'tasks.ifeval.n' is missing; set it"),
        ({"tasks": {"ifeval": {"n": 541}}}, "row 'base' has a task that 'tasks' lacks: 'mmlu' (choose from: ifeval)"),
        (
            {"rows": [{"name": "base", "accuracies": {"ifeval": 48.1}}, {"name": "sft", "accuracies": {}}]},
            "'rows.0.accuracies.ifeval' input should be less than or equal to 1 (it is 48.1)",
        ),
        ({"rows": [{"name": "sft", "accuracies": {}}] * 2}, "two rows have the same name"),
        ({"claims": [{"method": "sfd", "over": "base"}]}, "'sfd' (did you mean 'sft'?)"),
        ({"claims": [{"method": "sft", "over": "sft"}]}, "a claim compares 'sft' with itself"),
        ({"claims": [{"method": "sft", "over": "base"}] * 2}, "two claims compare the same rows"),
        (
            {"claims": [{"method": "sft", "over": "base", "wins": ["ifevl"]}]},
            "'sft' over 'base': a win on a task that not both rows have: 'ifevl' (did you mean 'ifeval'?)",
        ),
        ({"claims": []}, "'claims' list should have at least 1 item"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_file_is_told_by_key_and_nothing_is_printed(tmp_path, capsys, change, said):
    status, out, err = audit(tmp_path, capsys, table(**change))
    assert (status, out) == (2, "")
    assert said in err
    assert "table.yaml" in err


def test_file_that_is_not_there_is_named(capsys):
    assert command(["results", "audit", "nowhere.yaml"]) == 2
    assert "nowhere.yaml does not exist" in capsys.readouterr().err

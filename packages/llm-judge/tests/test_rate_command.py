"""`posttrain judge rate` and `judge agree`: figures by hand of invented annotations, refusals."""

import json
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from posttrain.core import cli
from posttrain.core.files import write_jsonl

PACKAGE = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def commands_as_declared(monkeypatch):
    """The entry points of this package's pyproject.toml, whatever is installed."""
    declared = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"][cli.GROUP]
    entries = [EntryPoint(name, value, cli.GROUP) for name, value in declared.items()]
    monkeypatch.setattr(cli, "entry_points", lambda group: entries)


def annotated(prompt, old, new, preference, *, judge="a judge", **more):
    return {
        "instruction": f"question {prompt}",
        "output_1": f"{old} says {prompt}",
        "generator_1": old,
        "output_2": f"{new} says {prompt}",
        "generator_2": new,
        "annotator": judge,
        "preference": preference,
    } | more


@pytest.fixture
def run(tmp_path, capsys):
    def call(command, *arguments, **files):
        paths = []
        for name, rows in files.items():
            write_jsonl(tmp_path / f"{name}.jsonl", rows)
            paths.append(str(tmp_path / f"{name}.jsonl"))
        with pytest.raises(SystemExit) as ended:
            cli.main(["judge", command, *paths, *arguments])
        return ended.value.code, capsys.readouterr()

    return call


def said(captured):
    return json.loads(captured.out.splitlines()[-1])


def test_three_wins_in_four_are_190_85_points(run):
    rows = [annotated(n, "old", "new", 2 if n % 4 else 1) for n in range(40)]
    status, captured = run("rate", "--anchor", "old", "--json", rows=rows)
    new, old = said(captured)["ratings"]
    assert status == 0
    assert (new["model"], old["model"]) == ("new", "old")
    assert new["points"] == pytest.approx(1190.85, abs=0.01)
    assert old["interval"] == [1000, 1000]
    assert new["interval"][0] < new["points"] < new["interval"][1]
    assert new["comparisons"] == 40
    assert "new" in captured.err


def test_models_of_several_files_are_rated_together(run):
    first = [annotated(n, "a", "b", 2 if n % 4 else 1) for n in range(40)]
    second = [annotated(n, "b", "c", 2 if n % 4 else 1) for n in range(40)]
    _, captured = run("rate", "--anchor", "a", "--json", first=first, second=second)
    points = {row["model"]: row["points"] for row in said(captured)["ratings"]}
    assert points == pytest.approx({"a": 1000, "b": 1190.85, "c": 1381.70}, abs=0.02)


def test_style_control_takes_a_preference_for_length_away(run):
    # "new" writes longer answers three times in four, and the judge nearly always takes the longer one.
    rows = []
    for n in range(200):
        longer, surprise = n % 4 != 0, n % 40 < 4
        texts = {"output_1": "x" * (100 if longer else 200), "output_2": "x" * (200 if longer else 100)}
        rows.append(annotated(n, "old", "new", 2 if longer != surprise else 1) | texts)
    plain = said(run("rate", "--anchor", "old", "--json", rows=rows)[1])
    controlled = said(run("rate", "--anchor", "old", "--style-control", "--json", rows=rows)[1])
    lead = plain["ratings"][0]["points"] - 1000
    at_equal_length = {row["model"]: row["points"] for row in controlled["ratings"]}["new"] - 1000
    assert lead > 100
    assert abs(at_equal_length) < 1
    assert controlled["style"]["length"]["interval"][0] > 0
    assert controlled["constant_styles"] == ["headers", "lists", "bold"]


def test_ratings_of_several_judges_are_refused_until_one_is_chosen(run):
    rows = [annotated(n, "old", "new", 2 if n % 4 else 1, judge=judge) for n in range(40) for judge in ("one", "other")]
    status, captured = run("rate", rows=rows)
    assert status == 2
    assert "one, other; choose with --judge" in captured.err
    assert run("rate", "--judge", "other", rows=rows)[0] == 0
    status, captured = run("rate", "--judge", "othr", rows=rows)
    assert status == 2
    assert "'other'" in captured.err


def test_annotations_without_names_are_refused(run):
    rows = [annotated(n, "old", "new", 2) | {"generator_1": None} for n in range(4)]
    status, captured = run("rate", rows=rows)
    assert status == 2
    assert "generator_1" in captured.err


def test_agreement_of_two_judges_by_hand(run):
    # Ten pairs: both say B in 4, both A in 3; the first says B and the second A in 2, the other way round in 1.
    one = [2] * 6 + [1] * 4
    other = [2, 2, 2, 2, 1, 1, 1, 1, 1, 2]
    rows = [annotated(n, "old", "new", said, judge="one") for n, said in enumerate(one)]
    # The other judge's file has the answers the other way round: what it likes is the same.
    swapped = [annotated(n, "new", "old", 3 - said, judge="other") for n, said in enumerate(other)]
    status, captured = run("agree", "--json", rows=rows, swapped=swapped)
    (found,) = said(captured)["agreements"]
    assert status == 0
    assert (found["one"], found["other"]) == ("one", "other")
    assert found["agreement"]["share"]["value"] == pytest.approx(0.7)
    by_chance = 0.6 * 0.5 + 0.4 * 0.5
    assert found["agreement"]["kappa"]["value"] == pytest.approx((0.7 - by_chance) / (1 - by_chance))


def test_judges_without_a_common_pair_are_told(run):
    status, captured = run("agree", rows=[annotated(0, "old", "new", 2)])
    assert status == 2
    assert "these have a judge" in captured.err

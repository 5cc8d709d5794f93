"""posttrain profile: the seconds of each phase, from what a run logged."""

import json

import pytest
import yaml

from posttrain.core.cli import run as command
from posttrain.core.runs import RunDirectory, StageIdentity

STEPS = [
    {"step": 0, "seconds/validation": 4.0, "seconds/generation": 1.0, "seconds/update": 3.0, "tokens_generated": 100.0},
    {"step": 1, "seconds/generation": 2.0, "seconds/update": 3.0, "tokens_generated": 200.0, "tokens_trained": 600.0},
    {"step": 2, "seconds/generation": 3.0, "seconds/update": 4.0, "tokens_generated": 300.0, "tokens_trained": 400.0},
    {"step": 3, "seconds": 5.0, "seconds/validation": 5.0, "validation/rm": 0.5},
]


@pytest.fixture
def run(tmp_path):
    """A directory below tmp_path, without metrics."""
    run = RunDirectory.of(tmp_path, "nano", StageIdentity("ppo", 1, {}, 0))
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text(yaml.safe_dump({"stage": "ppo", "seed": 0}))
    return run


def log(run, rows):
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_phases_by_hand_by_directory_and_by_fingerprint(run, tmp_path, capsys):
    log(run, STEPS)
    for name in (str(run.path), run.path.name[:6]):
        assert command(["profile", name, "--runs", str(tmp_path), "--json"]) == 0
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert told["run"] == str(run.path)
        assert (told["steps"], told["first_step"], told["last_step"]) == (3, 0, 2)
        assert told["whole"] == {"steps": 3, "first": 8.0, "median": 7.0, "last": 7.0, "seconds": 20.0, "share": 0.8}
        update, validation, generation = told["phases"]
        assert [p["phase"] for p in told["phases"]] == ["update", "validation", "generation"]
        assert (update["first"], update["median"], update["last"]) == (3.0, 3.0, 4.0)
        assert update["tokens_per_second"] == pytest.approx(1000 / 10)
        assert generation["tokens_per_second"] == pytest.approx(600 / 6)
        assert [p["share"] for p in told["phases"]] == pytest.approx([0.4, 0.36, 0.24])
        assert (validation["steps"], validation["first"], validation["last"]) == (2, 4.0, 5.0)
        assert "tokens_per_second" not in validation


def test_the_table_has_a_line_for_each_phase_and_the_whole(run, capsys):
    log(run, STEPS)
    assert command(["profile", str(run.path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["update", "3.000", "40.0%", "3.000", "4.000", "10.0", "3", "100"] in lines
    assert ["whole", "step", "7.000", "80.0%", "8.000", "7.000", "20.0", "3"] in lines


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "does not exist: the run has logged no step yet"),
        ([], "is empty: the run has logged no step yet"),
        ([{"step": 10, "tokens_per_second": 8967.1, "seconds": 1.8}], "times no phases (its last line says 8,967"),
    ],
)
def test_a_run_without_phases_says_what_it_has(run, capsys, rows, message):
    if rows is not None:
        log(run, rows)
    assert command(["profile", str(run.path)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_unknown_run_says_where_to_look(run, tmp_path, capsys):
    assert command(["profile", "zzz", "--runs", str(tmp_path)]) == 2
    assert "posttrain runs list" in capsys.readouterr().err
